"""What a batch is made of, one item after the other, always in the same order. SOURCES maps a kind to its opener.

    folder   images below it, by name          zip     images in it, in the archive's order
    list     a text file of paths              video   frames by time or at changes of scene

`items(start)` goes on after the first `start` items, whoever took those. An item that cannot be read is an item with an
error; it never ends the batch. Nothing is unpacked to disk, and nothing outside the folder is followed.

Errors: InputError when the source as a whole cannot be read.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sutdol.errors import InputError
from sutdol.images import Rgb

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}
MAX_IMAGE_BYTES = 20_000_000
EVERY_S = 1.0
"""Seconds between two frames of a video where nothing is said."""
LOOKS_PER_S = 5.0
"""How often a frame is compared with the last kept one."""


@dataclass(frozen=True)
class Item:
    """One image: its bytes, or the pixels of a frame, or why there is neither."""

    index: int
    name: str
    data: bytes | None = None
    rgb: Rgb | None = None
    at_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Options:
    """How a video becomes frames: every `every_s` seconds, or where the scene changed by `scene` (0 to 1) or more."""

    every_s: float | None = None
    scene: float | None = None


class Source(Protocol):
    """A source that was opened; `total` is None where it cannot be known beforehand."""

    total: int | None

    def items(self, start: int) -> Iterator[Item]:
        """Items from number `start` on."""


class Files:
    """Files by path; the list is made once and kept by whoever opened it, because folders change."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self._root = root.resolve()
        self._names = names
        self.total: int | None = len(names)

    def items(self, start: int) -> Iterator[Item]:
        for index, name in enumerate(itertools.islice(self._names, start, None), start):
            yield self._read(index, name)

    def _read(self, index: int, name: str) -> Item:
        path = (self._root / name).resolve()
        try:
            if not path.is_relative_to(self._root):
                return Item(index, name, error="lies outside the folder")
            if path.stat().st_size > MAX_IMAGE_BYTES:
                return Item(index, name, error=f"larger than {MAX_IMAGE_BYTES / 1e6:g} MB")
            return Item(index, name, path.read_bytes())
        except OSError as error:
            return Item(index, name, error=f"cannot be read: {error.strerror or type(error).__name__}")


