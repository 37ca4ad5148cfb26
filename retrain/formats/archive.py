"""A zip file becomes a folder, or is refused: bombs, ways out, zips inside zips, links, passwords.

    zip -> names and sizes looked at -> unpacked block by block, real bytes counted -> folder

What a zip says about its sizes is not believed: the limits hold for the bytes that really come out. A zip inside a zip is
never opened, so an archive that contains itself ends here. Names written by Korean Windows tools (CP949 without a mark)
come out as people typed them.

Errors: DatasetError, with the entry's name and the remedy; nothing of the folder is left.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from retrain.formats.records import SPLIT_FOLDERS
from sutdol.errors import DatasetError

MAX_ENTRIES = 2_000_000
MAX_BYTES = 500_000_000_000
MAX_RATIO = 200
"""Unpacked bytes per packed byte, of the whole; photos are at 1, text and XML at 5 to 20."""
FREE_RATIO_BYTES = 50_000_000
"""Below this the ratio does not matter: a page of equal lines is no bomb."""
BLOCK = 1_000_000


def unpack(archive: Path, folder: Path, *, check: Callable[[], None] = lambda: None) -> Path:
    """Unpack `archive` into the new folder `folder`; the data set's own folder, when everything lies in a single one.

    Args:
        check: called between blocks; may raise `Cancelled`.

    Raises:
        DatasetError: see the top of this file.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            entries = _entries(zipped, archive.name)
            if shutil.disk_usage(_existing(folder)).free < sum(size for _, _, size in entries):
                raise DatasetError(f"{archive.name}: it does not fit on the disk", hint="free some space")
            folder.mkdir(parents=True)
            packed = archive.stat().st_size
            total = 0
            for entry, name, _ in entries:
                check()
                total = _unpack_one(zipped, entry, folder / name, total, packed, archive.name, check)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DatasetError(f"{archive.name}: not readable as zip: {error}", hint="pack it again") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _inner(folder)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _entries(zipped: zipfile.ZipFile, archive: str) -> list[tuple[zipfile.ZipInfo, str, int]]:
    """(entry, where it goes, its size as declared) of every file worth unpacking."""
    infos = zipped.infolist()
    if len(infos) > MAX_ENTRIES:
        raise DatasetError(f"{archive}: expected at most {MAX_ENTRIES:,} entries, found {len(infos):,}")
    entries: list[tuple[zipfile.ZipInfo, str, int]] = []
    seen: set[str] = set()
    for info in infos:
        name = _name(info)
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or (parts and (parts[0] == "/" or ":" in parts[0])) or "\0" in name:
            raise DatasetError(f"{archive}: the entry {name[:200]!r} leads out of the archive", hint="pack it again")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DatasetError(f"{archive}: {name[:200]!r} is a link", hint="pack the files themselves")
        if info.flag_bits & 0x1:
            raise DatasetError(f"{archive}: {name[:200]!r} is encrypted", hint="pack it without a password")
        if info.is_dir() or not parts or parts[0] == "__MACOSX":
            continue
        place = "/".join(parts)
        if place in seen:
            raise DatasetError(f"{archive}: two entries are called {place[:200]!r}", hint="pack it again")
        if place.lower().endswith((".zip", ".rar", ".7z", ".tar", ".gz", ".tgz")):
            raise DatasetError(f"{archive}: {place[:200]!r} is an archive itself", hint="unpack it and pack the files")
        seen.add(place)
        entries.append((info, place, info.file_size))
    if not entries:
        raise DatasetError(f"{archive}: expected files, found none")
    total = sum(size for _, _, size in entries)
    _limit(total, sum(info.compress_size for info, _, _ in entries), archive)
    return entries


def _name(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 0x800:
        return info.filename
    raw = info.orig_filename.encode("cp437")  # how zipfile reads names that carry no mark
    for encoding in ("utf-8", "cp949"):
        try:
            return raw.decode(encoding).split("\0")[0]
        except UnicodeDecodeError:
            continue
    return info.filename


def _limit(total: int, packed: int, archive: str) -> None:
    if total > MAX_BYTES or (total > FREE_RATIO_BYTES and total > MAX_RATIO * max(packed, 1)):
        raise DatasetError(
            f"{archive}: unpacks to more than {total:,} bytes from {packed:,}: this is a zip bomb",
            hint="photos do not shrink so much; look at what was packed",
        )


def _unpack_one(
    zipped: zipfile.ZipFile,
    entry: zipfile.ZipInfo,
    target: Path,
    total: int,
    packed: int,
    archive: str,
    check: Callable[[], None],
) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(entry) as source, target.open("xb") as out:
        while block := source.read(BLOCK):
            total += len(block)
            _limit(total, packed, archive)
            out.write(block)
            check()
    return total


def _inner(folder: Path) -> Path:
    """Zips of a folder hold one folder: that is the data set. A folder of photos in it is a class and stays what it is."""
    inner = [f for f in folder.iterdir() if not f.name.startswith(".")]
    if len(inner) != 1 or not inner[0].is_dir() or inner[0].name.casefold() in SPLIT_FOLDERS:
        return folder
    return inner[0] if any(f.is_dir() or f.suffix in (".csv", ".json") for f in inner[0].iterdir()) else folder
