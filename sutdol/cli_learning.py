"""Commands about what to label and how sure to be: collect, prelabel, thresholds. Added to the command line by `add_to`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from sutdol.context import Context
from sutdol.errors import InputError
from sutdol.terminal import sibling
from sutdol.thresholds import Study

WHO = "command line"
Home = Annotated[Path | None, Parameter(name="--home", help="Folder of the installation, instead of SUTDOL_HOME.")]


def add_to(app: App, open_home: Callable[[Path | None], Context], console: Console) -> None:
    """Register this file's commands."""

    @app.command
    def prelabel(
        model: str,
        folder: Path | None = None,
        *,
        method: Literal["knn", "clip"] = "knn",
        encoder: str = "",
        query: Annotated[list[str], Parameter(help="CLASS=TEXT for `clip`; may be repeated.")] = [],  # noqa: B006
        error: float = 0.1,
        home: Home = None,
    ) -> None:
        """Begin without a model: queue a folder of unlabelled photos, and suggest labels as soon as that is proved.

        Example: sutdol prelabel digits ./photos --method clip --query "8=a handwritten eight"

        Parameters
        ----------
        folder
            Photos to be queued; left out, those that wait already get suggestions.
        encoder
            For `knn`, whose features are compared: digits@3; left out, the model's champion, or thumbnails without one.
        error
            Share of the suggestions shown that may be wrong, as measured on an audit sample drawn by chance.
        """
        context = open_home(home)
        zeroshot = sibling("retrain.zeroshot")
        if folder is not None:
            taken = zeroshot.pool(context, model, folder)
            for name, reason in taken.left_out[:50]:
                console.print(f"left out: {name}: {reason}", highlight=False, soft_wrap=True)
            console.print(f"{taken.added} photos wait for labels, {taken.audit} of them drawn by chance to measure by")
        queries: dict[str, list[str]] = {}
        for item in query:
            name, equals, text = item.partition("=")
            if not equals:
                raise InputError(f"--query {item!r}: expected CLASS=TEXT")
            queries.setdefault(name, []).append(text)
        with context.database.begin() as session:
            zeroshot.request(session, model, method=method, encoder=encoder, queries=queries, error=error)
        console.print("suggestions are being made; `sutdol status` and the events tell how many are shown")

    @app.command
    def thresholds(
        model: str,
        version: int | None = None,
        *,
        split: Literal["val", "test"] = "val",
        home: Home = None,
    ) -> None:
        """What accuracy costs in answers withheld: a sweep over temperature and confidence, and what a risk means.

        Example: sutdol thresholds digits 3 --split test

        Parameters
        ----------
        version
            Left out, the champion.
        split
            `val`: the study that was stored with the version. `test`: made now, by running the version on its test split.
        """
        from sutdol import registry, thresholds

        context = open_home(home)
        with context.database.read() as session:
            _, number = registry.resolve(session, model if version is None else f"{model}@{version}")
        if split == "test":
            study = sibling("retrain.studies").on_split(context, model, number, split)
        else:
            study = thresholds.read(context.store, model, number)
        show_study(study, f"{model} version {number}", console)

    @app.command
    def collect(
        model: str,
        truth: str | None = None,
        *,
        read_as: str | None = None,
        count: int = 50,
        close: str | None = None,
        home: Home = None,
    ) -> None:
        """Ask for more samples like one cell of the confusion matrix, or of one class; without a class, list what is open.

        Example: sutdol collect digits 8 --read-as 3 --count 50

        Parameters
        ----------
        truth
            The class that the samples really are.
        read_as
            What the model says instead; left out, any sample of the class will do.
        close
            Id of a collection to end.
        """
        from sutdol import focus

        context = open_home(home)
        with context.database.begin() as session:
            if close is not None:
                focus.end(session, model, close)
            if truth is not None:
                focus.collect(session, model, truth, read_as, wanted=count, who=WHO)
            rows = focus.open_collections(session, model)
            table = Table(title=f"{model}: open collections")
            for column in ("id", "samples", "collected", "wanted", "asked by"):
                table.add_column(column)
            for row, collected in rows:
                what = focus.describe(row.truth, row.taken_for)
                table.add_row(row.id, what, str(collected), str(row.wanted), row.who)
        console.print(table)


def show_study(study: Study, title: str, console: Console) -> None:
    """The sweep, one row per confidence, then what each risk costs."""
    table = Table(title=f"{title}: accuracy of what is answered / share withheld ({study.n} items of {study.split})")
    table.add_column("confidence", justify="right")
    for temperature, error in zip(study.temperatures, study.ece, strict=True):
        mark = " *" if abs(temperature - study.temperature) < 1e-3 else ""
        table.add_column(f"T {temperature:g}{mark}\nECE {error:.3f}", justify="right")
    for k, threshold in enumerate(study.thresholds):
        cells = []
        for accuracy, rejected in zip(study.accuracy, study.rejected, strict=True):
            value = accuracy[k]
            cells.append("-" if value is None else f"{value:.3f} / {rejected[k]:.0%}")
        table.add_row(f"{threshold:g}", *cells)
    console.print(table)
    console.print("* the temperature in force")
    for kept in study.accept_at:
        if kept.confidence is not None:
            words = f"from confidence {kept.confidence:.3f} on, {kept.answered:.0%} answered"
        elif kept.missing:
            words = f"cannot be shown: {kept.missing} more held-out labels are needed"
        else:
            words = "the model is too often wrong"
        console.print(f"max_risk {kept.risk:g}: {words}", highlight=False)
