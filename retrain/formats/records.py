"""What a data set consists of, and what all readers and writers share: names, folders, reports.

    reader(path, found) -> Record, Record, ...     one at a time, so that a million photos need no more memory than ten
    writer(folder, classes) -> add(Photo), add(Photo), ..., close()

Errors: DatasetError, with file, line and remedy.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from sutdol.errors import DatasetError
from sutdol.types import Box, Label, Split

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
OTHER_PHOTOS = {".bmp", ".tif", ".tiff", ".heic", ".avif", ".svg"}
SUFFIX = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
PIXEL_DIGITS = 6
"""Pixels that were divided or added up are rounded to so many digits, which takes the noise of the arithmetic away."""
IGNORED = {"thumbs.db", "desktop.ini", "readme.md", "readme.txt", "license", "license.txt"}


@dataclass(frozen=True)
class LeftOut:
    """One thing that was not imported; `file` is relative to the data set, `line` counts from 1, 0 for the whole file."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Record:
    """One labelled photo of a data set.

    Attributes:
        name: what people call it, relative to the data set; the file of every complaint about it.
        label: the truth, boxes in pixels of the upright photo, or in shares of its sides (see `unit`).
        path, data: where its bytes are, or the bytes; exactly one is given.
        split: as the data set says; None leaves it to the import.
        group: photos of one group (one patient, one street) go to the same split.
        declared_wh: width and height that the annotation states; compared with the photo at import.
        unit: `share` when boxes are in [0, 1] of the photo's sides; the import makes pixels of them.
        columns: other columns of its line, where the format has any; a group can be made of one.
    """

    name: str
    label: Label
    path: Path | None = None
    data: bytes | None = None
    split: Split | None = None
    group: str | None = None
    declared_wh: tuple[int, int] | None = None
    unit: Literal["px", "share"] = "px"
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise DatasetError(
                f"{self.name}: expected either a path or bytes, found {'both' if self.path else 'neither'}"
            )

    def read(self) -> bytes:
        """The photo's bytes.

        Raises:
            DatasetError: the file went away or cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        return read_file(self.path, self.name)


@dataclass
class Import:
    """What a reader found.

    Attributes:
        records: filled by `formats.read`; a streaming import leaves it empty.
        expected: photos that will come, for progress; 0 while it is unknown.
        clipped: boxes that reached over the photo's edge and were cut there.
    """

    format: str
    records: list[Record] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clipped: int = 0
    expected: int = 0

    def leave_out(self, file: str, line: int, reason: str) -> None:
        self.left_out.append(LeftOut(file, line, reason))


@dataclass(frozen=True)
class Photo:
    """One labelled photo on its way out: boxes in pixels of `wh`; `read` gives its bytes when it is their turn."""

    stem: str
    suffix: str
    wh: tuple[int, int]
    label: Label
    split: Split
    read: Callable[[], bytes]


class Writer(Protocol):
    """Writes one data set into an empty folder; it is whole after `close`."""

    def add(self, photo: Photo) -> None: ...

    def close(self) -> None: ...


def clip_boxes(boxes: Iterable[tuple[Box, int]], wh: tuple[int, int], file: str, found: Import) -> list[Box]:
    """Boxes (with their lines) cut at the edges of a photo of `wh` pixels; those left without area are reported."""
    kept = []
    for box, line in boxes:
        x1, x2 = (min(max(v, 0.0), float(wh[0])) for v in (box.x1, box.x2))
        y1, y2 = (min(max(v, 0.0), float(wh[1])) for v in (box.y1, box.y2))
        if x1 >= x2 or y1 >= y2:
            found.leave_out(file, line, f"box of {box.label!r} lies outside the photo of {wh[0]} x {wh[1]} pixels")
            continue
        if (x1, y1, x2, y2) != (box.x1, box.y1, box.x2, box.y2):
            found.clipped += 1
        kept.append(Box(box.label, x1, y1, x2, y2))
    return kept


def count_labels(records: Iterable[Record]) -> dict[str, int]:
    """How often each class stands in the records' labels, by name."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.label.classes)
        counts.update(box.label for box in record.label.boxes)
    return dict(sorted(counts.items()))


def stem_key(text: str) -> str:
    """Names are equal when people read them as equal: composed Unicode, case folded."""
    return unicodedata.normalize("NFC", text).casefold()


def class_name(text: str, where: str) -> str:
    """A class as people read it: composed Unicode, no spaces around it.

    Raises:
        DatasetError: there is nothing left of it.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name:
        raise DatasetError(f"{where}: expected a class, found {text!r}", hint="name the class, or remove it")
    return name


def by_stem(folder: Path, path: Path, endings: set[str], *, deep: bool = False) -> dict[str, Path]:
    """Files of `folder` with one of `endings` by their stem (with `deep` by their path in it, without the ending).

    Raises:
        DatasetError: two of them differ by nothing but case, Unicode form or ending.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*") if deep else folder.iterdir()):
        if not file.is_file() or hidden(file, folder) or file.suffix.lower() not in endings:
            continue
        key = stem_key(file.relative_to(folder).with_suffix("").as_posix())
        if key in found:
            raise DatasetError(
                f"{file.relative_to(path).as_posix()}: {found[key].name} has the same name but for case or ending",
                hint="rename one of the two, with its annotation",
            )
        found[key] = file
    return found


def need_folder(path: Path) -> None:
    if not path.is_dir():
        raise DatasetError(f"{path.name}: expected a folder, found {'a file' if path.exists() else 'nothing'} there")


def folders(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))


def photos_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in PHOTOS and not f.name.startswith("."))


def hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)


def not_a_photo(file: Path) -> str:
    kind = file.suffix.lower() or "no ending"
    return f"not a kind of photo we read ({kind}); expected {', '.join(sorted(PHOTOS))}"


def leave_out_other_photos(folder: Path, path: Path, found: Import) -> None:
    """TIFF, HEIC and their like are reported by name; silence about them would look like an import of everything."""
    for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in OTHER_PHOTOS):
        found.leave_out(file.relative_to(path).as_posix(), 0, not_a_photo(file))


def read_file(file: Path, name: str, *, at_most: int | None = None) -> bytes:
    """The bytes of a file of the data set, called `name` in messages."""
    try:
        if at_most is not None and file.stat().st_size > at_most:
            raise DatasetError(f"{name}: expected at most {at_most:,} bytes, found {file.stat().st_size:,}")
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{name}: cannot be read: {error.strerror}", hint="check its permissions") from error


def read_text(file: Path, name: str, *, at_most: int | None = None) -> str:
    """The same as UTF-8 text, a byte order mark taken off."""
    try:
        return read_file(file, name, at_most=at_most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name}: expected UTF-8 text", hint="save it as UTF-8") from error


def inside(path: Path, relative: str, where: str) -> Path:
    """The file `relative` of the data set at `path`.

    Raises:
        DatasetError: it is outside of the data set, by `..`, by being absolute or by a link.
    """
    file = path / relative.replace("\\", "/")
    if not file.resolve().is_relative_to(path.resolve()):
        raise DatasetError(
            f"{where}: {relative!r} leads out of the data set", hint="name files relative to the data set's folder"
        )
    return file


def put(path: Path, data: bytes) -> None:
    """Write a file of an export, with the folders above it; two photos of one name are a mistake of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
