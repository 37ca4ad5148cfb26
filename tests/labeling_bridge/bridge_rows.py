"""Rows and images for the bridge's tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from sutdol import images, registry
from sutdol.context import Context
from sutdol.tables import LabelTask, Sample

CLASSES = ["a", "b", "c"]


def add_model(context: Context, slug: str, task: str = "classify", classes: list[str] | None = None) -> None:
    with context.database.begin() as session:
        registry.create_model(session, slug, task=task, classes=classes or CLASSES, family="timm")  # type: ignore[arg-type]


def picture(seed: int, size_hw: tuple[int, int] = (24, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), np.uint8)


def add_sample(context: Context, rgb: np.ndarray) -> str:
    image = images.admit(images.encode_png(rgb))
    context.store.put(f"samples/{image.sample_id}", image.data)
    with context.database.begin() as session:
        if session.get(Sample, image.sample_id) is None:
            session.add(
                Sample(
                    id=image.sample_id,
                    width_px=image.width_px,
                    height_px=image.height_px,
                    media_type=image.media_type,
                    size_bytes=len(image.data),
                )
            )
    return image.sample_id


def add_task(context: Context, model: str, sample_id: str, **more: Any) -> str:
    values: dict[str, Any] = {
        "prediction_id": "p",
        "version": 1,
        "arm": "drawn",
        "reason": "drawn at random (1 in 4)",
        "priority": 0.5,
        "uncertainty": 0.5,
        "answer": {"classes": [{"label": "a", "index": 0, "confidence": 0.6}], "boxes": []},
    } | more
    if values["arm"] == "drawn":
        values.setdefault("inclusion_probability", 0.25)
    row = LabelTask(model=model, sample_id=sample_id, **values)
    with context.database.begin() as session:
        session.add(row)
    return row.id


def add_tasks(context: Context, model: str, n: int, *, first_seed: int = 0, **more: Any) -> list[str]:
    """Sample ids of `n` new tasks with distinct images."""
    found = []
    for i in range(n):
        sample_id = add_sample(context, picture(first_seed + i))
        add_task(context, model, sample_id, **({"priority": (i + 1) / (n + 1)} | more))
        found.append(sample_id)
    return found
