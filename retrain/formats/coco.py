"""COCO: a JSON file of images, annotations (bbox = x, y, width, height in pixels) and categories for each split.

Read in the three layouts that exist: annotations/instances_SPLIT.json with images/ or SPLIT/ beside it; Roboflow's
SPLIT/_annotations.coco.json with its photos in the same folder; one JSON file with photos below it. The whole file is held
in memory while it is read: that is what JSON is like; all other formats are read photo by photo.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from retrain.formats.records import (
    PHOTOS,
    PIXEL_DIGITS,
    SPLIT_FOLDERS,
    Import,
    Photo,
    Record,
    class_name,
    clip_boxes,
    hidden,
    inside,
    need_folder,
    put,
    read_file,
)
from sutdol.errors import DatasetError
from sutdol.types import Box, Label, Split

MAX_JSON_BYTES = 2_000_000_000


class _Category(msgspec.Struct):
    id: int
    name: str


class _Image(msgspec.Struct):
    id: int
    file_name: str
    width: int = 0
    height: int = 0


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: list[float]
    id: int | None = None
    iscrowd: int = 0


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[msgspec.Raw]
    categories: list[_Category]


def coco_files(path: Path) -> list[tuple[Path, Split | None]]:
    """The annotation files of a COCO folder with their splits; empty when it is none."""
    found: list[tuple[Path, Split | None]] = []
    for file in sorted(f for f in path.rglob("*.json") if len(f.relative_to(path).parts) <= 2 and not hidden(f, path)):
        where = file.parent.name.casefold()
        if file.parent != path and where != "annotations" and not file.name.endswith(".coco.json"):
            continue
        words = file.stem.casefold().replace(".", "_").replace("-", "_").split("_")
        split = next(
            (SPLIT_FOLDERS[w.rstrip("0123456789")] for w in words if w.rstrip("0123456789") in SPLIT_FOLDERS), None
        )
        if file.parent != path and split is None:
            split = SPLIT_FOLDERS.get(where)
        found.append((file, split))
    return found


def read_coco(path: Path, found: Import) -> Iterator[Record]:
    """See the top of this file.

    Raises:
        DatasetError: JSON that cannot be read, an image or category that is not in the lists, a box that is no box, one
            photo in two splits.
    """
    need_folder(path)
    files = coco_files(path)
    if not files:
        raise DatasetError(f"{path.name}: expected a COCO file (annotations/*.json), found none")
    where: dict[str, str] = {}
    annotated: set[Path] = set()
    for file, split in files:
        relative = file.relative_to(path).as_posix()
        data = read_file(file, relative, at_most=MAX_JSON_BYTES)
        content = _parse(data, relative)
        found.expected += len(content.images)
        names = _categories(content, relative)
        by_image = _annotations(content, data, relative, names, found)
        for image in content.images:
            photo = _photo(path, file, image, split, relative)
            if photo is None:
                found.leave_out(relative, 0, f"no photo {image.file_name!r} (image {image.id}) here")
                continue
            key = str(photo.resolve())
            if key in where:
                raise DatasetError(
                    f"{relative}: {image.file_name!r} stands in {where[key]} too, expected it once",
                    hint="remove one of the two",
                )
            where[key] = relative
            annotated.add(photo)
            declared = (image.width, image.height) if image.width >= 1 and image.height >= 1 else None
            name = photo.relative_to(path).as_posix()
            boxes = by_image.pop(image.id, [])
            kept = clip_boxes(boxes, declared, relative, found) if declared else [box for box, _ in boxes]
            yield Record(name, Label(boxes=kept), path=photo, split=split, declared_wh=declared)
    for other in sorted(f for f in path.rglob("*") if f.suffix.lower() in PHOTOS and f not in annotated):
        found.leave_out(other.relative_to(path).as_posix(), 0, "in no annotation file")
    if not where:
        raise DatasetError(
            f"{path.name}: expected annotated photos, found none", hint="file_name must lead to the photo"
        )


def _parse(data: bytes, relative: str) -> _File:
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, RecursionError) as error:
        at = str(error)
        line = 1 + data.count(b"\n") if "truncated" in at else 1
        if "byte " in at:  # "JSON is malformed: ... (byte 123)"
            line += data.count(b"\n", 0, int(at.rsplit("byte ", 1)[1].rstrip(")")))
        raise DatasetError(f"{relative}:{line}: not readable as COCO: {at}", hint="correct or remove it") from error


def _categories(content: _File, relative: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in content.categories:
        name = class_name(category.name, f"{relative}: category {category.id}")
        if category.id in names or name in names.values():
            raise DatasetError(
                f"{relative}: category {category.id} {name!r} is there twice", hint="give each class one id"
            )
        names[category.id] = name
    return names


def _annotations(
    content: _File, data: bytes, relative: str, names: dict[int, str], found: Import
) -> dict[int, list[tuple[Box, int]]]:
    images = {image.id for image in content.images}
    if len(images) != len(content.images):
        raise DatasetError(f"{relative}: two images have one id", hint="number the images anew")
    boxes: dict[int, list[tuple[Box, int]]] = {}
    for number, raw in enumerate(content.annotations):

        def wrong(text: str, hint: str, raw: msgspec.Raw = raw, number: int = number) -> DatasetError:
            line = data.count(b"\n", 0, max(data.find(bytes(raw)), 0)) + 1
            return DatasetError(f"{relative}:{line}: annotations[{number}]: {text}", hint=hint)

        try:
            one = msgspec.json.decode(raw, type=_Annotation)
        except msgspec.MsgspecError as error:
            raise wrong(f"{error}", "an annotation needs image_id, category_id and bbox") from error
        if one.category_id not in names:
            known = ", ".join(f"{k} {v}" for k, v in list(names.items())[:10])
            raise wrong(
                f"category {one.category_id} is not in the list (known: {known})", "add it, or correct the number"
            )
        if one.image_id not in images:
            raise wrong(f"image {one.image_id} is not in the list", "add the image, or remove the annotation")
        if len(one.bbox) != 4 or not all(math.isfinite(v) for v in one.bbox):
            raise wrong(f"expected bbox of x, y, width, height, found {one.bbox}", "correct the numbers")
        name, (x, y, width, height) = names[one.category_id], one.bbox
        line = number + 1
        if one.iscrowd:
            found.leave_out(relative, 0, f"annotations[{number}]: a crowd of {name!r} has no single box")
        elif width <= 0 or height <= 0:
            found.leave_out(relative, 0, f"annotations[{number}]: box of {name!r} without area: {width:g} x {height:g}")
        else:
            x2, y2 = (round(v, PIXEL_DIGITS) for v in (x + width, y + height))
            boxes.setdefault(one.image_id, []).append((Box(name, x, y, x2, y2), line))
    return boxes


def _photo(path: Path, file: Path, image: _Image, split: Split | None, relative: str) -> Path | None:
    """Where the photo of an entry is: beside the JSON file, or in one of the folders that people keep them in."""
    places = [file.parent, path, path / "images"]
    if split is not None:
        places += [place / name for place in (path, path / "images") for name, s in SPLIT_FOLDERS.items() if s == split]
        places += [path / f"{file.stem.split('_')[-1]}"]
    for place in places:
        if place.is_dir():
            candidate = inside(path, f"{place.relative_to(path).as_posix()}/{image.file_name}", relative)
            if candidate.is_file():
                return candidate
    return None


class CocoWriter:
    """annotations/instances_SPLIT.json and images/SPLIT/; entries go to disk as they come."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._folder = folder
        self._ids = {name: number for number, name in enumerate(classes, 1)}
        self._open: dict[Split, tuple[Any, Any]] = {}
        self._images = self._annotations = 0

    def add(self, photo: Photo) -> None:
        if photo.split not in self._open:
            place = self._folder / "annotations"
            place.mkdir(exist_ok=True)
            self._open[photo.split] = tuple(  # type: ignore[assignment]
                (place / f".{part}.{photo.split}").open("w+b") for part in ("images", "annotations")
            )
        images, annotations = self._open[photo.split]
        self._images += 1
        name = f"{photo.stem}{photo.suffix}"
        put(self._folder / "images" / photo.split / name, photo.read())
        width, height = photo.wh
        _entry(images, {"id": self._images, "file_name": name, "width": width, "height": height})
        for box in photo.label.boxes:
            self._annotations += 1
            w, h = box.x2 - box.x1, box.y2 - box.y1
            _entry(
                annotations,
                {
                    "id": self._annotations,
                    "image_id": self._images,
                    "category_id": self._ids[box.label],
                    "bbox": [box.x1, box.y1, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                },
            )

    def close(self) -> None:
        categories = [{"id": number, "name": name} for name, number in self._ids.items()]
        for split, parts in self._open.items():
            with (self._folder / "annotations" / f"instances_{split}.json").open("wb") as out:
                for name, part in zip(("images", "annotations"), parts, strict=True):
                    out.write(b"{" if name == "images" else b",\n")
                    out.write(b'"' + name.encode() + b'": [\n')
                    part.seek(0)
                    while block := part.read(1_000_000):
                        out.write(block)
                    out.write(b"\n]")
                    part.close()
                    Path(part.name).unlink()
                out.write(b',\n"categories": ' + msgspec.json.encode(categories) + b"}\n")


def _entry(file: Any, entry: dict[str, Any]) -> None:
    file.write((b",\n" if file.tell() else b"") + msgspec.json.encode(entry))
