"""YOLO: a text file per photo, a line per box (class x y w h, centre and size in shares of the photo), and data.yaml.

Read in the layouts that exist: images/SPLIT/ with labels/SPLIT/, SPLIT/images/ with SPLIT/labels/ (Roboflow), images/ with
labels/. Class names come from data.yaml (`names`, a list or a mapping) or classes.txt. A photo with an empty text file, or
with none, is a photo of nothing: that is how ultralytics reads it, and the report says how many had none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import yaml

from retrain.formats.records import (
    PHOTOS,
    SPLIT_FOLDERS,
    Import,
    Photo,
    Record,
    by_stem,
    class_name,
    folders,
    leave_out_other_photos,
    need_folder,
    put,
    read_text,
)
from sutdol.errors import DatasetError
from sutdol.types import Box, Label, Split

MAX_YAML_BYTES = 1_000_000
MAX_TEXT_BYTES = 10_000_000
EDGE = 1e-3
"""A box may reach so far over the photo's edge by rounding, in shares of its side; more is a mistake."""


def yolo_parts(path: Path) -> list[tuple[Path, Path, Split | None]]:
    """(images, labels, split) of each part of a YOLO folder; empty when it is none."""
    top = {f.name.casefold(): f for f in folders(path)}
    if "images" in top and "labels" in top:
        inner = [f for f in folders(top["images"]) if f.name.casefold() in SPLIT_FOLDERS]
        if inner:
            return [(f, top["labels"] / f.name, SPLIT_FOLDERS[f.name.casefold()]) for f in inner]
        return [(top["images"], top["labels"], None)]
    parts: list[tuple[Path, Path, Split | None]] = []
    for name, folder in top.items():
        below = {f.name.casefold(): f for f in folders(folder)}
        if name in SPLIT_FOLDERS and "images" in below and "labels" in below:
            parts.append((below["images"], below["labels"], SPLIT_FOLDERS[name]))
    return parts


def read_yolo(path: Path, found: Import) -> Iterator[Record]:
    """See the top of this file.

    Raises:
        DatasetError: no class list, a line that is not five numbers, a class outside the list, a box outside the photo.
    """
    need_folder(path)
    parts = yolo_parts(path)
    if not parts:
        raise DatasetError(f"{path.name}: expected images/ beside labels/, found {_shown(path)}")
    classes = _classes(path)
    if len({split for _, _, split in parts}) != len(parts):
        raise DatasetError(
            f"{', '.join(i.relative_to(path).as_posix() for i, _, _ in parts)}: two folders for one split",
            hint="merge them into one",
        )
    found.expected = sum(f.suffix.lower() in PHOTOS for images, _, _ in parts for f in images.rglob("*"))
    photos_seen = without = 0
    for images, labels, split in parts:
        photos = by_stem(images, path, PHOTOS, deep=True)
        texts = by_stem(labels, path, {".txt"}, deep=True) if labels.is_dir() else {}
        leave_out_other_photos(images, path, found)
        for key, photo in photos.items():
            photos_seen += 1
            name, text = photo.relative_to(path).as_posix(), texts.pop(key, None)
            without += text is None
            boxes = _boxes(text, text.relative_to(path).as_posix(), classes, found) if text else []
            yield Record(name, Label(boxes=boxes), path=photo, split=split, unit="share")
        for text in texts.values():
            if text.stem.casefold() != "classes":
                found.leave_out(text.relative_to(path).as_posix(), 0, "no photo of this name")
    if without:
        found.notes.append(f"{without} photos have no text file; they are taken for photos of nothing")
    if not photos_seen:
        raise DatasetError(f"{path.name}: expected annotated photos, found none", hint="photos belong into images/")


def _classes(path: Path) -> list[str]:
    described = next((f for n in ("data.yaml", "data.yml", "dataset.yaml") if (f := path / n).is_file()), None)
    if described is not None:
        return _names(_yaml(described), described.name)
    listed = next((f for f in (path / "classes.txt", path / "labels" / "classes.txt") if f.is_file()), None)
    if listed is None:
        raise DatasetError(
            f"{path.name}: expected data.yaml or classes.txt with the names of the classes, found neither",
            hint="write classes.txt, one name a line, in the order of the numbers",
        )
    relative = listed.relative_to(path).as_posix()
    lines = read_text(listed, relative, at_most=MAX_YAML_BYTES).rstrip().splitlines()
    return _distinct([class_name(line, f"{relative}:{number}") for number, line in enumerate(lines, 1)], relative)


