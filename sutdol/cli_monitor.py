"""Commands about the live model: accuracy and drift. Read what the job `monitor` has written."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from sutdol.terminal import Home, console, open_home


def add_to(app: App) -> None:
    """Register this file's commands."""
    app.command(accuracy)
    app.command(drift)


def accuracy(
    model: str,
    *,
    days: Annotated[int, Parameter(help="Window: 1, 7 or 30 days.")] = 7,
    home: Home = None,
) -> None:
    """How often the live model is right, from images drawn by chance; overall, by version, by class.

    Example: sutdol accuracy digits --days 7
    """
    from sutdol.monitor import show

    show.accuracy(open_home(home), model, days, console)


def drift(model: str, *, home: Home = None) -> None:
    """Whether the model's world has changed, and what gives it away.

    Example: sutdol drift digits
    """
    from sutdol.monitor import show

    show.drift(open_home(home), model, console)
