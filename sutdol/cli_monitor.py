"""Commands about the live model and its labels: accuracy, drift, labels without people, second looks."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import App, Parameter

from sutdol.terminal import Home, console, open_home, sibling


def add_to(app: App) -> None:
    """Register this file's commands."""
    app.command(accuracy)
    app.command(drift)
    app.command(auto_label, name="auto-label")
    app.command(second_look, name="second-look")


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


def auto_label(
    model: str,
    *,
    error: Annotated[float, Parameter(help="Share of them that may be wrong.")],
    limit: int = 500,
    wait: Annotated[bool, Parameter(help="Do the work in this process and stay until it is done.")] = False,
    home: Home = None,
) -> None:
    """Label sure images without people, if drawn labels prove the error; otherwise say how many are missing.

    Example: sutdol auto-label digits --error 0.02 --wait
    """
    from sutdol.jobs import worker
    from sutdol.monitor import guarantee, report

    context = open_home(home)
    with context.database.begin() as session:
        guarantee.request(session, model, target=error, limit=limit)
    if not wait:
        console.print(f"queued; GET /v1/models/{model}/auto-labels says what came of it", highlight=False)
        return
    worker.run_pending(context, {"retrain.autolabel": sibling("retrain.autolabel").handle})
    with context.database.read() as session:
        found = report.auto_labels(session, model)
    if found.refused:
        console.print(f"refused: {found.refused}", highlight=False)
        sys.exit(1)
    console.print(f"{found.labelled} auto-labels by version {found.version}, error below {error:.1%}", highlight=False)


def second_look(model: str, *, limit: int = 20, home: Home = None) -> None:
    """Ask people again about the labels that are most probably wrong; none is changed without them.

    Example: sutdol second-look digits --limit 50
    """
    from sutdol import jobs, registry

    with open_home(home).database.begin() as session:
        registry.get_model(session, model)
        payload = {"model": model, "limit": limit}
        jobs.send(session, "retrain.labelquality", payload, unique_key=f"retrain.labelquality:{model}")
    console.print(f"queued; the event labels.suspect of {model} says what came of it", highlight=False)
