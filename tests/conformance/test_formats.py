"""Every reader of FORMATS keeps the same promises; adding a format means adding a maker of a small folder here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrain import formats
from retrain.formats import FORMATS
from sutdol.errors import DatasetError
from tests.voc_folder import photo, write_voc


def imagefolder(folder: Path) -> Path:
    for split, names in {"train": ("1", "2"), "val": ("3",), "test": ("4",)}.items():
        for name in names:
            place = folder / split / ("고양이" if name in "13" else "dog")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.png").write_bytes(photo(int(name)))
    return folder


def voc(folder: Path) -> Path:
    photos = {str(i): [("고양이" if i in (1, 3) else "dog", 1, 2, 20, 21)] for i in range(1, 5)}
    return write_voc(folder, photos, splits={"train": ["1", "2"], "val": ["3"], "test": ["4"]})


MAKERS: dict[str, Callable[[Path], Path]] = {"imagefolder": imagefolder, "voc": voc}


@pytest.fixture(params=sorted(FORMATS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    assert request.param in MAKERS, f"write a maker for the format {request.param}"
    return request.param, MAKERS[request.param](tmp_path / "데이터 set")


def test_a_format_is_recognised_by_its_looks(made: tuple[str, Path]) -> None:
    """People should not have to know what their folder is called."""
    assert formats.detect_format(made[1]) == made[0]
    assert formats.read(made[1]).format == made[0]


def test_photos_labels_and_splits_come_out(made: tuple[str, Path]) -> None:
    """The whole of it: four photos, two classes, the given splits, the right bytes, nothing left out."""
    found = FORMATS[made[0]](made[1])
    assert sorted(str(r.split) for r in found.records) == ["test", "train", "train", "val"]
    assert formats.count_labels(found.records) == {"dog": 2, "고양이": 2}
    assert sorted(r.read() for r in found.records) == sorted(p.read_bytes() for p in made[1].rglob("*.png"))
    assert found.left_out == []
    assert all(not Path(r.name).is_absolute() for r in found.records)


def test_reading_twice_gives_the_same(made: tuple[str, Path]) -> None:
    """The order of files on disk must not decide who is in the test split."""
    assert FORMATS[made[0]](made[1]) == FORMATS[made[0]](made[1])


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_what_is_no_data_set_is_refused_in_words(made: tuple[str, Path], tmp_path: Path, what: str) -> None:
    """A typo in a path is the most common mistake of all."""
    path = tmp_path / what
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        path.mkdir()
    with pytest.raises(DatasetError, match=what):
        FORMATS[made[0]](path)
    with pytest.raises(DatasetError, match=what):
        formats.detect_format(path)


def test_a_file_that_is_no_photo_is_reported_by_name(made: tuple[str, Path]) -> None:
    """Silence about a TIFF would look like an import of everything."""
    folder = next(p.parent for p in sorted(made[1].rglob("*.png")))
    (folder / "scan.tiff").write_bytes(b"II*\x00")
    found = FORMATS[made[0]](made[1])
    assert [Path(e.file).name for e in found.left_out] == ["scan.tiff"]
    assert len(found.records) == 4
