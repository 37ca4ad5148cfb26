"""Commands about many images: predict. Added to the command line by `add_to`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from sutdol.context import Context
from sutdol.errors import InputError, SetupError
from sutdol.terminal import Home


def add_to(
    app: App, open_home: Callable[[Path | None], Context], sibling: Callable[[str], Any], console: Console
) -> None:
    """Register this file's commands."""

    @app.command
    def predict(
        model: str = "",
        source: Path | None = None,
        *,
        out: Annotated[Path | None, Parameter(help="File for the results; its ending says the format.")] = None,
        format: Literal["jsonl", "csv", "coco", "zip"] | None = None,
        every: Annotated[float | None, Parameter(help="Of a video: seconds between two frames.")] = None,
        scene: Annotated[
            float | None, Parameter(help="Of a video: frames where the scene changes by this much.")
        ] = None,
        log: Annotated[bool, Parameter(help="Log every answer and let the arms pick.")] = False,
        pictures: Annotated[bool, Parameter(help="Keep a copy of each image with its answer drawn in.")] = False,
        resume: Annotated[str | None, Parameter(help="Go on with a batch that was cut off, by its id.")] = None,
        queue: Annotated[bool, Parameter(help="Leave the work to a `batch` worker.")] = False,
        home: Home = None,
    ) -> None:
        """Predict a folder, zip, list of paths or video; goes on where it was cut off.

        Example: sutdol predict digits ./photos --out results.csv
        """
        from sutdol.jobs import worker
        from sutdol.tables import Job

        context = open_home(home)
        batch = sibling("serving.batch.runs")
        sources, results, work = (sibling(f"serving.batch.{name}") for name in ("sources", "results", "work"))
        if (source is None or not model) and resume is None:
            raise InputError("expected a model and a source, or --resume ID", hint="sutdol predict digits ./photos")
        with context.database.begin() as session:
            if resume is not None:
                run = batch.get(session, resume)
                job = session.get(Job, run.job_id)
                if job is None or job.state in ("cancelled", "failed"):
                    run = batch.resume(session, resume)
            else:
                assert source is not None
                order = batch.Order(model, every, scene, log, pictures or (format or "") == "zip")
                run = batch.start(session, order, batch.source_of(source, sources.kind_of(source)), who="command line")
        console.print(f"batch {run.id}", highlight=False)
        if queue:
            return
        worker.run_pending(context, {batch.KIND: work.handle})
        with context.database.read() as session:
            run, state = batch.get(session, run.id), batch.state(session, batch.get(session, run.id))
            classes = sibling("sutdol.registry").get_model(session, run.model).classes
        if state.state != "done":
            raise SetupError(
                f"the batch is {state.state} after {run.done} images: {state.error or ''}",
                hint=f"sutdol predict --resume {run.id}",
            )
        kind = format or {".csv": "csv", ".json": "coco", ".zip": "zip"}.get(out.suffix if out else "", "jsonl")
        target = out or Path(f"batch-{run.id[:13]}.{'json' if kind == 'coco' else kind}")
        with target.open("wb") as file:
            for part in results.FORMATS[kind][1](context.store, run, classes):
                file.write(part)
        told = f", {run.failed} could not be read" if run.failed else ""
        console.print(f"{run.done} images{told}; {target}", highlight=False, soft_wrap=True)
