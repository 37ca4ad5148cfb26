"""Every line of FORMATS keeps the same promises, reading and writing; a format that is added is tested by being there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrain import formats
from retrain.formats import FORMATS, Import, Photo, Record
from retrain.imports import import_folder
from retrain.staging import canonical
from sutdol import registry
from sutdol.context import Context
from sutdol.errors import DatasetError
from sutdol.images import admit
from sutdol.tables import LabelRow, Sample
from sutdol.types import Box, Label, Split
from tests.voc_folder import photo, write_voc

CLASSES = ["dog", "고양이"]
SPLITS: dict[int, Split] = {1: "train", 2: "train", 3: "val", 4: "test"}


def label(number: int, task: str) -> Label:
    name = CLASSES[number % 2]
    if task != "detect":
        return Label(classes=[name])
    return Label(boxes=[Box(name, 1, 2, 20, 21)])


def imagefolder(folder: Path) -> Path:
    for number, split in SPLITS.items():
        place = folder / split / CLASSES[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(photo(number))
    return folder


def voc(folder: Path) -> Path:
    photos = {str(i): [(CLASSES[i % 2], 1, 2, 20, 21)] for i in SPLITS}
    return write_voc(folder, photos, splits={"train": ["1", "2"], "val": ["3"], "test": ["4"]})


def coco(folder: Path) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val", "test"):
        numbers = [i for i, s in SPLITS.items() if s == split]
        (folder / f"{split}2017").mkdir()
        images = ", ".join(f'{{"id": {i}, "file_name": "{i}.png", "width": 40, "height": 30}}' for i in numbers)
        notes = ", ".join(
            f'{{"id": {i}, "image_id": {i}, "category_id": {i % 2 + 1}, "bbox": [1, 2, 19, 19]}}' for i in numbers
        )
        categories = '[{"id": 1, "name": "dog"}, {"id": 2, "name": "고양이"}]'
        text = f'{{"images": [{images}],\n"annotations": [{notes}],\n"categories": {categories}}}'
        (folder / "annotations" / f"instances_{split}2017.json").write_text(text, encoding="utf-8")
        for i in numbers:
            (folder / f"{split}2017" / f"{i}.png").write_bytes(photo(i))
    return folder


def yolo(folder: Path) -> Path:
    for number, split in SPLITS.items():
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
        (folder / "images" / split / f"{number}.png").write_bytes(photo(number))
        (folder / "labels" / split / f"{number}.txt").write_text(
            f"{number % 2} {10.5 / 40} {11.5 / 30} {19 / 40} {19 / 30}\n"
        )
    (folder / "data.yaml").write_text("names:\n  0: dog\n  1: 고양이\nnc: 2\n", encoding="utf-8")
    return folder


def table(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = [f"{i}.png,{split},{int(i % 2 == 0)},{int(i % 2 == 1)}" for i, split in SPLITS.items()]
    (folder / "photos.csv").write_text("\n".join(["image,split,dog,고양이", *lines]), encoding="utf-8")
    for number in SPLITS:
        (folder / f"{number}.png").write_bytes(photo(number))
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "imagefolder": imagefolder,
    "voc": voc,
    "coco": coco,
    "yolo": yolo,
    "csv": table,
}


@pytest.fixture(params=sorted(FORMATS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    assert request.param in MAKERS, f"write a maker for the format {request.param}"
    return request.param, MAKERS[request.param](tmp_path / "데이터 set")


def read(made: tuple[str, Path]) -> Import:
    return formats.read(made[1], format=made[0])


def test_a_format_is_recognised_by_its_looks(made: tuple[str, Path]) -> None:
    """People should not have to know what their folder is called."""
    assert formats.detect_format(made[1]) == made[0]
    assert formats.read(made[1]).format == made[0]


def test_photos_labels_and_splits_come_out(made: tuple[str, Path]) -> None:
    """The whole of it: four photos, two classes, the given splits, the right bytes, nothing left out."""
    found = read(made)
    assert sorted(str(r.split) for r in found.records) == ["test", "train", "train", "val"]
    assert formats.count_labels(found.records) == {"dog": 2, "고양이": 2}
    assert sorted(r.read() for r in found.records) == sorted(p.read_bytes() for p in made[1].rglob("*.png"))
    assert found.left_out == []
    assert found.expected == 4
    assert all(not Path(r.name).is_absolute() for r in found.records)


def test_reading_twice_gives_the_same(made: tuple[str, Path]) -> None:
    """The order of files on disk must not decide who is in the test split."""
    assert read(made) == read(made)


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_what_is_no_data_set_is_refused_in_words(made: tuple[str, Path], tmp_path: Path, what: str) -> None:
    """A typo in a path is the most common mistake of all."""
    path = tmp_path / what
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        path.mkdir()
    with pytest.raises(DatasetError, match=what):
        read((made[0], path))
    with pytest.raises(DatasetError, match=what):
        formats.detect_format(path)


def test_a_file_that_is_no_photo_is_reported_by_name(made: tuple[str, Path]) -> None:
    """Silence about a TIFF would look like an import of everything."""
    folder = next(p.parent for p in sorted(made[1].rglob("*.png")))
    (folder / "scan.tiff").write_bytes(b"II*\x00")
    found = read(made)
    if made[0] not in ("csv", "coco"):  # their tables name what belongs to them
        assert [Path(e.file).name for e in found.left_out] == ["scan.tiff"]
    assert len(found.records) == 4


NASTY = [
    Label(),
    Label(boxes=[Box("dog", 0, 0, 40, 30)]),
    Label(boxes=[Box("고양이", 0.25, 29.5, 39.999, 30), Box("dog", 3, 3, 4, 4)]),
]


def labels_for(name: str) -> list[Label]:
    """Boxes on the border and empty photos where the format can hold them, one class or any number otherwise."""
    tasks = FORMATS[name].tasks
    if "detect" in tasks:
        return [label(1, "detect"), label(2, "detect"), *NASTY]
    every = [Label(classes=["dog"]), Label(classes=["고양이"])]
    return [*every, Label(), Label(classes=sorted(CLASSES))] if "multilabel" in tasks else every


def outgoing(name: str) -> list[Photo]:
    photos = []
    for number, value in enumerate(labels_for(name)):
        data = photo(number)
        split: Split = ("train", "val", "test")[number % 3]  # type: ignore[assignment]
        photos.append(Photo(f"같은{number}", ".png", (40, 30), value, split, lambda data=data: data))
    return photos


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_was_written_comes_back_identical(name: str, tmp_path: Path, context: Context) -> None:
    """Boxes to the last digit, splits, bytes; through the import that people use, and the same after a second round."""
    photos = outgoing(name)
    writer = FORMATS[name].write(make(tmp_path / "out"), CLASSES)
    for one in photos:
        writer.add(one)
    writer.close()
    assert formats.detect_format(tmp_path / "out") == name
    with context.database.begin() as session:
        registry.create_model(session, "back", task=FORMATS[name].tasks[-1], classes=[], family="yolo", params={})
    report = import_folder(context, "back", tmp_path / "out").report
    assert (report["imported"], report["left_out"], report["clipped_boxes"]) == (len(photos), [], 0)
    with context.database.read() as session:
        for one in photos:
            sample_id = admit(one.read()).sample_id
            row = session.get_one(LabelRow, ("back", sample_id))
            assert canonical(Label(row.value["classes"], [Box(**b) for b in row.value["boxes"]])) == canonical(
                one.label
            )
            assert row.split == one.split
            assert session.get_one(Sample, sample_id).width_px == 40


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_export_is_read_the_same_whatever_the_photos_are_called(name: str, tmp_path: Path) -> None:
    """One stem in two splits must not overwrite a label, as it does in tools that people know: a second file is refused."""
    photos = outgoing(name)
    writer = FORMATS[name].write(make(tmp_path / "out"), CLASSES)
    writer.add(photos[0])
    with pytest.raises(FileExistsError):
        writer.add(photos[0])
    writer.close()
    assert len(formats.read(tmp_path / "out", format=name).records) == 1


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_record_names_its_file_relative_to_the_data_set(made: tuple[str, Path]) -> None:
    """Paths of the server do not belong into reports."""
    assert all(str(made[1]) not in record.name for record in read(made).records)
    assert all(isinstance(record, Record) for record in read(made).records)