class Archive:
    """Images in a zip; each is read into memory by itself, never more than MAX_IMAGE_BYTES of it."""

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
            raise InputError(f"{path.name}: not a zip archive that can be read ({error})") from None
        self._members = [
            m for m in self._archive.infolist() if not m.is_dir() and Path(m.filename).suffix.lower() in IMAGES
        ]
        self.total: int | None = len(self._members)

    def items(self, start: int) -> Iterator[Item]:
        for index, member in enumerate(itertools.islice(self._members, start, None), start):
            yield self._read(index, member)

    def _read(self, index: int, member: zipfile.ZipInfo) -> Item:
        name = member.filename
        if member.file_size > MAX_IMAGE_BYTES:
            return Item(index, name, error=f"larger than {MAX_IMAGE_BYTES / 1e6:g} MB")
        try:
            with self._archive.open(member) as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
        except (OSError, RuntimeError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
            return Item(index, name, error=f"cannot be unpacked: {error}"[:200])
        if len(data) > MAX_IMAGE_BYTES:
            return Item(index, name, error=f"larger than {MAX_IMAGE_BYTES / 1e6:g} MB")
        return Item(index, name, data)


class Video:
    """Frames of a video, chosen from its beginning on; the first one always."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options = path, options
        capture = self._open()
        self._fps = capture.get(cv2.CAP_PROP_FPS)
        frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        if not 0 < self._fps <= 1_000:
            self._fps = 25.0
        self.total: int | None = None
        if options.scene is None and frames > 0:
            self.total = sum(1 for _ in self._by_time(int(frames)))

    def items(self, start: int) -> Iterator[Item]:
        capture = self._open()
        try:
            chosen = self._scenes(capture) if self._options.scene is not None else self._times(capture, start)
            for index, (number, bgr) in enumerate(chosen):
                if index >= start and bgr is not None:
                    at_s = number / self._fps
                    rgb = np.ascontiguousarray(bgr[:, :, ::-1]).astype(np.uint8, copy=False)
                    yield Item(index, f"{self._path.name}#t={at_s:.3f}", rgb=rgb, at_s=round(at_s, 3))
        finally:
            capture.release()

    def _open(self) -> Any:
        capture = cv2.VideoCapture(str(self._path))
        if not capture.isOpened():
            raise InputError(f"{self._path.name}: not a video that OpenCV can read")
        return capture

    def _by_time(self, frames: int) -> Iterator[int]:
        """Numbers of the frames that are wanted."""
        step = (self._options.every_s or EVERY_S) * self._fps
        last = -1
        for k in itertools.count():
            number = max(round(k * step), last + 1)
            if number >= frames:
                return
            last = number
            yield number

    def _times(self, capture: Any, start: int) -> Iterator[tuple[int, NDArray[Any] | None]]:
        """Unwanted frames, and those that were taken before, are decoded but not converted."""
        wanted = self._by_time(2**31)
        number, following, taken = 0, next(wanted), 0
        while capture.grab():
            if number == following:
                bgr = capture.retrieve()[1] if taken >= start else None
                yield number, bgr
                taken, following = taken + 1, next(wanted)
            number += 1

    def _scenes(self, capture: Any) -> Iterator[tuple[int, NDArray[Any] | None]]:
        step, number = max(1, round(self._fps / LOOKS_PER_S)), 0
        kept: NDArray[Any] | None = None
        while capture.grab():
            if number % step == 0:
                found, bgr = capture.retrieve()
                if found:
                    look = _histogram(bgr)
                    if kept is None or _distance(look, kept) >= float(self._options.scene or 0):
                        kept = look
                        yield number, bgr
            number += 1


def listed(path: Path) -> list[str]:
    """Paths of a list file, relative to its folder; empty lines and those that begin with # do not count."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def below(path: Path) -> list[str]:
    """Images in a folder and its folders, by name."""
    found = (p for p in path.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
    return sorted(str(p.relative_to(path)) for p in found)


def kind_of(path: Path) -> str:
    """Which kind of source a path is.

    Raises:
        InputError: there is nothing, or something of no kind.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return "folder"
    if not path.is_file():
        raise InputError(f"{path.name}: expected a folder, a zip, a list (.txt) or a video, found nothing")
    for kind, suffixes in (("zip", {".zip"}), ("list", {".txt", ".lst"}), ("video", VIDEOS), ("image", IMAGES)):
        if suffix in suffixes:
            return kind
    raise InputError(
        f"{path.name}: expected a folder, a zip, a list (.txt) or a video, found {suffix or 'no ending'!r}"
    )


NAMED: dict[str, Callable[[Path], tuple[Path, list[str]]]] = {
    "folder": lambda path: (path, below(path)),
    "list": lambda path: (path.parent, listed(path)),
    "image": lambda path: (path.parent, [path.name]),
}
"""Kinds whose items have names that must be kept: path -> (folder, names)."""
SOURCES: dict[str, Callable[[Path, list[str], Options], Source]] = {
    "folder": lambda path, names, _: Files(path, names),
    "list": lambda path, names, _: Files(path.parent, names),
    "image": lambda path, names, _: Files(path.parent, names),
    "zip": lambda path, _, __: Archive(path),
    "video": lambda path, _, options: Video(path, options),
}


def _histogram(bgr: NDArray[Any]) -> NDArray[Any]:
    small = cv2.resize(bgr, (64, 64), interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(small, cv2.COLOR_BGR2HSV)
    counts = cv2.calcHist([hsv], [0, 1, 2], None, [8, 4, 8], [0, 180, 0, 256, 0, 256]).ravel()
    return np.asarray(counts / max(counts.sum(), 1.0))


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Half the absolute difference of two histograms: 0 the same colours, 1 none in common."""
    return float(np.abs(a - b).sum() / 2)
