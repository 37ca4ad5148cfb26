"""What `sutdol accuracy` and `sutdol drift` print. Reads, never writes."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from sutdol.context import Context
from sutdol.monitor import report
from sutdol.monitor.report import Share


def accuracy(context: Context, model: str, days: int, console: Console) -> None:
    """One window of one model: overall, by version, by class, label-free, and what each arm brought."""
    with context.database.read() as session:
        found = report.accuracy(session, model, days=days)
    when = "never measured" if found.at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(found.at))
    table = Table(title=f"{model}: right answers in {days} days ({when})", title_justify="left")
    for name in ("", "accuracy", "95 % interval", "labels", "answers"):
        table.add_column(name, justify="left" if not name else "right")
    _add(table, "overall", found.overall)
    for version, share in sorted(found.versions.items(), key=lambda v: int(v[0])):
        _add(table, f"version {version}", share)
    for name, share in found.classes.items():
        _add(table, f"says {name}", share)
    console.print(table)
    drawn, left = found.drawn, found.left_out
    if drawn:
        console.print(
            f"drawn: {drawn['labelled']} labelled, {drawn['waiting']} waiting, {drawn['unlabelable']} nobody could label; "
            f"left out: {left['trained_on']} trained on, {left['near_duplicates']} near-duplicates"
        )
    free = found.label_free
    if free.hidden:
        console.print(f"without labels: hidden, {free.hidden}")
    else:
        console.print(f"without labels: ATC {free.atc or 0:.1%}, CBPE {free.cbpe or 0:.1%}")
    for arm, row in found.learning.get("arms", {}).items():
        interval = f"[{row['low']:.0f}, {row['high']:.0f}]"
        console.print(f"arm {arm}: {row['labels']} labels, {row['errors_per_100']:.0f} errors per 100 {interval}")
    for row in found.learning.get("promotions", []):
        labels = ", ".join(f"{n} {arm}" for arm, n in row["labels"].items()) or "no new labels"
        console.print(f"version {row['version']} over {row['over']}: {row['gain_points']:+.1f} points ({labels})")


def drift(context: Context, model: str, console: Console) -> None:
    """State, text, and how close each chart is to its alarm."""
    with context.database.read() as session:
        found = report.drift_of(session, model)
    since = "" if found.since is None else time.strftime(" since %Y-%m-%d %H:%M", time.localtime(found.since))
    colour = {"alarm": "red", "quiet": "green"}.get(found.state, "yellow")
    console.print(f"{model} version {found.version}: [{colour}]{found.state}[/]{since} {found.text}", highlight=False)
    console.print(f"{found.seen} images watched, {found.reference} of them say what is usual")
    for chart, level in found.levels.items():
        mark = "  ALARM, on its way back" if chart in found.alarms else ""
        console.print(f"  {chart:<14} {'#' * round(20 * level):<20} {level:.0%}{mark}", highlight=False)


def _add(table: Table, name: str, share: Share) -> None:
    if share.accuracy is None or share.low is None or share.high is None:
        table.add_row(name, "-", f"{share.needed} labels missing", str(share.labels), str(share.answers))
    else:
        interval = f"{share.low:.1%} - {share.high:.1%}"
        table.add_row(name, f"{share.accuracy:.1%}", interval, str(share.labels), str(share.answers))
