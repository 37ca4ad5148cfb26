"""Rows of the database become the columns that `drift` and `unlabelled` want: logged predictions, and a version's profile."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from sqlmodel import Session, col

from sutdol import registry
from sutdol.monitor import drift
from sutdol.monitor.answers import NOTHING, first_class
from sutdol.monitor.estimate import Float
from sutdol.tables import LabelRow, PredictionRow, VersionProfile
from sutdol.types import Label, Manifest


def of_prediction(task: str) -> list[Any]:
    """What is selected of a prediction for `batch_of`."""
    p = PredictionRow
    plain = [p.id, p.at, p.sample_id, p.confidence, p.margin, p.ood_score, p.brightness, p.sharpness, p.colour]
    boxes = sa.func.json_array_length(col(p.answer)["boxes"]) if task == "detect" else sa.null()
    return [*(col(c) for c in plain), first_class(task).label("said"), boxes.label("objects")]  # type: ignore[arg-type]


def batch_of(rows: list[Any], manifest: Manifest) -> drift.Batch:
    """Logged predictions, selected by `of_prediction`, in their order."""
    signals = {name: floats([getattr(r, name) for r in rows]) for name in drift.SIGNALS}
    limit = np.inf if manifest.unfamiliar_at is None else manifest.unfamiliar_at
    unfamiliar = np.nan_to_num(signals["ood_score"], nan=-np.inf) >= limit
    return drift.Batch(signals, [r.said or NOTHING for r in rows], unfamiliar)


def of_profile(profile: VersionProfile, manifest: Manifest) -> tuple[drift.Batch, Float, Float]:
    """(what the version saw of its test items, its beliefs, whether it was right)."""
    judged = profile.judged
    signals = {name: floats(judged[name]) for name in drift.SIGNALS}
    batch = drift.Batch(signals, judged["said"], np.array(judged["unfamiliar"], bool))
    return batch, floats(judged["belief"]), floats(judged["right"])


def manifest_of(session: Session, model: str, version: int) -> Manifest:
    """The manifest as it was registered."""
    return msgspec.convert(registry.get_version(session, model, version).manifest, Manifest)


def label_of(row: LabelRow) -> Label:
    return msgspec.convert(row.value, Label)


def floats(values: list[Any]) -> Float:
    """None becomes NaN."""
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)
