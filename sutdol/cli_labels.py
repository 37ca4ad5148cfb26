"""`sutdol labels ...`: what an operator does with labels by hand. Each command is one job of the bridge, done here and now."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from sutdol.terminal import Home, console, open_home, sibling

labels_app = App(
    name="labels",
    help="Labels: export, restore, review, adopt a project, retire a class, new image signatures.\n\n"
    "Example: sutdol labels review cells --suspicious",
)


@labels_app.command(name="export")
def labels_export(model: str | None = None, *, home: Home = None) -> None:
    """Write all annotations to the store now; the clock does it every night.

    Example: sutdol labels export digits
    """
    _bridge_job(home, "bridge.export", {"model": model} if model else {})


@labels_app.command(name="restore")
def labels_restore(model: str, *, key: str | None = None, home: Home = None) -> None:
    """Put back what the newest export has and the database or Label Studio lacks.

    Example: sutdol labels restore digits

    Parameters
    ----------
    key
        Another export than the newest, as `labels export` named it.
    """
    _bridge_job(home, "bridge.restore", {"model": model} | ({"key": key} if key else {}), then="bridge.push")


@labels_app.command(name="review")
def labels_review(model: str, *, suspicious: bool = False, limit: int | None = None, home: Home = None) -> None:
    """Send imported labels to Label Studio for a second look.

    Example: sutdol labels review cells --suspicious --limit 200

    Parameters
    ----------
    suspicious
        Only those that the champion contradicts, the surest first.
    """
    payload = {"model": model, "which": "suspicious" if suspicious else "all", "limit": limit}
    _bridge_job(home, "bridge.review", payload, then="bridge.push")


@labels_app.command(name="adopt")
def labels_adopt(
    model: str,
    project: int,
    *,
    task: Literal["classify", "multilabel", "detect"] | None = None,
    family: str | None = None,
    check: bool = False,
    home: Home = None,
) -> None:
    """Take over the images and annotations of a project that is in Label Studio already; it is only read.

    Example: sutdol labels adopt flowers 12 --task classify

    Parameters
    ----------
    task
        Makes the model when it is new.
    check
        Annotations are pre-annotations for a second look, not labels.
    """
    from sutdol import registry
    from sutdol.tables import Model

    context = open_home(home)
    with context.database.begin() as session:
        if task is not None and session.get(Model, model) is None:
            registry.create_model(session, model, task=task, classes=[], family=family or registry.DEFAULT_FAMILY[task])
    payload = {"model": model, "project_id": project, "trust": not check}
    _bridge_job(home, "bridge.adopt", payload, then="bridge.push" if check else None)


@labels_app.command(name="retire")
def labels_retire(model: str, name: str, *, home: Home = None) -> None:
    """Offer a class to labelers no more; its labels stay valid.

    Example: sutdol labels retire flowers weed
    """
    from sutdol import registry

    with open_home(home).database.begin() as session:
        retired = registry.retire_class(session, model, name)
    console.print(f"retired classes of {model}: {', '.join(retired)}", highlight=False)


@labels_app.command(name="rotate")
def labels_rotate(*, home: Home = None) -> None:
    """Give image addresses a new signing key; addresses that leaked stop working when all tasks have new ones.

    Example: sutdol labels rotate
    """
    _bridge_job(home, "bridge.rotate", {})


def _bridge_job(home: Path | None, kind: str, payload: dict[str, Any], *, then: str | None = None) -> None:
    """Do one job of the bridge here and now, then perhaps a second, and print what came of it."""
    from sutdol import jobs
    from sutdol.jobs import worker
    from sutdol.tables import Job

    context = open_home(home)
    handlers = sibling("labeling_bridge.jobs").HANDLERS
    with context.database.begin() as session:
        job_id = jobs.send(session, kind, payload)
    worker.run_pending(context, {name: handlers[name] for name in (kind, then) if name})
    with context.database.read() as session:
        job = session.get_one(Job, job_id)
    if job.state != "done":
        console.print(f"{job.state}: {job.error or 'a worker has it'}", highlight=False)
        sys.exit(1)
    for name, value in (job.result or {}).items():
        console.print(f"{name}: {value}", highlight=False)
