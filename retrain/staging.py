"""The waiting room of an import: every photo is opened, checked, stored and written down in a file of its own.

    records -> opened by as many threads as there are cores -> STAGE/stage.db: one row per photo, also of those left out

Nothing of it is visible to anybody. It is a file because a data set may have a million photos and memory is what it is,
and because an import that was killed goes on where the file ends. Bytes go to the store under their hash, where a second
try finds them again.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

import msgspec

from retrain.formats import PIXEL_DIGITS, Import, LeftOut, Record, clip_boxes
from retrain.splits import Stratum, rank
from sutdol import images
from sutdol.dataset_versions import canonical, class_names
from sutdol.errors import DatasetError, ImageError
from sutdol.stores import Store
from sutdol.types import Box, Label, Split, Task

BATCH = 64
"""Photos that are opened at a time, and rows that a crash can cost."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS photo (
    number INTEGER PRIMARY KEY, name TEXT, sample_id TEXT, width_px INT, height_px INT, media_type TEXT, size_bytes INT,
    value BLOB, canonical TEXT, given TEXT, unit TEXT, grouped INT, clipped INT, left_out BLOB, split TEXT, lot TEXT
);
CREATE INDEX IF NOT EXISTS photo_sample ON photo (sample_id);
CREATE TABLE IF NOT EXISTS unit (key TEXT PRIMARY KEY, stratum TEXT, rank TEXT, photos INT, split TEXT);
"""


@dataclass(frozen=True)
class Staged:
    """One photo that will be imported: a row of the stage, its label checked."""

    name: str
    sample_id: str
    width_px: int
    height_px: int
    media_type: str
    size_bytes: int
    label: Label
    canonical: str
    split: Split
    group: str | None


@dataclass(frozen=True)
class _Opened:
    """What became of one record: a row of the table `photo`, without its number."""

    name: str
    image: images.Image | None = None
    size_bytes: int = 0
    label: Label = field(default_factory=Label)
    given: str | None = None
    group: str | None = None
    clipped: int = 0
    left_out: tuple[LeftOut, ...] = ()


class Stage:
    """See the top of this file. One process at a time; close it when done."""

    def __init__(self, folder: Path, store: Store) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._store = store
        self._db = sqlite3.connect(folder / "stage.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        self._db.close()

    def fill(
        self,
        records: Iterable[Record],
        *,
        slug: str,
        task: Task,
        group: Callable[[Record], str | None],
        on_photo: Callable[[int], None],
    ) -> None:
        """Open every record that is not here yet.

        Args:
            slug, task: of the model; a label of another kind is a mistake of the whole import, not of one photo.
            on_photo: called with the number of photos that are through, after each; may raise `Cancelled`.

        Raises:
            DatasetError: such a label, or whatever the reader finds wrong.
        """
        numbered = enumerate(records, 1)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            while batch := list(islice(numbered, BATCH)):
                for _, record in batch:
                    _check_task(slug, task, record)
                first, last = batch[0][0], batch[-1][0]
                known = dict(
                    self._db.execute("SELECT number, name FROM photo WHERE number BETWEEN ? AND ?", (first, last))
                )
                if any(known[n] != record.name for n, record in batch if n in known):
                    # The folder has changed since the first try: what was opened then has other numbers now.
                    self._db.execute("DELETE FROM photo WHERE number >= ?", (first,))
                    known = {}
                todo = [(n, record) for n, record in batch if n not in known]
                opened = pool.map(lambda pair: self._open(pair[1], group), todo)
                rows = [_row(n, one) for (n, _), one in zip(todo, opened, strict=True)]
                with self._db:
                    self._db.execute("BEGIN")
                    self._db.executemany(f"INSERT INTO photo VALUES ({','.join('?' * 16)})", rows)
                for number, _ in batch:
                    on_photo(number)

    def report(self, found: Import) -> None:
        """Add to the reader's report what was left out and cut while photos were opened."""
        for (data,) in self._db.execute("SELECT left_out FROM photo WHERE left_out IS NOT NULL ORDER BY number"):
            found.left_out += msgspec.json.decode(data, type=list[LeftOut])
        found.clipped += self._one("SELECT COALESCE(SUM(clipped), 0) FROM photo")

    def merge(self, found: Import) -> list[LeftOut]:
        """One row per content. Copies that agree are merged and returned; copies that disagree are all left out."""
        merged: list[LeftOut] = []
        copies = self._db.execute(
            "SELECT sample_id, number, name, canonical, given FROM photo WHERE sample_id IN (SELECT sample_id FROM photo "
            "WHERE sample_id IS NOT NULL GROUP BY sample_id HAVING COUNT(*) > 1) ORDER BY sample_id, number"
        ).fetchall()
        with self._db:
            self._db.execute("BEGIN")
            for _, rows in groupby(copies, key=lambda row: row[0]):
                self._merge_copies(list(rows), found, merged)
        return merged

    def _merge_copies(
        self, copies: list[tuple[str, int, str, str, str | None]], found: Import, merged: list[LeftOut]
    ) -> None:
        names = [name for _, _, name, _, _ in copies]
        if len({canonical for _, _, _, canonical, _ in copies}) > 1:
            for _, number, name, _, _ in copies:
                others = ", ".join([other for other in names if other != name][:3])
                found.leave_out(name, 0, f"the same photo is labelled differently as {others}")
                self._db.execute("UPDATE photo SET sample_id = NULL WHERE number = ?", (number,))
            return
        for _, number, name, _, _ in copies[1:]:
            merged.append(LeftOut(name, 0, f"the same photo as {names[0]}"))
            self._db.execute("UPDATE photo SET sample_id = NULL WHERE number = ?", (number,))
        # A copy in test and one in train would let the test set be learned by heart.
        splits = {given for *_, given in copies}
        safest = next((s for s in ("test", "val", "train") if s in splits), None)
        self._db.execute("UPDATE photo SET given = ? WHERE number = ?", (safest, copies[0][1]))

    # -- splits -------------------------------------------------------------------------------------------------------

    def forget_given(self) -> None:
        """The data set's own splits do not count."""
        self._db.execute("UPDATE photo SET given = NULL")

    def given(self) -> set[str]:
        """Splits that the data set itself gives to some photos."""
        return {
            row[0]
            for row in self._db.execute("SELECT DISTINCT given FROM photo WHERE sample_id NOTNULL AND given NOTNULL")
        }

    def undecided(self) -> int:
        """Photos that are in no split yet."""
        return self._one("SELECT COUNT(*) FROM photo WHERE sample_id NOTNULL AND split IS NULL")

    def take_given(self) -> None:
        self._db.execute("UPDATE photo SET split = given")

    def reopen(self, split: Split) -> None:
        """Photos of that split are undecided again."""
        self._db.execute("UPDATE photo SET split = NULL WHERE split = ?", (split,))

    def torn_groups(self) -> list[tuple[str, str, str]]:
        """(group, a photo, a photo) of groups that the data set's own splits divide, at most five."""
        return self._db.execute(
            "SELECT unit, MIN(name), MAX(name) FROM photo WHERE grouped AND sample_id NOTNULL AND given NOTNULL "
            "GROUP BY unit HAVING COUNT(DISTINCT given) > 1 ORDER BY unit LIMIT 5"
        ).fetchall()

    def groups(self) -> Iterator[str]:
        """Every group there is."""
        for (key,) in self._db.execute(
            "SELECT DISTINCT unit FROM photo WHERE grouped AND sample_id NOTNULL ORDER BY unit"
        ):
            yield key.removeprefix("group:")

    def put_group(self, group: str, split: str) -> int:
        """All photos of `group` go to `split`, because photos of it are there already; how many."""
        return self._db.execute(
            "UPDATE photo SET split = ?, given = ? WHERE unit = ? AND grouped", (split, split, f"group:{group}")
        ).rowcount

    def share_out(self, assign: Callable[[Iterable[Stratum]], Iterator[tuple[str, Split]]]) -> None:
        """Split all undecided photos, unit by unit."""
        frequency = Counter(name for (value,) in self._values() for name in set(class_names(value)))
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM unit")
            query = "SELECT unit, value FROM photo WHERE sample_id NOTNULL AND split IS NULL ORDER BY unit"
            for key, rows in groupby(self._db.execute(query), key=lambda row: row[0]):
                photos, names = 0, set()
                for _, value in rows:
                    photos += 1
                    names |= set(class_names(msgspec.json.decode(value, type=Label)))
                # The rarest class of a unit, because the rarest class is the one that a split can lack.
                stratum = min(names, key=lambda name: (frequency[name], name), default="")
                self._db.execute("INSERT INTO unit VALUES (?, ?, ?, ?, NULL)", (key, stratum, rank(key), photos))
            for key, split in list(assign(self._strata())):
                self._db.execute("UPDATE unit SET split = ? WHERE key = ?", (split, key))
            self._db.execute(
                "UPDATE photo SET split = (SELECT split FROM unit WHERE key = unit) WHERE sample_id NOTNULL AND split IS NULL"
            )

    def _strata(self) -> Iterator[Stratum]:
        counted = self._db.execute("SELECT stratum, COUNT(*), SUM(photos) FROM unit GROUP BY stratum ORDER BY stratum")
        for stratum, units, photos in counted.fetchall():
            ranked = self._db.execute("SELECT key, photos FROM unit WHERE stratum = ? ORDER BY rank", (stratum,))
            yield Stratum(units, photos, ranked)

    def _values(self) -> Iterator[tuple[Label]]:
        for (value,) in self._db.execute("SELECT value FROM photo WHERE sample_id NOTNULL AND split IS NULL"):
            yield (msgspec.json.decode(value, type=Label),)

    # -- what comes out -----------------------------------------------------------------------------------------------

    def limit_train(self, limit: float | int) -> int:
        """Keep only so many training photos, or that share of them, always the same ones; returns how many went."""
        with self._db:
            self._db.execute("BEGIN")
            training = "sample_id NOTNULL AND split = 'train'"
            total = self._one(f"SELECT COUNT(*) FROM photo WHERE {training}")
            kept = round(limit * total) if isinstance(limit, float) else min(limit, total)
            ids = self._db.execute(f"SELECT number, sample_id FROM photo WHERE {training}").fetchall()
            self._db.executemany("UPDATE photo SET lot = ? WHERE number = ?", ((rank(i, "limit"), n) for n, i in ids))
            self._db.execute(
                f"UPDATE photo SET sample_id = NULL WHERE number IN (SELECT number FROM photo WHERE {training} "
                "ORDER BY lot LIMIT -1 OFFSET ?)",
                (kept,),
            )
        return total - kept

    def count(self) -> int:
        """Photos that will be imported."""
        return self._one("SELECT COUNT(*) FROM photo WHERE sample_id NOTNULL")

    def photos(self) -> Iterator[Staged]:
        """They, in the order in which they were read."""
        columns = "name, sample_id, width_px, height_px, media_type, size_bytes, value, canonical, split, unit, grouped"
        query = f"SELECT {columns} FROM photo WHERE sample_id NOTNULL ORDER BY number"
        for row in self._db.execute(query):
            name, sample_id, width, height, media_type, size, value, text, split, unit, grouped = row
            label = msgspec.json.decode(value, type=Label)
            group = unit.removeprefix("group:") if grouped else None
            yield Staged(name, sample_id, width, height, media_type, size, label, text, split, group)

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self, record: Record, group: Callable[[Record], str | None]) -> _Opened:
        """Open a photo, compare its size with the annotation, store its bytes."""
        notes = Import("")
        try:
            image = images.admit(record.read())
            images.decode(image.data, cover_hw=(1, 1))  # a truncated photo must not wait for the training to be found
        except ImageError as error:
            return _Opened(record.name, left_out=(LeftOut(record.name, 0, str(error)),))
        label = _fit_label(record, image, notes)
        if label is None:
            return _Opened(record.name, left_out=tuple(notes.left_out))
        self._store.put(f"samples/{image.sample_id}", image.data)
        return _Opened(
            record.name,
            image,
            len(image.data),
            label,
            record.split,
            group(record),
            notes.clipped,
            tuple(notes.left_out),
        )


