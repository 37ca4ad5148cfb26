"""Data sets on disk, read and written strictly: FORMATS maps a format's name to its reader and its writer.

    folder or zip -> reader -> records (photo, label, split, group), and a report of what was left out, by file and line
    records -> writer -> folder that the reader gives back identically

A reader looks at names and annotations only; photos are opened later, by `retrain.imports`. What cannot be understood
(a number that is none, an unknown tag, two photos of one name) is a DatasetError that names file, line and remedy, and
nothing is imported. What is understood but useless (a box without area, a photo without annotation) is left out and
reported by file and line.

Rejected: datumaro and supervision (heavy, and both overwrite labels silently when two splits hold one stem); they are
oracles of the tests at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrain.formats.coco import CocoWriter, coco_files, read_coco
from retrain.formats.csvlabels import CsvWriter, csv_tables, read_csv
from retrain.formats.imagefolder import ImageFolderWriter, read_imagefolder
from retrain.formats.records import (
    PIXEL_DIGITS,
    Import,
    LeftOut,
    Photo,
    Record,
    Writer,
    clip_boxes,
    count_labels,
    folders,
    need_folder,
    photos_in,
)
from retrain.formats.voc import VocWriter, read_voc
from retrain.formats.yolo import YoloWriter, read_yolo, yolo_parts
from sutdol.errors import DatasetError
from sutdol.types import Task


@dataclass(frozen=True)
class Format:
    """A line of FORMATS.

    Attributes:
        read: yields records one by one; raises DatasetError, also after the last one.
        write: makes a Writer for an empty folder and a list of classes.
        tasks: of the labels that it can hold.
        looks: whether a folder is one of these, by its names alone.
        looks_like: the same in words, for people.
    """

    read: Callable[[Path, Import], Iterator[Record]]
    write: Callable[[Path, Sequence[str]], Writer]
    tasks: tuple[Task, ...]
    looks: Callable[[Path], bool]
    looks_like: str


def _is_voc(path: Path) -> bool:
    return {f.name.casefold() for f in folders(path)} >= {"annotations", "jpegimages"}


def _is_imagefolder(path: Path) -> bool:
    return any(photos_in(f) or any(photos_in(g) for g in folders(f)) for f in folders(path))


FORMATS: dict[str, Format] = {
    "voc": Format(read_voc, VocWriter, ("detect",), _is_voc, "Annotations/*.xml beside JPEGImages/"),
    "coco": Format(
        read_coco,
        CocoWriter,
        ("detect",),
        lambda path: bool(coco_files(path)),
        "annotations/*.json, or one *.json at the top",
    ),
    "yolo": Format(
        read_yolo, YoloWriter, ("detect",), lambda path: bool(yolo_parts(path)), "images/ beside labels/, and data.yaml"
    ),
    "csv": Format(
        read_csv, CsvWriter, ("classify", "multilabel"), lambda path: bool(csv_tables(path)), "one *.csv at the top"
    ),
    "imagefolder": Format(
        read_imagefolder,
        ImageFolderWriter,
        ("classify",),
        _is_imagefolder,
        "one folder of photos per class, also under train/ val/ test/",
    ),
}
"""In the order in which a folder is compared with them."""


def detect_format(path: Path) -> str:
    """The name of the format that `path` is in.

    Raises:
        DatasetError: no folder there, or none of the known formats; says what each looks like.
    """
    need_folder(path)
    fitting = next((name for name, known in FORMATS.items() if known.looks(path)), None)
    below = [(f, n) for f in folders(path) for n in FORMATS if n != "imagefolder" and FORMATS[n].looks(f)]
    if fitting is not None and not (fitting == "imagefolder" and any(n == "voc" for _, n in below)):
        return fitting
    shown = ", ".join(sorted(f.name.casefold() for f in folders(path))[:8])
    raise DatasetError(
        f"{path.name}: expected a data set, found {shown or 'no folders'}",
        hint=f"{path.name}/{below[0][0].name} looks like {below[0][1]}, import that folder"
        if below
        else "; ".join(f"{name}: {known.looks_like}" for name, known in FORMATS.items()),
    )


def stream(path: Path, *, format: str | None = None) -> tuple[Import, Iterator[Record]]:
    """An empty report, and the records that fill it while they are read.

    Raises:
        DatasetError: an unknown format (lists the known ones); the iterator raises whatever the reader finds wrong.
    """
    name = format or detect_format(path)
    if name not in FORMATS:
        raise DatasetError(f"unknown format {name!r}", hint=f"known: {', '.join(FORMATS)}")
    found = Import(name)
    return found, FORMATS[name].read(path, found)


def read(path: Path, *, format: str | None = None) -> Import:
    """All of `path` at once, for data sets that fit into memory; see `stream`."""
    found, records = stream(path, format=format)
    found.records.extend(records)
    found.left_out.sort(key=lambda entry: (entry.file, entry.line))
    return found


__all__ = [
    "FORMATS",
    "PIXEL_DIGITS",
    "Format",
    "Import",
    "LeftOut",
    "Photo",
    "Record",
    "Writer",
    "clip_boxes",
    "count_labels",
    "detect_format",
    "read",
    "stream",
]