def _yaml(file: Path) -> object:
    """A safe load without anchors: a few hundred bytes of aliases can ask for gigabytes."""
    text = read_text(file, file.name, at_most=MAX_YAML_BYTES)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise DatasetError(
                    f"{file.name}:{event.start_mark.line + 1}: an alias (*) is not accepted", hint="write it out"
                )
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or type(error).__name__
        raise DatasetError(f"{file.name}:{line}: not readable as YAML: {problem}", hint="correct it") from error


def _names(described: object, file: str) -> list[str]:
    names = described.get("names") if isinstance(described, dict) else None
    if isinstance(names, dict):
        keys = sorted(names) if all(isinstance(k, int) for k in names) else []
        if keys != list(range(len(names))):
            raise DatasetError(f"{file}: expected names numbered 0 to {len(names) - 1}", hint="leave no number out")
        names = [names[k] for k in keys]
    if not isinstance(names, list) or not names:
        raise DatasetError(
            f"{file}: expected `names`, a list of classes, found {names!r:.80}", hint="names: [cat, dog]"
        )
    return _distinct([class_name(str(name), f"{file}: names[{i}]") for i, name in enumerate(names)], file)


def _distinct(names: list[str], file: str) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{file}: the class {twice!r} is there twice", hint="give every class its own name")
    return names


def _boxes(file: Path, relative: str, classes: list[str], found: Import) -> list[Box]:
    boxes = []
    for number, line in enumerate(read_text(file, relative, at_most=MAX_TEXT_BYTES).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{relative}:{number}"
        if len(words) != 5:
            what = "a polygon; this format holds boxes" if len(words) > 6 else repr(line[:60])
            raise DatasetError(
                f"{where}: expected 5 numbers (class x y w h), found {len(words)}: {what}",
                hint="export boxes, or correct the line",
            )
        index, numbers = _number(words[0], where), [_number(word, where) for word in words[1:]]
        if index != int(index) or not 0 <= index < len(classes):
            raise DatasetError(
                f"{where}: class {words[0]} is not in the list of {len(classes)} (0 to {len(classes) - 1})",
                hint="correct the number, or add the class to data.yaml",
            )
        x, y, w, h = numbers
        if w <= 0 or h <= 0:
            found.leave_out(relative, number, f"box of {classes[int(index)]!r} without area: {w:g} x {h:g}")
            continue
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        if min(corners) < -EDGE or max(corners) > 1 + EDGE:
            raise DatasetError(
                f"{where}: expected shares of the photo in [0, 1], found {line[:60]!r}",
                hint="divide pixels by the photo's width and height",
            )
        boxes.append(Box(classes[int(index)], *corners))
    return boxes


def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{where}: expected a number, found {word[:40]!r}", hint="correct or remove the line")
    return value


def _shown(path: Path) -> str:
    return ", ".join(f.name for f in folders(path)[:8]) or "no folders"


class YoloWriter:
    """images/SPLIT/, labels/SPLIT/ and data.yaml; numbers are written in full, so that pixels come back exactly."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._folder, self._classes = folder, list(classes)
        self._index = {name: number for number, name in enumerate(classes)}
        self._splits: set[str] = set()

    def add(self, photo: Photo) -> None:
        self._splits.add(photo.split)
        put(self._folder / "images" / photo.split / f"{photo.stem}{photo.suffix}", photo.read())
        width, height = photo.wh
        lines = []
        for box in photo.label.boxes:
            x, y = (box.x1 + box.x2) / 2 / width, (box.y1 + box.y2) / 2 / height
            lines.append(
                f"{self._index[box.label]} {x!r} {y!r} {(box.x2 - box.x1) / width!r} {(box.y2 - box.y1) / height!r}\n"
            )
        put(self._folder / "labels" / photo.split / f"{photo.stem}.txt", "".join(lines).encode())

    def close(self) -> None:
        names = "".join(f"  {i}: {msgspec.json.encode(name).decode()}\n" for i, name in enumerate(self._classes))
        places = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test") if split in self._splits)
        put(self._folder / "data.yaml", f"path: .\n{places}names:\n{names}".encode())
