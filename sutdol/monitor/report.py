"""What others read of the monitor: API, command line, metrics and console. Reads rows, computes nothing.

Errors: NotFoundError for an unknown model, InputError for a window that is not kept.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlmodel import Session, select

from sutdol import registry
from sutdol.errors import InputError
from sutdol.monitor import drift
from sutdol.monitor.accuracy import WINDOWS_DAYS, newest
from sutdol.tables import DriftState, Model


class Share(msgspec.Struct):
    """A share of right answers with its 95 % interval; the first three are null while `needed` labels are missing."""

    accuracy: float | None
    low: float | None
    high: float | None
    labels: int
    needed: int
    answers: int
    missing_width: float = 0.0
    """Part of the interval that comes from drawn images nobody could label."""
    worth: float | None = None
    """How many plain random labels would tell as much."""


class LabelFree(msgspec.Struct):
    """Estimates without labels (ATC, CBPE) of the champion; null, with the reason, whenever they cannot be trusted."""

    atc: float | None
    cbpe: float | None
    hidden: str | None


class Accuracy(msgspec.Struct):
    """How often the live model was right in the last `days`; `at` is when it was measured, null before the first time.

    `classes` is by the class that the answer named first, `versions` by the version that answered.
    """

    model: str
    days: int
    at: float | None
    overall: Share
    versions: dict[str, Share]
    classes: dict[str, Share]
    left_out: dict[str, int]
    """Answers on images that their version was trained on, or on near-duplicates of such."""
    drawn: dict[str, int]
    label_free: LabelFree
    learning: dict[str, Any]
    """Did active learning pay: errors found per 100 labels by arm, and the gain of every promotion."""


class Drift(msgspec.Struct):
    """Whether the world of the champion has changed. `state`: learning | quiet | alarm | unknown (nothing at work yet)."""

    model: str
    version: int | None
    state: str
    since: float | None
    text: str
    alarms: list[str]
    seen: int
    """Distinct images watched."""
    reference: int
    """Images that say what is usual; 0 while they are being collected."""
    levels: dict[str, float]
    """How close each chart is to its alarm (or, in alarm, to its end), in [0, 1]."""


class AutoLabels(msgspec.Struct):
    """The last attempt at labelling without people. `refused` says why none were made, `missing` how many labels too few.

    `coverage` is the share of drawn images that the rule would have labelled, `paused` a drift alarm or a version that is
    too new.
    """

    at: float | None = None
    target: float | None = None
    delta: float | None = None
    version: int | None = None
    labels: int = 0
    missing: int = 0
    labelled: int = 0
    coverage: float | None = None
    refused: str | None = None
    paused: bool = False
    threshold: float | None = None
    """Least sureness of the rule, in log-odds; see `guarantee.score_of`."""
    errors: int | None = None
    above: int | None = None
    """Of the drawn labels above the threshold, `errors` are wrong."""
    held: bool = False
    """People stopped it until they say otherwise."""


def auto_labels(session: Session, model: str) -> AutoLabels:
    """The newest report of job `retrain.autolabel`."""
    held = registry.get_model(session, model).auto_labels_held
    found = newest(session, model, "auto-labels")
    if found is None:
        return AutoLabels(refused="nobody has asked yet", held=held)
    return msgspec.convert(found.data | {"at": found.at, "held": held}, AutoLabels)


def accuracy(session: Session, model: str, *, days: int = 7) -> Accuracy:
    """The newest snapshot of one window."""
    registry.get_model(session, model)
    if days not in WINDOWS_DAYS:
        raise InputError(f"days: expected one of {', '.join(map(str, WINDOWS_DAYS))}, found {days}")
    found, paid = newest(session, model, "accuracy"), newest(session, model, "labels")
    if found is None:
        from sutdol.monitor.estimate import ENOUGH

        nothing = Share(None, None, None, 0, ENOUGH, 0)
        hidden = LabelFree(None, None, "nothing has been measured yet")
        return Accuracy(model, days, None, nothing, {}, {}, {}, {}, hidden, {})
    window = found.data["windows"][str(days)]
    return Accuracy(
        model,
        days,
        found.at,
        msgspec.convert(window["overall"], Share),
        msgspec.convert(window["versions"], dict[str, Share]),
        msgspec.convert(window["classes"], dict[str, Share]),
        window["left_out"],
        window["drawn"],
        msgspec.convert(found.data["unlabelled"], LabelFree),
        paid.data if paid is not None else {},
    )


def drift_of(session: Session, model: str) -> Drift:
    """Where the model's charts stand."""
    registry.get_model(session, model)
    row = session.get(DriftState, model)
    if row is None:
        return Drift(model, None, "unknown", None, "no version has been watched yet", [], 0, 0, {})
    state = msgspec.convert(row.charts, drift.State)
    size = int(row.reference["size"]) if row.reference else 0
    word = "alarm" if row.alarm else "quiet" if row.reference else "learning"
    collected = len((row.learning or {}).get("said", ()))
    text = row.alarm_text or ("" if row.reference else f"{collected} of {drift.MIN_LEARN} images collected")
    return Drift(model, row.version, word, row.alarm_since, text, state.alarms, state.seen, size, levels(state, size))


def levels(state: drift.State, reference_size: int) -> dict[str, float]:
    """How far each chart has gone towards its limit, in [0, 1]."""
    names = [n for n in state.charts if n not in (drift.UNFAMILIAR, drift.CLASSES)]
    limit = drift.chart_limit(len(names)) if names and reference_size else 1.0
    found = {name: state.charts[name].sum / limit for name in names}
    if drift.UNFAMILIAR in state.charts:
        found[drift.UNFAMILIAR] = state.charts[drift.UNFAMILIAR].sum / drift.UNFAMILIAR_LIMIT
    return {name: round(min(value, 1.0), 3) for name, value in sorted(found.items())}


def everything(session: Session) -> list[tuple[Accuracy, Drift]]:
    """Of every model, for the gauges."""
    slugs = list(session.exec(select(Model.slug)))
    return [(accuracy(session, slug), drift_of(session, slug)) for slug in slugs]
