"""Where the log goes while the database or the image store is gone: a bounded file per process, drained when they are back.

    entries -> one append, one flush to the disk -> (the reply leaves) ... database back -> in groups into it -> file cut

A record is its length, a checksum and msgpack. What a `kill -9` left half written was never answered and is passed over.
A record may reach the database twice (the process can die between commit and cut), so draining skips what is there.
A file whose process has died is drained by the next one that looks; a lock on the file says whose it is.

Errors: OSError when the spool itself cannot be written; SpoolFull when it has reached its limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

_HEAD = struct.Struct("<II")
GROUP = 256
"""Records that are drained in one transaction."""


class SpoolFull(Exception):
    """The limit is reached."""


class Record(msgspec.Struct, array_like=True):
    """One log entry as plain data: rows by table name, the label task, and the image when it is not in the store yet."""

    rows: list[tuple[str, dict[str, Any]]]
    offer: dict[str, Any] | None = None
    image_key: str | None = None
    image: bytes = b""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Record)


class Spool:
    """The files `*.spool` of one folder, of which this process writes one. For one thread.

    Attributes:
        count: records of this process that wait for the database.
        bytes: their size on the disk.
    """

    def __init__(self, folder: Path, name: str, *, limit_bytes: int) -> None:
        self._folder = folder
        self._path = folder / f"{name}.spool"
        self._limit = limit_bytes
        self._file: int | None = None
        self.count = 0
        self.bytes = 0

    def append(self, records: list[Record]) -> None:
        """Keep them; durable when this returns."""
        parts = []
        for record in records:
            body = _ENCODER.encode(record)
            parts += [_HEAD.pack(len(body), zlib.crc32(body)), body]
        data = b"".join(parts)
        if self.bytes + len(data) > self._limit:
            raise SpoolFull(f"{self.count} entries, {self.bytes / 1e6:.1f} of at most {self._limit / 1e6:.1f} MB")
        file = self._open()
        try:
            written = os.write(file, data)
            if written < len(data):
                raise OSError(f"{written} of {len(data)} bytes written")
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, self.bytes)  # else a half-written record would hide what comes after it
            raise
        self.bytes += len(data)
        self.count += len(records)

    def groups(self) -> Iterator[list[Record]]:
        """What waits here, oldest first; call `cut` when all of it is in the database."""
        yield from _groups(self._path) if self.count else ()

    def cut(self) -> None:
        """Forget it all."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
        self.count = self.bytes = 0

    def left_behind(self) -> Iterator[tuple[Path, Iterator[list[Record]]]]:
        """Files of processes that have died; each is removed when the next one is asked for."""
        for path in sorted(self._folder.glob("*.spool")) if self._folder.is_dir() else ():
            if path == self._path:
                continue
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue  # its process lives
                if path.exists():
                    yield path, _groups(path)
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """An empty file goes; one with records stays for the next process."""
        if self._file is not None:
            if not self.count:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            folder = os.open(self._folder, os.O_RDONLY)
            os.fsync(folder)  # the file's name must survive as well
            os.close(folder)
        return self._file


def _groups(path: Path) -> Iterator[list[Record]]:
    group: list[Record] = []
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, checksum = _HEAD.unpack(head)
            body = file.read(length)
            if len(body) < length or zlib.crc32(body) != checksum:
                break
            group.append(_DECODER.decode(body))
            if len(group) == GROUP:
                yield group
                group = []
    if group:
        yield group
