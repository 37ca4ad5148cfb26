"""CSV: a table of photos and their classes, for one class each or any number of them.

    image,split,rust,crack          or          image,labels
    a/1.jpg,train,1,0                           a/1.jpg,rust|crack

The first column that is named image, file, filename, name or path leads to the photo, relative to the table. `split` and
`group` mean what they say. `labels` (or `label`, `classes`, `class`) holds names divided by `|`; otherwise every column
whose values are all 0 or 1 is a class. Other columns are kept: a group can be made of one (`--group column:camera`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from retrain.formats.records import (
    PHOTOS,
    SPLIT_FOLDERS,
    Import,
    Photo,
    Record,
    class_name,
    hidden,
    inside,
    need_folder,
    not_a_photo,
    put,
    stem_key,
)
from sutdol.errors import DatasetError
from sutdol.types import Label, Split

IMAGE = ("image", "file", "filename", "file_name", "name", "path")
LABELS = ("labels", "label", "classes", "class")
RESERVED = {*IMAGE, *LABELS, "split", "group"}
MAX_CELL = 100_000


def csv_tables(path: Path) -> list[Path]:
    """Tables at the top of a folder."""
    return sorted(f for f in path.iterdir() if f.suffix.lower() == ".csv" and f.is_file() and not hidden(f, path))


def read_csv(path: Path, found: Import) -> Iterator[Record]:
    """See the top of this file.

    Raises:
        DatasetError: no or two tables, a header without image or classes, a row with another number of columns, a photo in
            two rows, a value that is neither 0 nor 1, a split that is none.
    """
    need_folder(path)
    tables = csv_tables(path)
    if len(tables) != 1:
        raise DatasetError(
            f"{path.name}: expected one table (.csv), found {', '.join(f.name for f in tables) or 'none'}",
            hint="one table per data set, beside its photos",
        )
    table = tables[0].name
    with tables[0].open("rb") as file:
        found.expected = max(0, sum(1 for _ in file) - 1)
    seen: dict[str, int] = {}
    for line, row in _rows(tables[0]):
        where = f"{table}:{line}"
        image, columns = row
        photo = inside(path, image, where)
        key = stem_key(photo.as_posix())
        if key in seen:
            raise DatasetError(f"{where}: {image!r} stands in line {seen[key]} too", hint="one row per photo")
        seen[key] = line
        name = photo.relative_to(path).as_posix()
        if photo.suffix.lower() not in PHOTOS:
            found.leave_out(table, line, f"{image!r}: {not_a_photo(photo)}")
            continue
        if not photo.is_file():
            found.leave_out(table, line, f"no photo {image!r} here")
            continue
        yield Record(
            name,
            Label(classes=_labels(columns, where)),
            path=photo,
            split=_split(columns.get("split", ""), where),
            group=columns.get("group") or None,
            columns={k: v for k, v in columns.items() if k not in RESERVED},
        )
    for other in sorted(f for f in path.rglob("*") if f.suffix.lower() in PHOTOS and not hidden(f, path)):
        if stem_key(other.as_posix()) not in seen:
            found.leave_out(other.relative_to(path).as_posix(), 0, f"not in {table}")
    if not seen:
        raise DatasetError(f"{table}: expected a row per photo, found none")


def _rows(file: Path) -> Iterator[tuple[int, tuple[str, dict[str, str]]]]:
    """(line, (image, its other columns by name)); names in lower case where they are ours."""
    csv.field_size_limit(MAX_CELL)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = [column.strip() for column in next(reader, [])]
            header = [c.casefold() if c.casefold() in RESERVED else class_name(c, f"{file.name}:1") for c in header]
            image = next((i for i, c in enumerate(header) if c in IMAGE), None)
            if image is None:
                raise DatasetError(
                    f"{file.name}:1: expected a column `image`, found {', '.join(header[:8]) or 'an empty file'}",
                    hint="the first line names the columns",
                )
            twice = next((c for c in header if header.count(c) > 1), None)
            if twice is not None:
                raise DatasetError(f"{file.name}:1: the column {twice!r} is there twice", hint="rename one of them")
            classes = _class_columns(file, header)
            for cells in reader:
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    raise DatasetError(
                        f"{file.name}:{reader.line_num}: expected {len(header)} columns, found {len(cells)}",
                        hint="put values with commas in double quotes",
                    )
                row = dict(zip(header, (c.strip() for c in cells), strict=True))
                name = row.pop(header[image])
                if not name:
                    raise DatasetError(f"{file.name}:{reader.line_num}: expected the photo's name, found nothing")
                if classes is not None:
                    row["labels"] = "|".join(c for c in classes if row.pop(c) == "1")
                yield reader.line_num, (name, row)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file.name}: expected UTF-8 text", hint="save it as CSV UTF-8") from error
    except csv.Error as error:
        raise DatasetError(f"{file.name}: not readable as CSV: {error}", hint="save it again as CSV") from error


def _class_columns(file: Path, header: list[str]) -> list[str] | None:
    """The columns that are classes, those of 0 and 1 only; None when a column `labels` holds the names.

    Raises:
        DatasetError: there is none of either, or a column of 0 and 1 holds something else in a few rows.
    """
    if any(c in LABELS for c in header):
        return None
    other: dict[str, tuple[int, int, str]] = {}
    rows = 0
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        next(reader, None)
        for cells in reader:
            rows += bool(cells)
            for column, cell in zip(header, cells, strict=False):
                if cell.strip() not in ("0", "1") and column not in RESERVED:
                    count, line, value = other.get(column, (0, reader.line_num, cell))
                    other[column] = (count + 1, line, value)
    wanted = [c for c in header if c not in RESERVED]
    for column, (count, line, value) in other.items():
        if count < rows / 2:
            raise DatasetError(
                f"{file.name}:{line}: expected 0 or 1 in the column {column!r}, found {value[:40]!r}",
                hint="correct it, or name the classes in one column `labels`",
            )
    classes = [c for c in wanted if c not in other]
    if not classes:
        raise DatasetError(
            f"{file.name}:1: expected a column `labels`, or a column of 0 and 1 per class, found {', '.join(header[:8])}"
        )
    return classes


def _labels(columns: dict[str, str], where: str) -> list[str]:
    text = next((columns[c] for c in LABELS if c in columns), "")
    names = [class_name(name, where) for name in text.split("|")] if text else []
    if len(set(names)) != len(names):
        raise DatasetError(f"{where}: a class is there twice: {text!r}", hint="name each class once")
    return names


def _split(text: str, where: str) -> Split | None:
    if not text:
        return None
    if text.casefold() not in SPLIT_FOLDERS:
        raise DatasetError(f"{where}: expected train, val or test, found {text!r}", hint="or leave it empty")
    return SPLIT_FOLDERS[text.casefold()]


class CsvWriter:
    """labels.csv with a column of 0 and 1 per class, photos under images/.

    Raises:
        DatasetError: a class is called like a column of ours.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        clash = next((name for name in classes if name.casefold() in RESERVED), None)
        if clash is not None:
            raise DatasetError(f"class {clash!r} is called like a column of the table", hint="export as imagefolder")
        self._folder, self._classes = folder, list(classes)
        self._file = (folder / "labels.csv").open("x", encoding="utf-8", newline="")
        self._table = csv.writer(self._file, lineterminator="\n")
        self._table.writerow(["image", "split", *self._classes])

    def add(self, photo: Photo) -> None:
        name = f"images/{photo.stem}{photo.suffix}"
        put(self._folder / name, photo.read())
        there = set(photo.label.classes)
        self._table.writerow([name, photo.split, *(int(c in there) for c in self._classes)])

    def close(self) -> None:
        self._file.close()
