"""Small runs of the real training child, shared by the tests of retrain and the conformance suite."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from retrain.families import Item, Spec, get_family
from sutdol.images import admit, encode_png
from sutdol.types import Box, Label, Task

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ["red", "green"]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60)}
CASES: dict[str, tuple[str, Task]] = {
    "timm": ("timm", "classify"),
    "timm multilabel": ("timm", "multilabel"),
    "yolo": ("yolo", "detect"),
    "yolo classify": ("yolo", "classify"),
    "efficientdet": ("efficientdet", "detect"),
}
"""The smallest of each family, by the family's name, and its other tasks: name -> family and task."""
SMALL: dict[str, dict[str, Any]] = {
    "timm": {"batch": 4, "steps_per_epoch": 4},
    "timm multilabel": {"batch": 4, "steps_per_epoch": 4},
    "yolo": {"batch": 4, "image_size": 64},
    "yolo classify": {"batch": 4, "steps_per_epoch": 2, "image_size": 64},
    "efficientdet": {"batch": 2, "image_size": 128},
}


def images(folder: Path, task: Task, count: int = 8) -> list[Item]:
    """Coloured squares on grey, a third of them for val; detection scenes include one background."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for i in range(count):
        name = CLASSES[i % 2]
        rgb = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
        x, y = (int(v) for v in rng.integers(2, 30, 2))
        empty = task == "detect" and i == 0
        if not empty:
            cv2.rectangle(rgb, (x, y), (x + 28, y + 28), COLOURS[name], -1)
        image = admit(encode_png(rgb))
        (folder / image.sample_id).write_bytes(image.data)
        boxes = [] if empty else [Box(name, x, y, x + 29, y + 29)]
        label = Label(boxes=boxes) if task == "detect" else Label(classes=[name])
        items.append(
            Item(image.sample_id, "val" if i % 3 == 2 else "train", label, "imported", str(folder / image.sample_id))
        )
    return items


def prepare(
    folder: Path, family: str, *, classes: list[str] = CLASSES, warm_start: str | None = None, **params: Any
) -> Spec:
    """A run folder with its spec.json; `family` is a name of CASES."""
    case = family
    family, task = CASES[case]
    run_dir = folder / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    spec = Spec(
        run_id="test",
        run_dir=str(run_dir),
        family=family,
        task=task,
        classes=classes,
        params=get_family(family).params(task, classes, SMALL[case], params),
        items=images(folder / "images", task),
        locks_dir=str(folder / "locks"),
        warm_start=warm_start,
    )
    (run_dir / "spec.json").write_bytes(msgspec.json.encode(spec))
    return spec


def environment(family: str, run_dir: Path) -> dict[str, str]:
    return {**os.environ, **get_family(CASES.get(family, (family,))[0]).environment(run_dir, {})}


def popen(spec: Spec) -> subprocess.Popen[bytes]:
    """The child as the job starts it."""
    command = [sys.executable, "-m", "retrain.child", spec.run_dir, str(os.getpid())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(spec.family, Path(spec.run_dir)), cwd=ROOT)


def events(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What the child says, until it ends."""
    assert child.stdout is not None
    for line in child.stdout:
        yield msgspec.json.decode(line)


def finish(spec: Spec) -> tuple[int, list[dict[str, Any]]]:
    """Run the child to its end: status and all that it said."""
    with popen(spec) as child:
        said = list(events(child))
    return child.returncode, said
