"""Generated photos with objects in Pascal VOC form: handwritten digits of three classes on a textured ground."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sutdol.demo import digits

SIDE_PX = 160
CLASSES = ("0", "1", "7")


def write_voc(folder: Path, *, photos: int, seed: int = 0) -> None:
    """A VOC folder with `photos` PNG files, two to four objects each, split 60 / 15 / 25 by ImageSets."""
    rng = np.random.default_rng(seed)
    sources = digits.load()
    choices = [i for i, label in enumerate(sources.labels) if label in CLASSES]
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in range(photos):
        stem = f"scene{number:04d}"
        image = cv2.GaussianBlur(rng.integers(20, 90, (SIDE_PX, SIDE_PX, 3)).astype(np.uint8), (5, 5), 2)
        objects = []
        cells = rng.permutation(4)[: rng.integers(2, 5)]
        for cell in cells:
            source = int(rng.choice(choices))
            size = int(rng.integers(44, 70))
            x = int(cell % 2) * 80 + int(rng.integers(0, 80 - size))
            y = int(cell // 2) * 80 + int(rng.integers(0, 80 - size))
            glyph = cv2.resize(sources.sources[source], (size, size))
            patch = image[y : y + size, x : x + size]
            image[y : y + size, x : x + size] = np.maximum(patch, glyph[:, :, None])
            rows, columns = np.where(glyph > 60)
            box = (x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1)
            objects.append((sources.labels[source], box))
        cv2.imwrite(str(folder / "JPEGImages" / f"{stem}.png"), image)
        (folder / "Annotations" / f"{stem}.xml").write_text(_xml(stem, objects))
        splits[
            ("train", "test", "train", "val", "train", "test", "train", "train", "test", "train")[number % 10]
        ].append(stem)
        if number % 20 == 13:
            splits["val"].append(splits["train"].pop(0))
    for part, stems in splits.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(sorted(stems)) + "\n")


def _xml(stem: str, objects: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    lines = ["<annotation>", f"<filename>{stem}.png</filename>"]
    lines += [f"<size><width>{SIDE_PX}</width><height>{SIDE_PX}</height><depth>3</depth></size>"]
    for label, (x1, y1, x2, y2) in objects:
        corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        lines.append(f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>"])
