"""Commands about data: `sutdol import`, and `sutdol dataset list | stats | diff | describe | export | freeze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.table import Table
from sqlmodel import col, select

from sutdol import dataset_versions, jobs, registry
from sutdol.errors import SetupError
from sutdol.tables import Dataset, DatasetVersion, Model
from sutdol.terminal import Home, console, open_home, sibling

dataset_app = App(
    name="dataset", help="Data sets: imports and frozen versions, what is in them, what changed, and out again."
)


def import_(
    model: str,
    path: Path,
    *,
    format: str | None = None,
    task: Literal["classify", "multilabel", "detect"] | None = None,
    family: str | None = None,
    group: str | None = None,
    ratios: str | None = None,
    resplit: bool = False,
    limit: Annotated[float | None, Parameter(name="--limit-train")] = None,
    name: str = "",
    tag: Annotated[list[str], Parameter(help="May be repeated.")] = [],  # noqa: B006
    memo: str = "",
    later: bool = False,
    home: Home = None,
) -> None:
    """Import a labelled data set (voc, coco, yolo, csv, imagefolder; a folder or a zip), all in or not in; makes the
    model when it is new.

    Example: sutdol import cells ./BCCD --task detect --format voc

    Parameters
    ----------
    group
        What stays in one split: folder, folder:N, column:NAME (csv) or name:REGEX with a part in (...).
    ratios
        Shares of train, val and test where the data set has no splits, as 0.7,0.1,0.2.
    resplit
        The data set's own splits do not count.
    limit
        So many training photos (a whole number), or that share of them (0.25).
    later
        Leave it to a worker: progress in `sutdol status`, goes on after a crash.
    """
    context = open_home(home)
    known = sibling("retrain.formats")
    found = format or (known.detect_format(path) if path.is_dir() else None)
    kind = task or (
        "classify" if found is None else known.FORMATS[found].tasks[0] if found in known.FORMATS else "classify"
    )
    plan: dict[str, Any] = {"group": group, "resplit": resplit, "name": name, "tags": tuple(tag), "memo": memo}
    if ratios:
        plan["ratios"] = _ratios(ratios)
    if limit is not None:
        plan["limit_train"] = int(limit) if limit >= 1 and limit == int(limit) else limit
    with context.database.begin() as session:
        new = session.get(Model, model) is None
        if new:
            chosen = family or registry.DEFAULT_FAMILY[kind]
            registry.create_model(session, model, task=kind, classes=[], family=chosen)
        if later:
            payload = {"model": model, "path": str(path.absolute()), "format": format, **plan}
            job_id = jobs.send(session, "retrain.import", payload)
    if later:
        console.print(f"job {job_id} is queued; see `sutdol status`", highlight=False)
        return
    try:
        dataset = sibling("retrain.datasets").import_folder(context, model, path, format=format, **plan)
    except BaseException:
        if new:  # all in or not in
            with context.database.begin() as session:
                session.delete(session.get_one(Model, model))
        raise
    _show_report(model, path, dataset.report)
    console.print(f"next: sutdol train {model}")


@dataset_app.command(name="list")
def list_(model: str, *, home: Home = None) -> None:
    """Imports and frozen versions of a model.

    Example: sutdol dataset list cells
    """
    with open_home(home).database.read() as session:
        registry.get_model(session, model)
        table = _table("import", "format", "name", "tags", "memo", "imported", "left out")
        for row in session.exec(select(Dataset).where(Dataset.model == model).order_by(col(Dataset.created_at))):
            counts = (str(row.report["imported"]), str(row.report["left_out_count"]))
            table.add_row(row.id[:13], row.format, row.name, ", ".join(row.tags), row.memo, *counts)
        console.print(table)
        table = _table("version", "name", "tags", "memo", "train", "val", "test", "digest")
        versions = select(DatasetVersion).where(DatasetVersion.model == model).order_by(col(DatasetVersion.number))
        for version in session.exec(versions):
            splits = [str(version.counts["splits"].get(s, 0)) for s in ("train", "val", "test")]
            words = (version.name, ", ".join(version.tags), version.memo)
            table.add_row(str(version.number), *words, *splits, version.digest[:12])
        console.print(table)


@dataset_app.command
def freeze(model: str, *, name: str | None = None, home: Home = None) -> None:
    """Freeze the labels of a model into a dataset version; the newest one again when nothing changed.

    Example: sutdol dataset freeze cells --name "before the new camera"
    """
    datasets = sibling("retrain.datasets")
    with open_home(home).database.begin() as session:
        version = datasets.freeze(session, model)
        if name is not None:
            dataset_versions.describe(version, name=name)
            session.add(version)
    console.print(f"{model}: dataset version {version.number}, digest {version.digest[:12]}", highlight=False)


@dataset_app.command
def describe(
    model: str,
    version: int,
    *,
    name: str | None = None,
    tag: Annotated[list[str] | None, Parameter(help="May be repeated; replaces those there are.")] = None,
    memo: str | None = None,
    home: Home = None,
) -> None:
    """Give a dataset version a name, tags and a memo.

    Example: sutdol dataset describe cells 3 --tag audited --memo "checked by two people"
    """
    with open_home(home).database.begin() as session:
        row = dataset_versions.get_version(session, model, version)
        dataset_versions.describe(row, name=name, tags=tag, memo=memo)
        session.add(row)
    console.print(f"{model}: dataset version {version} is described")


@dataset_app.command
def stats(model: str, version: int | None = None, *, home: Home = None) -> None:
    """Images, labels per class, imbalance and sizes of a dataset version, or of the newest one.

    Example: sutdol dataset stats cells 3
    """
    with open_home(home).database.read() as session:
        found = dataset_versions.statistics(session, dataset_versions.get_version(session, model, version))
    table = _table("class", "train", "val", "test")
    for name, counts in found.pop("classes").items():
        table.add_row(name, *(str(counts[s]) for s in ("train", "val", "test")))
    console.print(table)
    for name, value in found.items():
        console.print(f"{name}: {value}", highlight=False)


@dataset_app.command
def diff(model: str, old: int, new: int, *, home: Home = None) -> None:
    """What changed between two dataset versions.

    Example: sutdol dataset diff cells 2 3
    """
    with open_home(home).database.read() as session:
        versions = [dataset_versions.get_version(session, model, number) for number in (old, new)]
        found = dataset_versions.diff(session, *versions)
    for name, value in found.items():
        if not name.endswith("_samples"):
            console.print(f"{name}: {value}", highlight=False)


@dataset_app.command
def export(
    model: str,
    path: Path,
    *,
    format: str | None = None,
    version: int | None = None,
    home: Home = None,
) -> None:
    """Write a dataset version, or the newest one, into a new folder.

    Example: sutdol dataset export cells ./cells-yolo --format yolo
    """
    context, datasets = open_home(home), sibling("retrain.datasets")
    with context.database.read() as session:
        found = dataset_versions.get_version(session, model, version)
        task = registry.get_model(session, model).task
    formats = sibling("retrain.formats").FORMATS
    chosen = format or next(name for name, known in formats.items() if task in known.tasks)
    count = datasets.export(context, found, path, chosen)
    console.print(f"{count} photos of {model} version {found.number} in {path} ({chosen})", highlight=False)


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SetupError(f"--ratios {text!r}: expected three numbers, as 0.7,0.1,0.2") from None


def _show_report(model: str, path: Path, report: dict[str, Any]) -> None:
    left_out = report.get("left_out", [])
    table = Table(title=f"{model}: imported from {path}", show_header=False)
    for name, value in report.items():
        if name not in ("left_out", "merged"):
            table.add_row(name, str(value))
    console.print(table)
    for row in left_out[:50]:
        place = f"{row.get('file')}:{row['line']}" if row.get("line") else row.get("file")
        console.print(f"left out: {place}: {row.get('reason')}", highlight=False, soft_wrap=True)
    if len(left_out) > 50:
        console.print(f"and {len(left_out) - 50} more")


def _table(*columns: str) -> Table:
    table = Table(*columns)
    for column in table.columns:
        column.overflow = "fold"
    return table
