"""Commands about what to label and how sure to be: collect, thresholds. Added to the command line by `add_to`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from sutdol.context import Context

WHO = "command line"
Home = Annotated[Path | None, Parameter(name="--home", help="Folder of the installation, instead of SUTDOL_HOME.")]


def add_to(app: App, open_home: Callable[[Path | None], Context], console: Console) -> None:
    """Register this file's commands."""

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
