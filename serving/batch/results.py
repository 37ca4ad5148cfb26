"""Results of a run, put together from its chunks while they are sent. FORMATS maps a name to its writer.

    jsonl   one `work.Line` per image            csv     one row per finding, one for an image without any
    coco    images, annotations, categories      zip     all three, and the pictures if there are any

Each writer is a generator of bytes that holds one chunk at a time, so a million results cost no more memory than a hundred.
What is there of an unfinished run can be fetched as well.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from serving.batch.work import Line
from sutdol.stores import Store
from sutdol.tables import BatchRun

_LINES = msgspec.json.Decoder(Line)
_JSON = msgspec.json.Encoder()


def as_jsonl(store: Store, run: BatchRun, classes: list[str]) -> Iterator[bytes]:
    for chunk in range(run.chunks):
        yield store.get(f"batches/{run.id}/{chunk:06d}.jsonl")


def as_csv(store: Store, run: BatchRun, classes: list[str]) -> Iterator[bytes]:
    head = ["index", "name", "at_s", "class", "class_index", "confidence", "x1", "y1", "x2", "y2", "error"]
    yield _rows([head])
    for lines in _chunks(store, run):
        rows: list[list[object]] = []
        for line in lines:
            start: list[object] = [line.index, _harmless(line.name), line.at_s]
            for found in line.predictions:
                box = found.box
                corners: list[object] = [box.x1, box.y1, box.x2, box.y2] if box else [None] * 4
                rows.append([*start, _harmless(found.name), found.index, found.confidence, *corners, None])
            if not line.predictions:
                rows.append([*start, *[None] * 7, line.error])
        yield _rows(rows)


def as_coco(store: Store, run: BatchRun, classes: list[str]) -> Iterator[bytes]:
    """Annotations carry `score`; a classifier's have no box. Images that could not be read are left out."""
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    yield b'{"info":' + _JSON.encode({"description": f"{run.model} version {run.version}"})
    yield b',"categories":' + _JSON.encode(categories) + b',"images":['
    yield from _joined(
        {"id": line.index + 1, "file_name": line.name, "width": line.image.width, "height": line.image.height}
        for lines in _chunks(store, run)
        for line in lines
        if line.image is not None
    )
    yield b'],"annotations":['
    yield from _joined(_annotations(store, run))
    yield b"]}"


def as_zip(store: Store, run: BatchRun, classes: list[str]) -> Iterator[bytes]:
    out = _Pipe()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, write in (("results.jsonl", as_jsonl), ("results.csv", as_csv), ("coco.json", as_coco)):
            with archive.open(name, "w", force_zip64=True) as file:
                for part in write(store, run, classes):
                    file.write(part)
                    yield out.taken()
        for chunk in range(run.chunks):
            key = f"batches/{run.id}/{chunk:06d}.zip"
            if not store.has(key):
                continue
            with zipfile.ZipFile(io.BytesIO(store.get(key))) as drawn:
                for member in drawn.infolist():
                    info = zipfile.ZipInfo(f"pictures/{member.filename}", (2000, 1, 1, 0, 0, 0))
                    archive.writestr(info, drawn.read(member))
            yield out.taken()
    yield out.taken()


FORMATS: dict[str, tuple[str, Callable[[Store, BatchRun, list[str]], Iterator[bytes]]]] = {
    "jsonl": ("application/jsonl", as_jsonl),
    "csv": ("text/csv; charset=utf-8", as_csv),
    "coco": ("application/json", as_coco),
    "zip": ("application/zip", as_zip),
}
"""Name -> (media type, writer)."""


class _Pipe(io.RawIOBase):
    """What a zip is written to: cannot seek, and gives away what it got."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _chunks(store: Store, run: BatchRun) -> Iterator[list[Line]]:
    for chunk in range(run.chunks):
        yield _LINES.decode_lines(store.get(f"batches/{run.id}/{chunk:06d}.jsonl"))


def _annotations(store: Store, run: BatchRun) -> Iterator[dict[str, Any]]:
    number = 0
    for lines in _chunks(store, run):
        for line in lines:
            for found in line.predictions:
                number += 1
                row: dict[str, Any] = {
                    "id": number,
                    "image_id": line.index + 1,
                    "category_id": found.index + 1,
                    "score": found.confidence,
                }
                if found.box is not None:
                    w, h = found.box.x2 - found.box.x1, found.box.y2 - found.box.y1
                    row |= {"bbox": [found.box.x1, found.box.y1, w, h], "area": w * h, "iscrowd": 0}
                yield row


def _joined(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    first = True
    for row in rows:
        yield (b"" if first else b",") + _JSON.encode(row)
        first = False


def _rows(rows: list[list[Any]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def _harmless(text: str) -> str:
    """A file called `=1+1.png` must not be a formula in somebody's spreadsheet."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
