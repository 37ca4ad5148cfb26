"""Log entries written in the transaction of their chunk: the rows of the server's log, under the lease of the job.

The server's own writer groups what many requests wait for; a batch has its groups already, and its rows must become true
together with the chunk that they belong to. A label task that another arm made earlier becomes `drawn` while nobody has
queued it, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col

from serving.log import Entry
from sutdol.db import upsert
from sutdol.tables import LabelTask, Sample


def write_entries(session: Session, entries: Sequence[Entry]) -> None:
    """Append the entries' rows, samples and label tasks; images must be in the store already."""
    by_table: dict[type[SQLModel], list[dict[str, Any]]] = {}
    for entry in entries:
        for kind, values in entry.rows:
            by_table.setdefault(kind, []).append(values)
    for kind, rows in by_table.items():
        session.execute(sa.insert(kind), rows)
    for entry in entries:
        if entry.image is not None:
            image = entry.image
            sample = Sample(
                id=image.sample_id,
                width_px=image.width_px,
                height_px=image.height_px,
                media_type=image.media_type,
                size_bytes=len(image.data),
            )
            upsert(session, sample, keys=["id"], update=[])
        if entry.task is not None:
            _offer(session, entry.task)


def _offer(session: Session, task: LabelTask) -> None:
    upsert(session, task, keys=["model", "sample_id"], update=[])
    if task.arm == "drawn":
        mine = (col(LabelTask.model) == task.model, col(LabelTask.sample_id) == task.sample_id)
        open_ = (col(LabelTask.state) == "candidate", col(LabelTask.arm) != "drawn")
        session.execute(
            sa.update(LabelTask)
            .where(*mine, *open_)
            .values(
                arm="drawn",
                inclusion_probability=task.inclusion_probability,
                reason=task.reason,
                priority=task.priority,
            )
        )
