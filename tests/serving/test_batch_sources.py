"""Sources give the same items in the same order every time, from any point on, and never end on a bad one."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from serving.batch import sources
from serving.batch.sources import Item, Options, Source
from sutdol.errors import InputError
from tests.tiny_models import coloured_png


def write_video(path: Path, colours: list[tuple[int, int, int]], *, frames: int = 10, fps: int = 10) -> Path:
    """`frames` frames of each colour, Motion JPEG."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))  # type: ignore[attr-defined]
    for colour in colours:
        for i in range(frames):
            frame = np.full((48, 64, 3), colour, np.uint8)
            frame[:4, :4] = i * 20
            writer.write(frame)
    writer.release()
    return path


def opened(path: Path, **options: Any) -> Source:
    kind = sources.kind_of(path)
    names = sources.NAMED[kind](path)[1] if kind in sources.NAMED else []
    return sources.SOURCES[kind](path, names, Options(**options))


def key(item: Item) -> tuple[int, str, str | None, int | None]:
    return item.index, item.name, item.error, None if item.rgb is None else int(item.rgb.sum())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for i in range(5):
        (root / f"{i}.png").write_bytes(coloured_png(seed=i))
    (root / "sub" / "고양이 사진.PNG").write_bytes(coloured_png("blue"))
    (root / "notes.txt").write_text("not an image")
    (tmp_path / "secret.png").write_bytes(coloured_png())
    (root / "way-out.png").symlink_to(tmp_path / "secret.png")
    return root


@pytest.fixture
def archive(tmp_path: Path, folder: Path) -> Path:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(4):
            file.write(folder / f"{i}.png", f"deep/{i}.png")
        file.writestr("../../evil.png", b"x")
        file.writestr("bomb.png", b"\0" * (sources.MAX_IMAGE_BYTES + 1))
        file.writestr("readme.md", "no image")
    return path


CASES = ["folder", "zip", "list", "time", "scene"]


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, folder: Path, archive: Path) -> tuple[Path, dict[str, Any]]:
    listing = tmp_path / "photos" / "list.txt"
    listing.write_text("# some\n0.png\n\n3.png\nmissing.png\n../secret.png\n")
    video = write_video(tmp_path / "film.avi", [(0, 0, 200), (0, 200, 0), (200, 0, 0), (0, 0, 200)])
    paths = {"folder": (folder, {}), "zip": (archive, {}), "list": (listing, {})}
    films = {"time": (video, {"every_s": 0.5}), "scene": (video, {"scene": 0.5})}
    return {**paths, **films}[request.param]  # type: ignore[dict-item]


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_every_source_goes_on_from_anywhere(case: tuple[Path, dict[str, Any]]) -> None:
    """The whole promise of resuming stands on this."""
    path, options = case
    whole = [key(item) for item in opened(path, **options).items(0)]
    assert [k[0] for k in whole] == list(range(len(whole)))
    assert len(whole) >= 4
    for start in range(len(whole) + 1):
        assert [key(item) for item in opened(path, **options).items(start)] == whole[start:]
    total = opened(path, **options).total
    assert total in (None, len(whole))


def test_a_folder_gives_its_images_and_no_others(folder: Path) -> None:
    """Neither other files nor what a link points at outside of it."""
    items = list(opened(folder).items(0))
    assert [i.name for i in items] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "sub/고양이 사진.PNG",
        "way-out.png",
    ]
    assert items[-1].error == "lies outside the folder"
    assert all(i.data for i in items[:-1])


def test_a_hostile_archive_costs_no_memory_and_writes_nothing(archive: Path, tmp_path: Path) -> None:
    """A member that lies about its size, names with dots, a bomb: lines with errors."""
    before = sorted(tmp_path.rglob("*"))
    items = {i.name: i for i in opened(archive).items(0)}
    assert "larger than" in str(items["bomb.png"].error)
    assert items["../../evil.png"].data == b"x"
    assert sorted(tmp_path.rglob("*")) == before
    data = bytearray(archive.read_bytes())
    place = data.find(b"deep/1.png") + 40
    data[place : place + 8] = b"\xff" * 8
    broken = tmp_path / "broken.zip"
    broken.write_bytes(bytes(data))
    found = list(opened(broken).items(0))
    assert [i.name for i in found if i.error and "unpacked" in i.error] == ["deep/1.png"]
    assert len(found) == len(items)


def test_frames_come_by_time_and_by_scene(tmp_path: Path) -> None:
    """Four scenes of a second each at ten frames a second."""
    video = write_video(tmp_path / "film.avi", [(0, 0, 200), (0, 200, 0), (200, 0, 0), (0, 0, 200)])
    assert [i.at_s for i in opened(video, every_s=0.5).items(0)] == [0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert len(list(opened(video, every_s=0.01).items(0))) == 40, "every frame once, never twice"
    scenes = list(opened(video, scene=0.5).items(0))
    assert [i.at_s for i in scenes] == [0, 1.0, 2.0, 3.0]
    first = scenes[0].rgb
    assert first is not None
    assert first[20, 20].argmax() == 0, "red first"


@pytest.mark.parametrize(
    ("name", "data"), [("x.zip", b"PK\x03\x04 not really"), ("x.mp4", b"not a film"), ("x.avi", b"")]
)
def test_a_source_that_cannot_be_read_at_all_says_so(tmp_path: Path, name: str, data: bytes) -> None:
    """Before a job is spent on it ten times."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        opened(tmp_path / name)


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    """With what would have been one."""
    (tmp_path / "a.pdf").write_bytes(b"x")
    for name in ("a.pdf", "nothing"):
        with pytest.raises(InputError, match="a folder, a zip, a list"):
            sources.kind_of(tmp_path / name)