def _row(number: int, one: _Opened) -> tuple[object, ...]:
    image, left_out = one.image, msgspec.json.encode(one.left_out) if one.left_out else None
    if image is None:
        return (number, one.name, *[None] * 9, 0, one.clipped, left_out, None, None)
    return (
        number,
        one.name,
        image.sample_id,
        image.width_px,
        image.height_px,
        image.media_type,
        one.size_bytes,
        msgspec.json.encode(one.label),
        canonical(one.label),
        one.given,
        f"group:{one.group}" if one.group else image.sample_id,
        int(bool(one.group)),
        one.clipped,
        left_out,
        None,
        None,
    )


def _check_task(slug: str, task: Task, record: Record) -> None:
    classes, boxes = record.label.classes, record.label.boxes
    if task == "detect" and classes:
        wrong = f"{slug} detects objects, expected boxes, found the class {classes[0]!r}"
    elif task != "detect" and boxes:
        wrong = f"{slug} is a {task} model, expected classes, found boxes"
    elif task == "classify" and len(classes) != 1:
        wrong = f"{slug} classifies, expected one class, found {len(classes)}"
    else:
        return
    raise DatasetError(f"{record.name}: {wrong}", hint="import into a model of the right task")


def _fit_label(record: Record, image: images.Image, notes: Import) -> Label | None:
    wh, declared = (image.width_px, image.height_px), record.declared_wh
    if declared is not None and declared != wh:
        turned = " (turned by its EXIF orientation)" if declared == wh[::-1] else ""
        reason = f"the annotation says {declared[0]} x {declared[1]} pixels, the photo has {wh[0]} x {wh[1]}{turned}"
        notes.leave_out(record.name, 0, f"{reason}; annotate the upright photo")
        return None
    boxes = [_pixels(box, wh) if record.unit == "share" else box for box in record.label.boxes]
    kept = clip_boxes([(box, 0) for box in boxes], wh, record.name, notes)
    return Label(classes=record.label.classes, boxes=kept)


def _pixels(box: Box, wh: tuple[int, int]) -> Box:
    x1, x2 = (round(x * wh[0], PIXEL_DIGITS) for x in (box.x1, box.x2))
    y1, y2 = (round(y * wh[1], PIXEL_DIGITS) for y in (box.y1, box.y2))
    return Box(box.label, x1, y1, x2, y2)
