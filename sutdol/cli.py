"""The command line. Each command opens what it needs, says what went wrong in words, and ends with 0 or 1.

Siblings are found by name here and nowhere else: ROUTERS (HTTP routes that `serve` mounts), HANDLERS (jobs that `work`
binds), and what `serve` must know of what can be trained. A sibling whose extra is not installed is a SetupError that names
the extra.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from sutdol import (
    __version__,
    cli_batch,
    cli_datasets,
    cli_evaluate,
    cli_learning,
    cli_monitor,
    cli_operations,
    cli_training,
    cli_versions,
    images,
)
from sutdol.context import open_context
from sutdol.errors import SetupError, SutdolError
from sutdol.terminal import Home, console, open_home, parse_params, settings_of, sibling

ROUTERS = ["labeling_bridge.routes"]
"""Modules with `build(context) -> Router`, mounted by `serve`."""
HANDLERS = {
    "bridge": ["labeling_bridge.jobs", "retrain.jobs", "sutdol.monitor.job", "sutdol.notify", "sutdol.mirror"],
    "train": ["retrain.jobs"],
    "batch": ["serving.jobs", "retrain.jobs"],
}
"""Queue -> modules with HANDLERS for it."""

app = App(
    name="sutdol",
    version=__version__,
    help="Keeps deployed vision models sharp: serve, choose what to label, retrain, prove, hot-swap.\n\n"
    "Settings come from the environment (SUTDOL_...), see `sutdol settings`.",
)
app.command(cli_datasets.import_, name="import")
app.command(cli_datasets.dataset_app)
for command in (cli_training.train, cli_training.runs, cli_training.cancel, cli_training.preview):
    app.command(command)
keys_app = App(name="keys", help="API keys: create, list, revoke.")
app.command(keys_app)
app.command("sutdol.cli_labels:labels_app", name="labels")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: expected failures are one line and exit code 1, everything else keeps its traceback."""
    try:
        app(arguments)
    except SutdolError as error:
        Console(stderr=True).print(f"[red]{error.code}[/]: {error.message}", highlight=False)
        if error.hint:
            Console(stderr=True).print(f"  -> {error.hint}", highlight=False)
        sys.exit(1)


@app.command
def up(*, label_studio: bool = True, home: Home = None) -> None:
    """Run everything on this machine: serving, workers, clock, Label Studio.

    Example: sutdol up
    """
    from sutdol import up as programs

    images.assert_one_cv2()
    context = open_home(home)
    key = programs.first_key(context)
    if key:
        console.print(f"first admin key, shown once: [bold]{key}[/]", highlight=False, soft_wrap=True)
    starter = None
    if label_studio and not context.settings.label_studio_url:
        starter = sibling("labeling_bridge.server").start
    programs.run(context, start_studio=starter, say=lambda text: console.print(text, highlight=False, soft_wrap=True))


@app.command
def demo(
    *,
    task: Literal["classify", "detect"] = "classify",
    data: Path | None = None,
    check: bool = False,
    sabotage: Literal["labels", "swap", "model"] | None = None,
    labeler: Literal["oracle", "human"] = "oracle",
    set: Annotated[list[str], Parameter(help="A training parameter, NAME=VALUE; may be repeated.")] = [],  # noqa: B006
    home: Path | None = None,
) -> None:
    """Watch the loop close on real data: drift, labels through Label Studio, retraining, gate, swap.

    Example: sutdol demo --check

    Parameters
    ----------
    task
        `classify`: handwritten digits. `detect`: objects in a Pascal VOC folder.
    data
        The folder for `detect`: Annotations/, JPEGImages/ and maybe ImageSets/.
    check
        End with 1 unless every promise was kept.
    sabotage
        Break something on purpose: wrong labels, a corrupted bundle, a training that learns nothing.
    labeler
        `human` leaves the tasks in Label Studio to you.
    """
    from sutdol.demo import run

    code = run(
        task=task,
        data=data,
        check=check,
        sabotage=sabotage,
        labeler=labeler,
        params=parse_params(set),
        home=home,
        console=console,
    )
    sys.exit(code)


@app.command
def serve(*, host: str | None = None, port: int | None = None, home: Home = None) -> None:
    """Answer predictions over HTTP.

    Example: sutdol serve --port 9000
    """
    images.assert_one_cv2()
    context = open_context(settings_of(home, host=host, port=port))
    routers = [sibling(name).build(context) for name in ROUTERS]
    sibling("serving.main").serve(context, routers, families=sibling("retrain.families").described)


