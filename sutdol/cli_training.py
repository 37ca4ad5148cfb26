"""Commands about training: `sutdol train | runs | cancel | preview`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from sutdol import jobs
from sutdol import runs as training
from sutdol.errors import SetupError
from sutdol.tables import Job
from sutdol.terminal import Home, console, open_home, parse_params, sibling

CURVES = ("train/loss", "val/loss", "val/accuracy", "val/mAP50", "machine/images_per_s")
"""Columns of a run's last epochs, where it has them."""
SHOWN = 10


def train(
    model: str,
    *,
    set: Annotated[list[str], Parameter(help="A training parameter, NAME=VALUE; may be repeated.")] = [],  # noqa: B006
    candidate: Annotated[
        list[str], Parameter(help="One network to compare, NAME=VALUE,...; family=... names another; may be repeated.")
    ] = [],  # noqa: B006
    wait: Annotated[bool, Parameter(help="Do the work in this process and stay until it is done.")] = False,
    home: Home = None,
) -> None:
    """Start a training run; a `train` worker does it. Several candidates are trained side by side and the best is judged.

    Example: sutdol train digits --set epochs=20 --wait
    """
    from sutdol import registry
    from sutdol.jobs import worker

    context = open_home(home)
    with context.database.begin() as session:
        registry.get_model(session, model)
        run = sibling("retrain.train").start(
            session,
            model,
            cause="by hand",
            params=parse_params(set),
            candidates=[_candidate(c) for c in candidate] or None,
        )
    if run is None:
        raise SetupError(f"{model} is being trained already", hint="see `sutdol runs`")
    if not wait:
        console.print(f"run {run.id} is queued; see `sutdol runs {run.id[:13]}`", highlight=False)
        return
    worker.run_pending(context, {"train": sibling("retrain.jobs").HANDLERS["train"]})
    with context.database.read() as session:
        row = training.find(session, run.id)
        console.print(f"run {row.id}: {row.state}, version {row.version} {row.error or ''}", highlight=False)
        if row.state != "done":
            sys.exit(1)


def runs(run: str | None = None, *, model: str | None = None, home: Home = None) -> None:
    """Training runs, the newest first; or one of them, with its candidates compared and its last epochs.

    Example: sutdol runs 01a1fde7-6338
    """
    with open_home(home).database.read() as session:
        if run is not None:
            _show(training.detail(session, run))
            return
        table = _table("run", "model", "state", "epoch", "left", "version", "why", "hints and errors")
        for row in training.overview(session, model=model):
            left = f"{row['eta_s']:.0f} s" if row["eta_s"] else ""
            words = "; ".join([*(row["hints"] or []), *([row["error"]] if row["error"] else [])])
            done = f"{row['epoch']}/{row['epochs']}"
            table.add_row(
                row["id"][:13], row["model"], row["state"], done, left, str(row["version"] or ""), row["cause"], words
            )
        console.print(table)


def cancel(run: str, *, home: Home = None) -> None:
    """Stop a training run; its machine is free within seconds.

    Example: sutdol cancel 01a1fde7-6338
    """
    with open_home(home).database.begin() as session:
        found = training.cancel(session, run)
    console.print(f"run {found.id} is told to stop")


def preview(
    model: str,
    out: Path = Path("preview.jpg"),
    *,
    set: Annotated[list[str], Parameter(help="A training parameter, NAME=VALUE; may be repeated.")] = [],  # noqa: B006
    images: int = 4,
    count: int = 6,
    home: Home = None,
) -> None:
    """Look at augmented training images before training with them: a row per image, the first one as it is.

    Example: sutdol preview cells sheet.jpg --set hflip=0.5 --set rotate_deg=30
    """
    from sutdol.jobs import worker

    context = open_home(home)
    with context.database.begin() as session:
        payload = {"model": model, "params": parse_params(set), "images": images, "count": count}
        job_id = jobs.send(session, "retrain.preview", payload)
    worker.run_pending(context, {"retrain.preview": sibling("retrain.jobs").HANDLERS["retrain.preview"]})
    with context.database.read() as session:
        job = session.get_one(Job, job_id)
    if job.state != "done" or job.result is None:
        raise SetupError(f"no preview: {job.error}")
    out.write_bytes(context.store.get(job.result["key"]))
    console.print(f"{out}: {job.result['images']} images, {count} times each", highlight=False)


def _candidate(text: str) -> dict[str, Any]:
    params = parse_params(text.split(","))
    family = params.pop("family", None)
    return {"family": family, "params": params}


def _show(run: dict[str, Any]) -> None:
    for name in ("id", "model", "state", "cause", "version", "parent_version", "timings", "error"):
        if run[name] is not None:
            console.print(f"{name}: {run[name]}", highlight=False)
    for hint in run["hints"] or []:
        console.print(f"hint: {hint}", highlight=False)
    table = _table(
        "candidate", "family", "parameters", "state", "epoch", "score", "latency, ms", "size, MB", "training, s"
    )
    for one in run["candidates"]:
        metrics = one["metrics"] or {}
        table.add_row(
            str(one["number"]),
            one["family"],
            ", ".join(f"{k}={v}" for k, v in one["params"].items()),
            one["state"] + (f": {one['error']}" if one["error"] else ""),
            f"{one['epoch']}/{one['epochs']}",
            _number(metrics.get("accuracy", metrics.get("map50", one["score"])), 1, 4),
            _number(metrics.get("latency_ms_p50"), 1, 1),
            _number(metrics.get("size_bytes"), 1e-6, 2),
            _number(one["training_s"], 1, 1),
        )
    console.print(table)
    for one in run["candidates"]:
        known = [name for name in CURVES if any(name in point["metrics"] for point in one["curve"])]
        if known:
            table = _table("epoch", *known, title=f"candidate {one['number']}, last epochs")
            for point in one["curve"][-SHOWN:]:
                table.add_row(str(point["epoch"]), *(_number(point["metrics"].get(name), 1, 4) for name in known))
            console.print(table)


def _number(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(*columns, title=title)
    for column in table.columns:
        column.overflow = "fold"
    return table
