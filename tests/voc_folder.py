"""Small Pascal VOC folders for tests: real XML, real photos of a few hundred bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

Corners = tuple[str, object, object, object, object]


def photo(seed: int = 0, *, width: int = 40, height: int = 30) -> bytes:
    """A PNG of smooth noise, different for every seed."""
    rng = np.random.default_rng(seed)
    pixels = cv2.resize(rng.integers(0, 255, (4, 5, 3), np.uint8), (width, height))
    return cv2.imencode(".png", pixels)[1].tobytes()


def turned_photo() -> bytes:
    """A JPEG stored as 40 x 30 pixels whose EXIF says: turn it, it is 30 x 40."""
    pixels = np.random.default_rng(1).integers(0, 255, (30, 40, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def annotation(boxes: Sequence[Corners], *, width: object = 40, height: object = 30) -> str:
    """The XML as LabelImg writes it, one tag a line; the corners of the first box begin on line 10."""
    objects = "".join(
        f"<object>\n<name>{name}</name>\n<bndbox>\n<xmin>{x1}</xmin>\n<ymin>{y1}</ymin>\n<xmax>{x2}</xmax>\n"
        f"<ymax>{y2}</ymax>\n</bndbox>\n</object>\n"
        for name, x1, y1, x2, y2 in boxes
    )
    size = f"<size>\n<width>{width}</width>\n<height>{height}</height>\n<depth>3</depth>\n</size>\n"
    return f"<annotation>\n<filename>x.png</filename>\n{size}{objects}</annotation>\n"


def write_voc(
    folder: Path,
    photos: dict[str, Sequence[Corners]],
    *,
    splits: dict[str, Sequence[str]] | None = None,
) -> Path:
    """Annotations/NAME.xml, JPEGImages/NAME.png for every name, and ImageSets/Main/SPLIT.txt."""
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (name, boxes) in enumerate(photos.items()):
        (folder / "JPEGImages" / f"{name}.png").write_bytes(photo(number))
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(boxes), encoding="utf-8")
    for split, stems in (splits or {}).items():
        main = folder / "ImageSets" / "Main"
        main.mkdir(parents=True, exist_ok=True)
        (main / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    return folder
