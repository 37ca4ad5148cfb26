"""Gold tasks: samples whose answer is known, mixed among the others to measure the people who label.

    imported labels without a task -> `gold` rows (state `queued`), so many that they make `gold_share` of all tasks
    blind_by_chance(model, sample) -> whether a task goes out without pre-annotation, to measure how far people follow it

Both draws depend on the content alone, so a second attempt draws the same. A gold task looks like a `drawn` one to people; its
answers change no label (see `read`).
"""

from __future__ import annotations

import hashlib

from sqlalchemy import func
from sqlmodel import Session, col, select

from sutdol.tables import LabelRow, LabelTask, Sample, now

AT_ONCE = 20
"""Gold tasks added by one push; the share is reached over several."""
_REASON = "drawn at random"


def blind_by_chance(model: str, sample_id: str, share: float) -> bool:
    """Whether this task belongs to the blind share."""
    return _rank("blind", model, sample_id) < share


def top_up(session: Session, model: str, share: float) -> int:
    """Queue gold tasks until they are `share` of all tasks that people see or saw; how many were added.

    Only imported labels are known answers: nobody who is measured has given them. Without any, there is no gold.
    """
    if share <= 0:
        return 0
    seen = select(func.count()).where(LabelTask.model == model, col(LabelTask.state).not_in(("candidate", "withdrawn")))
    others = session.exec(seen.where(LabelTask.arm != "gold")).one()
    gold = session.exec(seen.where(LabelTask.arm == "gold")).one()
    wanted = min(int(share / (1 - share) * others) - gold, AT_ONCE)
    if wanted <= 0:
        return 0
    taken = select(LabelTask.sample_id).where(LabelTask.model == model)
    statement = (
        select(LabelRow)
        .join(Sample, col(Sample.id) == col(LabelRow.sample_id))
        .where(LabelRow.model == model, LabelRow.source == "imported", LabelRow.sample_id.not_in(taken))  # type: ignore[attr-defined]
        .limit(2000)
    )
    known = sorted(session.exec(statement), key=lambda row: _rank("gold", model, row.sample_id))[:wanted]
    for row in known:
        task = LabelTask(
            model=model,
            sample_id=row.sample_id,
            prediction_id="",
            version=0,
            arm="gold",
            reason=_REASON,
            priority=_rank("place", model, row.sample_id),
            uncertainty=0.5,
            answer={"classes": [], "boxes": []},
            truth=row.value,
            state="queued",
            queued_at=now(),
        )
        session.add(task)
    return len(known)


def _rank(salt: str, model: str, sample_id: str) -> float:
    """A number in [0, 1) that looks random and is always the same."""
    digest = hashlib.sha256(f"{salt}:{model}:{sample_id}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
