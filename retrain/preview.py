"""The sheet that shows what an augmentation does: a row per image, as it is and then as the network will see it.

job `retrain.preview` {"model", "params", "images", "count"} -> spec.json of a few training images
    -> `python -m retrain.preview RUN_DIR SHEET COUNT` (torch stays out of the worker) -> JPEG in the store `previews/JOB.jpg`
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import sqlalchemy as sa
from sqlmodel import select

from retrain import datasets
from retrain.families import Item, Spec, get_family, write_atomically
from sutdol import registry
from sutdol.errors import DatasetError, TrainingError
from sutdol.images import Rgb
from sutdol.jobs import Running
from sutdol.settings import child_environment
from sutdol.tables import LabelRow

CELL, GAP = 192, 6
"""Pixels of one picture's side, and between two."""
IMAGES, COUNT = 4, 6
TIMEOUT_S = 300.0


class _Quiet:
    """Hooks of something that is over in seconds."""

    def step(self, **numbers: float) -> None: ...

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None: ...

    def check(self) -> None: ...


def handle(running: Running) -> dict[str, Any]:
    """The handler of `retrain.preview`; the result is {"key"} of a JPEG in the store."""
    context, payload = running.context, running.payload
    slug, count = str(payload["model"]), int(payload.get("count", COUNT))
    folder = (context.settings.home / "previews" / running.job_id).absolute()
    with context.database.read() as session:
        model = registry.get_model(session, slug)
        family = get_family(str(payload.get("family") or model.family))
        params = family.params(model.task, model.classes, model.params, payload.get("params") or {})  # type: ignore[arg-type]
        labelled = select(LabelRow).where(LabelRow.model == slug, LabelRow.split == "train")
        shown = session.exec(labelled.order_by(sa.func.random()).limit(int(payload.get("images", IMAGES)))).all()
    if not shown:
        raise DatasetError(f"{slug} has no labelled samples yet", hint="import a data set or answer label tasks")
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        items = []
        for row in shown:
            path = folder / "samples" / row.sample_id
            path.write_bytes(context.store.get(f"samples/{row.sample_id}"))
            items.append(Item(row.sample_id, "train", datasets.label_of(row), row.source, str(path)))
        name = str(payload.get("family") or model.family)
        spec = Spec(running.job_id, str(folder), name, model.task, list(model.classes), params, items, str(folder))  # type: ignore[arg-type]
        write_atomically(folder / "spec.json", msgspec.json.encode(spec))
        sheet = folder / "sheet.jpg"
        command = [sys.executable, "-m", "retrain.preview", str(folder), str(sheet), str(count)]
        environment = child_environment(context.settings, **family.environment(folder, params))
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            raise TrainingError(f"the preview failed: {done.stderr.strip().splitlines()[-1:]}")
        key = f"previews/{running.job_id}.jpg"
        context.store.put(key, sheet.read_bytes())
        return {"key": key, "images": len(items), "count": count}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compose(rows: list[list[Rgb]]) -> Rgb:
    """One picture of rows of pictures, each scaled into its cell."""
    height, width = len(rows) * (CELL + GAP), max(len(row) for row in rows) * (CELL + GAP)
    sheet = np.full((height, width, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, rgb in enumerate(row):
            scale = CELL / max(rgb.shape[:2])
            size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
            fitted = cv2.resize(np.ascontiguousarray(rgb), size, interpolation=cv2.INTER_AREA)
            top, left = y * (CELL + GAP), x * (CELL + GAP)
            sheet[top : top + size[1], left : left + size[0]] = fitted
    return sheet


def main(arguments: list[str]) -> int:
    """`python -m retrain.preview RUN_DIR SHEET COUNT`, see the top of this file."""
    run_dir, sheet, count = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    spec = msgspec.json.decode((run_dir / "spec.json").read_bytes(), type=Spec)
    rows = get_family(spec.family).load().examples(spec, _Quiet(), count)
    cv2.imwrite(str(sheet), np.ascontiguousarray(compose(rows)[:, :, ::-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