@app.command
def work(
    *, queue: Annotated[list[str], Parameter(help="bridge, train or batch; may be repeated.")], home: Home = None
) -> None:
    """Do jobs: bridge (Label Studio), train, batch (imports, exports, evaluations, predictions of many images).

    Example: sutdol work --queue bridge --queue train
    """
    from sutdol.jobs import KINDS, worker

    images.assert_one_cv2()
    handlers: dict[str, Any] = {}
    for name in queue:
        if name not in HANDLERS:
            raise SetupError(f"queue {name!r}: expected one of {', '.join(HANDLERS)}")
        for module in HANDLERS[name]:
            known = sibling(module).HANDLERS
            handlers |= {kind: handler for kind, handler in known.items() if KINDS[kind].queue == name}
    worker.run(settings_of(home), queue, handlers)


@app.command
def clock(*, home: Home = None) -> None:
    """Send the periodic jobs; several may run, one leads.

    Example: sutdol clock
    """
    from sutdol.jobs import clock as program

    program.run(settings_of(home))


@app.command
def models(model: str | None = None, *, home: Home = None) -> None:
    """List models, or the versions of one.

    Example: sutdol models digits
    """
    from sutdol import report

    report.models(open_home(home), model, console)


@app.command
def promote(model: str, version: int, *, home: Home = None) -> None:
    """Put a version to work; replicas load it, check it and swap.

    Example: sutdol promote digits 3
    """
    from sutdol import registry
    from sutdol.predictor import Predictor

    context = open_home(home)
    candidate = Predictor.open(context.store, model, version)
    candidate.warm()
    candidate.check_golden()
    with context.database.begin() as session:
        registry.promote(session, model, version, who="command line", text=f"version {version} promoted by hand")
    console.print(f"{model}: version {version} is the champion")


@app.command
def rollback(model: str, *, home: Home = None) -> None:
    """Put the previous version back to work.

    Example: sutdol rollback digits
    """
    from sutdol import registry

    context = open_home(home)
    with context.database.begin() as session:
        decision = registry.rollback(session, model, who="command line", text="rolled back by hand")
    console.print(f"{model}: version {decision.candidate} is the champion again")


@app.command
def status(*, home: Home = None) -> None:
    """What runs, what serves, what waits for labels, what is being trained.

    Example: sutdol status
    """
    from sutdol import report

    report.status(open_home(home), console)


@app.command
def doctor(*, home: Home = None) -> None:
    """Check ports, disk, providers, Label Studio, broker; name the fix of what is wrong.

    Example: sutdol doctor
    """
    from sutdol import report

    more = sibling("labeling_bridge.doctor").CHECKS
    sys.exit(0 if report.doctor(settings_of(home), console, more) else 1)


@app.command
def settings(*, home: Home = None) -> None:
    """List every setting: its variable, the value in force, its default and what it means.

    Example: SUTDOL_PORT=9000 sutdol settings
    """
    from sutdol import report

    report.settings(settings_of(home), console)


@keys_app.command(name="create")
def keys_create(
    name: str,
    *,
    scope: Annotated[list[str], Parameter(help="predict, label or admin; may be repeated.")] = ["predict"],  # noqa: B006
    days: Annotated[float | None, Parameter(help="Days until it expires.")] = None,
    home: Home = None,
) -> None:
    """Make a key and show it, once.

    Example: sutdol keys create camera-7 --scope predict --days 365
    """
    from sutdol import keys
    from sutdol.tables import now

    with open_home(home).database.begin() as session:
        key = keys.create(session, name, scope, expires_at=now() + days * 86_400 if days else None)
    console.print(key, highlight=False, soft_wrap=True)


@keys_app.command(name="list")
def keys_list(*, home: Home = None) -> None:
    """List keys, without their secrets.

    Example: sutdol keys list
    """
    from sutdol import report

    report.keys(open_home(home), console)


@keys_app.command(name="revoke")
def keys_revoke(key_id: str, *, home: Home = None) -> None:
    """Revoke a key; servers follow within a second.

    Example: sutdol keys revoke 1a2b3c4d
    """
    from sutdol import keys

    with open_home(home).database.begin() as session:
        keys.revoke(session, key_id)
    console.print(f"key {key_id} is revoked")


cli_versions.add_to(app, open_home, console)
cli_learning.add_to(app, open_home, console)
cli_monitor.add_to(app)
cli_operations.add_to(app)
cli_batch.add_to(app, open_home, sibling, console)
cli_evaluate.add_to(app, open_home, sibling, console)
