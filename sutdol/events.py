"""What happened, told to people: one row per event, written in the transaction of what caused it."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from sutdol.tables import Event


def tell(session: Session, kind: str, text: str, *, model: str | None = None, **data: Any) -> None:
    """Add an event. `kind` is dotted and stable (`swap.done`, `job.abandoned`); `text` is for people; no secrets in `data`."""
    session.add(Event(kind=kind, text=text, model=model, data=data))
