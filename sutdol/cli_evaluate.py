"""Commands that judge, copy and carry away: evaluate, compress, export. Added to the command line by `add_to`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter
from rich.console import Console

from sutdol.context import Context
from sutdol.errors import SetupError
from sutdol.terminal import Home


def add_to(
    app: App, open_home: Callable[[Path | None], Context], sibling: Callable[[str], Any], console: Console
) -> None:
    """Register this file's commands."""

    @app.command
    def evaluate(
        reference: str,
        *,
        against: Annotated[int | None, Parameter(help="Another version, judged on the same images.")] = None,
        split: Literal["test", "val", "train"] = "test",
        out: Annotated[Path, Parameter(help="Folder for report.html, report.json and report.zip.")] = Path("."),
        home: Home = None,
    ) -> None:
        """Judge a version on labelled images and write the report.

        Example: sutdol evaluate digits@3 --against 2 --out ./report
        """
        from sutdol import registry

        context, evaluations = open_home(home), sibling("retrain.evaluations")
        with context.database.begin() as session:
            model, version = registry.resolve(session, reference)
            job_id = evaluations.start(session, model, version, against=against, split=split)
        _done(context, "retrain.evaluate", evaluations.handle, job_id)
        out.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "report.html", "report.zip"):
            (out / name).write_bytes(context.store.get(f"evaluations/{job_id}/{name}"))
        found = msgspec.json.decode((out / "report.json").read_bytes())["analysis"]
        for name, number in found["headline"].items():
            if number["value"] is not None:
                low, high = number.get("interval") or (None, None)
                told = f"  [{low:.3f}, {high:.3f}]" if low is not None else ""
                console.print(f"{name:10} {number['value']:.3f}{told}", highlight=False, markup=False)
        console.print(f"{found['n']} items; {out / 'report.html'}", highlight=False, soft_wrap=True)

    @app.command
    def compress(
        model: str,
        how: Literal["int8", "fp16", "prune"] = "int8",
        *,
        speed_up: Annotated[float, Parameter(help="How many times as fast the copy must be.")] = 1.1,
        home: Home = None,
    ) -> None:
        """Make a faster copy of the champion, measure it beside it, and let the gate decide.

        Example: sutdol compress cells int8 --speed-up 1.3
        """
        from sqlmodel import col, select

        from sutdol.tables import Decision

        context, module = open_home(home), sibling("retrain.compress")
        with context.database.begin() as session:
            job_id = module.start(session, model, how, min_speed_up=speed_up)
        _done(context, "retrain.compress", module.handle, job_id)
        with context.database.read() as session:
            decisions = select(Decision).where(Decision.model == model, Decision.kind == "gate")
            decision = session.exec(decisions.order_by(col(Decision.at).desc())).first()
        console.print(decision.text if decision else "", highlight=False, markup=False, soft_wrap=True)

    @app.command
    def export(
        reference: str,
        format: Literal["onnx", "openvino", "tensorflow", "torchscript"] = "onnx",
        *,
        out: Annotated[Path | None, Parameter(help="File to write; else NAME-vN-FORMAT.zip.")] = None,
        home: Home = None,
    ) -> None:
        """Carry a version away in a form that other programs take.

        Example: sutdol export digits@champion openvino
        """
        from sutdol import registry

        context, module = open_home(home), sibling("retrain.convert")
        with context.database.begin() as session:
            model, version = registry.resolve(session, reference)
            job_id = module.start(session, model, version, format)
        _done(context, "retrain.convert", module.handle, job_id)
        target = out or Path(f"{model}-v{version}-{format}.zip")
        target.write_bytes(context.store.get(f"exports/{model}/{version}/{format}.zip"))
        console.print(f"{target}", highlight=False, soft_wrap=True)


def _done(context: Context, kind: str, handler: Any, job_id: str) -> None:
    """Do the work here; a SetupError when it did not end well."""
    from sutdol.jobs import worker
    from sutdol.tables import Job

    worker.run_pending(context, {kind: handler})
    with context.database.read() as session:
        job = session.get_one(Job, job_id)
    if job.state != "done":
        raise SetupError(f"{kind} is {job.state}: {job.error}")
