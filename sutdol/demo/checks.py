"""Promises as rows: what was promised, what was measured, kept or broken."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Check:
    """One promise; `found` is the measured value in words."""

    promise: str
    found: str
    kept: bool


def at_least(promise: str, found: float, bound: float, *, percent: bool = False) -> Check:
    """`found` must reach `bound`; NaN never does."""
    return Check(promise, f"{found:.1%}" if percent else f"{found:g}", found >= bound)


def at_most(promise: str, found: float, bound: float, *, percent: bool = False) -> Check:
    """`found` must not exceed `bound`; NaN always does."""
    return Check(promise, f"{found:.1%}" if percent else f"{found:g}", found <= bound)


def show(checks: list[Check], console: Console) -> bool:
    """Print the table; True when every promise was kept."""
    table = Table(title="promises")
    for column in ("promise", "measured", ""):
        table.add_column(column)
    for check in checks:
        table.add_row(check.promise, check.found, "[green]kept[/]" if check.kept else "[red]BROKEN[/]")
    console.print(table)
    return all(check.kept for check in checks)
