"""How labeling goes: what people do with pre-annotations, how far they follow them, how often they agree, how right they are.

    annotations and tasks of a model -> report_of -> table `label_report` (job `bridge.quality`)
       -> GET /v1/models/{model}/labeling

Every share comes with its count and Wilson's 95 % interval, because the counts are small. Only the newest revision of an
annotation counts; copies that we restored do not. Anchoring is how much oftener people agree with the model when they see its
answer than when they do not (blind tasks), with Newcombe's interval: if zero lies outside, pre-annotations steer them.

Pure, but for the job.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median
from typing import Any

import msgspec
from sqlmodel import Session, select

from sutdol.agreement import same
from sutdol.db import upsert
from sutdol.jobs import Running
from sutdol.stats import wilson
from sutdol.tables import Annotation, LabelReport, LabelTask, now
from sutdol.types import Label

Pair = tuple[Annotation, LabelTask]


def quality(running: Running) -> dict[str, Any]:
    """Payload {"model"}: compute the report and store it."""
    model = running.payload["model"]
    with running.context.database.read() as session:
        pairs, open_conflicts = read_pairs(session, model)
    report = report_of(pairs) | {"open_conflicts": open_conflicts}
    with running.commit() as session:
        upsert(session, LabelReport(model=model, at=now(), report=report), keys=["model"], update=["at", "report"])
    return {"answers": report["answers"]}


def read_pairs(session: Session, model: str) -> tuple[list[Pair], int]:
    """(newest revision of each annotation with its task, tasks in conflict) of a model."""
    tasks = {t.id: t for t in session.exec(select(LabelTask).where(LabelTask.model == model))}
    newest: dict[tuple[int, int], Annotation] = {}
    statement = select(Annotation).join(LabelTask, LabelTask.id == Annotation.label_task_id)  # type: ignore[arg-type]
    for row in session.exec(statement.where(LabelTask.model == model).order_by(Annotation.updated_at)):
        newest[row.project_id, row.annotation_id] = row
    pairs = [(row, tasks[row.label_task_id]) for row in newest.values() if not row.restored]
    return pairs, sum(task.state == "conflict" for task in tasks.values())


def report_of(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The report of these annotations; shares are None where nothing was counted."""
    states = Counter(row.state for row, _ in pairs)
    valid = [(row, task) for row, task in pairs if row.state == "valid"]
    shown = [(row, task) for row, task in valid if not task.blind]
    blind = [(row, task) for row, task in valid if task.blind]
    people = sorted({row.annotator for row, _ in pairs if row.annotator is not None})
    return {
        "answers": len(valid),
        "skips": states["skipped"],
        "empty": states["empty"],
        "outside_classes": states["invalid"],
        "lead_time_s": {"shown": _middle(shown), "blind": _middle(blind)},
        "accepted": share(sum(_accepted(row) for row, _ in shown), len(shown)),
        "regions": dict(Counter(origin for row, _ in shown for origin in row.origins)),
        "anchoring": anchoring(shown, blind),
        "agreement": agreement(valid),
        "labelers": [_labeler(who, [p for p in pairs if p[0].annotator == who], valid) for who in people],
    }


def share(k: int, n: int) -> dict[str, Any]:
    """A share with its interval; None where n is 0.

    >>> share(0, 0)
    {'n': 0, 'k': 0, 'share': None, 'interval': [0.0, 1.0]}
    """
    return {"n": n, "k": k, "share": k / n if n else None, "interval": list(wilson(k, n))}


def anchoring(shown: Sequence[Pair], blind: Sequence[Pair]) -> dict[str, Any]:
    """How often people say what the model says, shown its answer and not, and the difference."""
    with_it = share(sum(agrees_with_model(*pair) for pair in shown), len(shown))
    without = share(sum(agrees_with_model(*pair) for pair in blind), len(blind))
    if with_it["share"] is None or without["share"] is None:
        return {"shown": with_it, "blind": without, "difference": None, "interval": [-1.0, 1.0]}
    p, (low_p, high_p) = with_it["share"], with_it["interval"]
    q, (low_q, high_q) = without["share"], without["interval"]
    low = p - q - math.hypot(p - low_p, high_q - q)
    high = p - q + math.hypot(high_p - p, q - low_q)
    return {"shown": with_it, "blind": without, "difference": p - q, "interval": [low, high]}


def agreement(valid: Iterable[Pair], *, of: int | None = None) -> dict[str, Any]:
    """Of all pairs of people who answered the same task, how many said the same (boxes: all pair up at IoU .5).

    Args:
        of: only pairs with this annotator.
    """
    by_task: dict[str, dict[int | None, Label]] = defaultdict(dict)
    for row, task in valid:
        by_task[task.id][row.annotator] = _label(row.value)
    k = n = 0
    for answers in by_task.values():
        for (one, a), (other, b) in combinations(answers.items(), 2):
            if of is None or of in (one, other):
                n, k = n + 1, k + same(a, b)
    return share(k, n)


def agrees_with_model(row: Annotation, task: LabelTask) -> bool:
    """Whether the person said what the model said; for classification its first choice, for boxes all of them."""
    said = _label(row.value)
    boxes, classes = task.answer.get("boxes", []), task.answer.get("classes", [])
    if said.classes:
        return set(said.classes) == {c["label"] for c in (classes if len(said.classes) > 1 else classes[:1])}
    return same(said, msgspec.convert({"boxes": boxes}, Label))


def _accepted(row: Annotation) -> bool:
    """Submitted as it was shown: every region untouched."""
    return bool(row.origins) and all(origin == "prediction" for origin in row.origins)


def _labeler(who: int, mine: list[Pair], valid: list[Pair]) -> dict[str, Any]:
    answers = [(row, task) for row, task in mine if row.state == "valid"]
    shown = [(row, task) for row, task in answers if not task.blind]
    gold = [(row, task) for row, task in answers if task.arm == "gold" and task.truth is not None]
    right = sum(same(_label(row.value), _label(task.truth)) for row, task in gold)
    return {
        "annotator": who,
        "answers": len(answers),
        "skips": sum(row.state == "skipped" for row, _ in mine),
        "lead_time_s": _middle(answers),
        "accepted": share(sum(_accepted(row) for row, _ in shown), len(shown)),
        "gold": share(right, len(gold)),
        "agreement": agreement(valid, of=who),
    }


def _label(value: dict[str, Any] | None) -> Label:
    return msgspec.convert(value or {}, Label)


def _middle(pairs: Iterable[Pair]) -> float | None:
    times = [row.lead_time_s for row, _ in pairs if row.lead_time_s is not None]
    return round(median(times), 3) if times else None
