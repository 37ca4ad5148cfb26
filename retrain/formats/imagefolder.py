"""ImageFolder: one folder of photos per class, the folder's name is the class; optionally under train/, val/ and test/."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from retrain.formats.records import (
    IGNORED,
    PHOTOS,
    SPLIT_FOLDERS,
    Import,
    Photo,
    Record,
    class_name,
    folders,
    hidden,
    need_folder,
    not_a_photo,
    photos_in,
    put,
)
from sutdol.errors import DatasetError
from sutdol.types import Label, Split


def read_imagefolder(path: Path, found: Import) -> Iterator[Record]:
    """See the top of this file.

    Raises:
        DatasetError: no classes, photos outside a class folder, or a mix of both layouts.
    """
    need_folder(path)
    top = folders(path)
    splits = [f for f in top if f.name.casefold() in SPLIT_FOLDERS and folders(f)]
    if splits and len(splits) != len(top):
        odd = next(f.name for f in top if f not in splits)
        raise DatasetError(
            f"{odd}: expected only train/, val/ and test/ at the top, found this folder too",
            hint="put every class folder inside a split, or none",
        )
    roots: list[tuple[Path, Split | None]] = [(f, SPLIT_FOLDERS[f.name.casefold()]) for f in splits] or [(path, None)]
    if len({split for _, split in roots}) != len(roots):
        raise DatasetError(
            f"{', '.join(f.name for f, _ in roots)}: two folders for one split", hint="merge them into one"
        )
    for root, _ in roots:
        _refuse_loose_photos(root, path)
    found.expected = sum(file.suffix.lower() in PHOTOS for root, _ in roots for file in root.rglob("*"))
    seen = 0
    for root, split in roots:
        for folder in folders(root):
            name = class_name(folder.name, folder.relative_to(path).as_posix())
            for file in sorted(f for f in folder.rglob("*") if f.is_file() and not hidden(f, folder)):
                relative = file.relative_to(path).as_posix()
                if file.suffix.lower() in PHOTOS:
                    seen += 1
                    yield Record(relative, Label(classes=[name]), path=file, split=split)
                elif file.name.casefold() not in IGNORED:
                    found.leave_out(relative, 0, not_a_photo(file))
    if not seen:
        raise DatasetError(
            f"{path.name}: expected folders of photos, one per class, found no photo in any",
            hint=f"photos end in {', '.join(sorted(PHOTOS))}",
        )


class ImageFolderWriter:
    """SPLIT/CLASS/STEM.SUFFIX.

    Raises:
        DatasetError: a class that cannot be the name of a folder, or two that are one folder where case does not count.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._folder = folder
        seen: dict[str, str] = {}
        for name in classes:
            if "/" in name or "\\" in name or name.startswith((".", "__")) or name.casefold() in SPLIT_FOLDERS:
                raise DatasetError(f"class {name!r} cannot be the name of a folder", hint="export as csv")
            if name.casefold() in seen:
                raise DatasetError(
                    f"classes {seen[name.casefold()]!r} and {name!r} are one folder where case does not count",
                    hint="export as csv",
                )
            seen[name.casefold()] = name

    def add(self, photo: Photo) -> None:
        name = photo.label.classes[0]
        put(self._folder / photo.split / name / f"{photo.stem}{photo.suffix}", photo.read())

    def close(self) -> None:
        """Nothing is left to write."""


def _refuse_loose_photos(root: Path, path: Path) -> None:
    loose = photos_in(root)
    if loose:
        raise DatasetError(
            f"{loose[0].relative_to(path).as_posix()}: expected every photo in the folder of its class, "
            f"found {len(loose)} beside the class folders",
            hint="move them into a class folder, or out of the data set",
        )
