"""An import is whole or not at all, a split is for ever, a dataset version never changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlmodel import select

from retrain import datasets
from retrain.datasets import assign_splits, freeze, import_folder, import_records
from retrain.formats import Record
from sutdol import registry
from sutdol.context import Context
from sutdol.errors import DatasetError, NotFoundError
from sutdol.tables import Dataset, DatasetItem, Event, LabelRow, Model, Sample
from sutdol.types import Box, Label, Split
from tests.real_data import blood_cells
from tests.voc_folder import annotation, photo, turned_photo, write_voc

BOX = ("cat", 1, 2, 20, 21)


@pytest.fixture
def ground(context: Context) -> Context:
    """Two models: `kinds` classifies, `cells` detects."""
    with context.database.begin() as session:
        registry.create_model(session, "kinds", task="classify", classes=["old"], family="timm", params={})
        registry.create_model(session, "cells", task="detect", classes=[], family="yolo", params={})
    return context


def record(number: int, name: str = "a", **more: Any) -> Record:
    return Record(f"{number}.png", Label(classes=[name]), data=photo(number), **more)


def rows(context: Context, table: type[Any]) -> list[Any]:
    with context.database.read() as session:
        return list(session.exec(select(table)).all())


def splits(context: Context) -> dict[str, str]:
    return {row.sample_id: row.split for row in rows(context, LabelRow)}


def test_everything_arrives_in_one_piece(ground: Context) -> None:
    """Bytes, samples, labels, classes, the report and the event: what an import consists of."""
    done = import_records(
        ground, "kinds", [record(1, "개"), record(2, "b", split="val"), record(3, "old", split="test")]
    )
    labels = rows(ground, LabelRow)
    assert {(r.value["classes"][0], r.source, r.weight, r.arm) for r in labels} == {
        (name, "imported", 1.0, None) for name in ("개", "b", "old")
    }
    assert {s.id for s in rows(ground, Sample)} == {r.sample_id for r in labels}
    assert {ground.store.get(f"samples/{s.id}") for s in rows(ground, Sample)} == {photo(i) for i in (1, 2, 3)}
    for sample in rows(ground, Sample):
        assert (sample.width_px, sample.height_px, sample.media_type) == (40, 30, "image/png")
        assert sample.size_bytes == len(ground.store.get(f"samples/{sample.id}"))
    with ground.database.read() as session:
        assert session.get_one(Model, "kinds").classes == ["old", "b", "개"]
        assert session.exec(select(Event.kind).where(Event.kind == "dataset.imported")).all() == ["dataset.imported"]
    assert done.report["imported"] == 3
    assert done.report["classes"] == {"b": 1, "old": 1, "개": 1}
    assert rows(ground, Dataset)[0].report == done.report


def test_a_voc_folder_arrives_with_its_splits_and_its_complaints(ground: Context, tmp_path: Path) -> None:
    """The road from files to rows, with one broken photo on it: reported, and the others are in."""
    photos = {"a": [BOX], "b": [], "c": [BOX, ("dog", 5, 5, 5, 5)], "broken": [BOX], "short": [BOX]}
    folder = write_voc(
        tmp_path / "voc", photos, splits={"train": ["a", "broken", "short"], "val": ["b"], "test": ["c"]}
    )
    (folder / "JPEGImages" / "broken.png").write_bytes(b"no photo")
    (folder / "JPEGImages" / "short.png").write_bytes(photo(9)[:-400])
    report = import_folder(ground, "cells", folder).report
    assert (report["imported"], report["boxes"], report["splits"]) == (3, 2, {"train": 1, "val": 1, "test": 1})
    assert [(e["file"], e["line"]) for e in report["left_out"]] == [
        ("Annotations/broken.xml", 0), ("Annotations/c.xml", 19), ("Annotations/short.xml", 0),
    ]  # fmt: skip
    assert report["left_out_count"] == 3


def test_a_photo_turned_by_exif_is_imported_upright(ground: Context, tmp_path: Path) -> None:
    """Boxes belong to what people see; with the size of the lying photo they would be somewhere else."""
    folder = write_voc(tmp_path / "voc", {"lying": [], "upright": []})
    for stem, (width, height) in {"lying": (40, 30), "upright": (30, 40)}.items():
        (folder / "JPEGImages" / f"{stem}.png").unlink()
        jpeg = turned_photo() if stem == "upright" else turned_photo() + b"\x00"
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg)
        xml = annotation([("cat", 1, 2, 29, 29)], width=width, height=height)
        (folder / "Annotations" / f"{stem}.xml").write_text(xml)
    report = import_folder(ground, "cells", folder).report
    assert [(s.width_px, s.height_px) for s in rows(ground, Sample)] == [(30, 40)]
    assert [e["file"] for e in report["left_out"]] == ["Annotations/lying.xml"]
    assert "EXIF" in report["left_out"][0]["reason"]


def test_the_same_photo_twice_is_merged_and_told(ground: Context) -> None:
    """Copies would count double in training and leak between splits."""
    copies = [
        record(1, split="train"),
        Record("copy.png", Label(classes=["a"]), data=photo(1), split="test"),
        record(2, split="train"),
    ]
    report = import_records(ground, "kinds", copies, ratios=(1, 0, 0)).report
    assert report["imported"] == 2
    assert report["merged"] == [{"file": "copy.png", "line": 0, "reason": "the same photo as 1.png"}]
    assert Counter(splits(ground).values()) == {"test": 1, "train": 1}


def test_one_photo_with_two_labels_is_left_out_altogether(ground: Context) -> None:
    """Nobody can say which of the two is right, so neither is learned."""
    both = [record(1, "a"), Record("copy.png", Label(classes=["b"]), data=photo(1)), record(2)]
    report = import_records(ground, "kinds", both).report
    assert report["imported"] == 1
    assert [e["file"] for e in report["left_out"]] == ["1.png", "copy.png"]
    assert "labelled differently as copy.png" in report["left_out"][0]["reason"]


def test_importing_again_changes_nothing(ground: Context) -> None:
    """A second try after a crash, or after new photos were added to the folder."""
    first = [record(i) for i in range(10)]
    import_records(ground, "kinds", first)
    before = splits(ground)
    report = import_records(ground, "kinds", [*first, record(10)]).report
    assert (report["imported"], report["already_there"]) == (1, 10)
    assert {k: v for k, v in splits(ground).items() if k in before} == before


def test_a_photo_that_people_labelled_otherwise_keeps_their_label(ground: Context) -> None:
    """An import must not overwrite an answer; it says so instead."""
    import_records(ground, "kinds", [record(1, "a"), record(2, "a")])
    report = import_records(ground, "kinds", [record(1, "b"), record(2, "a")]).report
    assert report["imported"] == 0
    assert "another label (imported)" in report["left_out"][0]["reason"]
    assert {r.value["classes"][0] for r in rows(ground, LabelRow)} == {"a"}


def test_a_crash_leaves_no_rows(ground: Context) -> None:
    """All in or not in: a full disk at the last photo must not leave half a data set."""

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_records(ground, "kinds", [record(i) for i in range(3)], progress=stop)
    assert rows(ground, Sample) == rows(ground, LabelRow) == rows(ground, Dataset) == []
    assert import_records(ground, "kinds", [record(i) for i in range(3)]).report["imported"] == 3


@pytest.mark.parametrize(
    ("model", "label", "expected"),
    [
        ("cells", Label(classes=["a"]), "0.png: cells detects objects, expected boxes, found the class 'a'"),
        (
            "kinds",
            Label(boxes=[Box("a", 0, 0, 1, 1)]),
            "0.png: kinds is a classify model, expected classes, found boxes",
        ),
        ("kinds", Label(), "0.png: kinds classifies, expected one class, found 0"),
        ("kinds", Label(classes=["a", "b"]), "found 2"),
    ],
)
def test_labels_of_the_wrong_task_are_refused(ground: Context, model: str, label: Label, expected: str) -> None:
    """The wrong model was named; importing half of it would help nobody."""
    with pytest.raises(DatasetError, match=expected):
        import_records(ground, model, [Record("0.png", label, data=photo(0))])
    assert rows(ground, LabelRow) == []


def test_nothing_usable_is_an_error_that_names_the_first_reason(ground: Context) -> None:
    """An empty import that looks like a success is found a day later."""
    with pytest.raises(DatasetError, match=r"found none; the first: x\.png"):
        import_records(ground, "kinds", [Record("x.png", Label(classes=["a"]), data=b"junk")])
    with pytest.raises(DatasetError, match="found none"):
        import_records(ground, "kinds", [])
    with pytest.raises(NotFoundError, match="known: cells, kinds"):
        import_records(ground, "nothing", [])


@pytest.mark.parametrize(("limit", "kept"), [(4, 4), (0.5, 10), (1.0, 20), (100, 20)])
def test_a_part_of_the_training_photos_can_come_first_and_the_rest_later(
    ground: Context, limit: Any, kept: int
) -> None:
    """A first version on a third of the data leaves something to gain; val and test are whole from the start."""
    records = [record(i, split=("train" if i < 20 else "val" if i < 25 else "test")) for i in range(30)]  # type: ignore[arg-type]
    report = import_records(ground, "kinds", records, limit_train=limit).report
    assert report["splits"] == {"train": kept, "val": 5, "test": 5}
    assert report["not_chosen"] == 20 - kept
    first = splits(ground)
    assert import_records(ground, "kinds", records).report["imported"] == 20 - kept
    assert {k: v for k, v in splits(ground).items() if k in first} == first


@pytest.mark.parametrize("limit", [0, -1, 0.0, 1.5])
def test_a_part_that_is_none_is_refused(ground: Context, limit: Any) -> None:
    """Zero training photos is a typing mistake."""
    with pytest.raises(DatasetError, match="limit_train"):
        import_records(ground, "kinds", [record(1)], limit_train=limit)


def test_only_the_named_photos_are_imported(ground: Context, tmp_path: Path) -> None:
    """A list of names, as a demo or a study has it; a wrong name is told."""
    folder = write_voc(tmp_path, {"a": [BOX], "B": [BOX], "c": [BOX]})
    with pytest.raises(DatasetError, match="no photo named 'nope'"):
        import_folder(ground, "cells", folder, only=["a", "nope"])
    assert import_folder(ground, "cells", folder, only=["a", "b"]).report["imported"] == 2


def test_photos_of_one_group_stay_together(ground: Context) -> None:
    """Ten photos of one patient in train and two in test would measure memory, not skill."""
    records = [record(i, group=f"patient {i // 5}") for i in range(50)]
    import_records(ground, "kinds", records)
    with ground.database.read() as session:
        of_sample = {row.sample_id: row.split for row in session.exec(select(LabelRow))}
    from sutdol.images import admit

    groups: dict[str, set[str]] = {}
    for r in records:
        groups.setdefault(str(r.group), set()).add(of_sample[admit(r.read()).sample_id])
    assert all(len(found) == 1 for found in groups.values())
    assert Counter(of_sample.values()) == {"train": 35, "test": 10, "val": 5}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("train", "test"), {"train": 16, "val": 2, "test": 2}),  # 10 % of 18 training photos
        (("train", "val"), {"train": 14, "val": 2, "test": 4}),
        (("train",), {"train": 14, "val": 2, "test": 4}),
    ],
)
def test_a_split_that_the_data_set_lacks_is_cut_from_train(
    ground: Context, given: Sequence[Split], expected: dict[str, int]
) -> None:
    """Without val nothing can be calibrated, without test nothing can be proved."""
    records = [record(i, split=given[-1] if i < 2 and len(given) > 1 else "train") for i in range(20)]
    report = import_records(ground, "kinds", records).report
    assert report["splits"] == expected
    assert "cut from its train" in report["notes"][0]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, {}),
        ({"a": 1}, {"train": 1}),
        ({"a": 2}, {"train": 2}),
        ({"a": 100}, {"train": 70, "val": 10, "test": 20}),
        ({"a": 10, "b": 10, "c": 10}, {"train": 21, "val": 3, "test": 6}),
        ({str(i): 2 for i in range(50)}, {"train": 70, "val": 10, "test": 20}),
    ],
)
def test_units_are_shared_out_by_class(sizes: dict[str, int], expected: dict[str, int]) -> None:
    """Many small classes must still give a test set, and no class may lose all its training photos."""
    units = [(f"{name}-{i}", name) for name, n in sizes.items() for i in range(n)]
    found = assign_splits(units)
    assert Counter(found) == expected
    assert found == assign_splits(units)
    shuffled = units[::-1]
    assert dict(zip(shuffled, assign_splits(shuffled), strict=True)) == dict(zip(units, found, strict=True))
    for name in sizes:
        assert "train" in {split for (_, stratum), split in zip(units, found, strict=True) if stratum == name}


@pytest.mark.parametrize("ratios", [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1)])
def test_ratios_that_do_not_add_up_are_refused(ratios: tuple[float, float, float]) -> None:
    """Shares of something else than the whole are a mistake."""
    with pytest.raises(DatasetError, match="add up to 1"):
        assign_splits([("a", "b")], ratios)


def test_a_dataset_version_is_a_copy_that_never_changes(ground: Context) -> None:
    """A training can be repeated, whatever people answered since."""
    import_records(ground, "kinds", [record(i, split=s) for i, s in enumerate(("train", "val", "test"))])  # type: ignore[arg-type]
    with ground.database.begin() as session:
        first = freeze(session, "kinds")
        assert freeze(session, "kinds").id == first.id
    assert (first.number, first.counts["splits"]) == (1, {"test": 1, "train": 1, "val": 1})
    with ground.database.begin() as session:
        row = session.exec(select(LabelRow).where(LabelRow.split == "train")).one()
        row.value, row.source = {"classes": ["b"], "boxes": []}, "annotation"
        session.add(row)
    with ground.database.begin() as session:
        second = freeze(session, "kinds")
    assert second.number == 2
    assert second.digest != first.digest
    assert second.test_digest == first.test_digest
    with ground.database.read() as session:
        assert {datasets.label_of(i).classes[0] for i in datasets.items(session, first.id)} == {"a"}
        assert [i.split for i in datasets.items(session, second.id, "test")] == ["test"]
        ids = [i.sample_id for i in datasets.items(session, second.id)]
    assert ids == sorted(ids)
    assert len(ids) == 3


def test_the_digest_does_not_depend_on_how_boxes_are_ordered(ground: Context) -> None:
    """Label Studio returns regions in any order; that is no new data."""
    boxes = [Box("a", 0, 0, 5, 5), Box("b", 1, 1, 9, 9)]
    import_records(ground, "cells", [Record("1", Label(boxes=boxes), data=photo(1))])
    with ground.database.begin() as session:
        before = freeze(session, "cells").digest
        row = session.exec(select(LabelRow)).one()
        row.value = msgspec.to_builtins(Label(boxes=boxes[::-1]))
        session.add(row)
    with ground.database.begin() as session:
        assert freeze(session, "cells").digest == before


def test_a_model_without_labels_cannot_be_frozen(ground: Context) -> None:
    """The message says what to do first."""
    with ground.database.begin() as session, pytest.raises(DatasetError, match="import a data set"):
        freeze(session, "kinds")


def test_the_real_blood_cells_come_in_whole(ground: Context) -> None:
    """364 real photos, 4,886 boxes, two reported by file, the given splits; then a third of the training part alone."""
    folder = blood_cells()
    report = import_folder(ground, "cells", folder, limit_train=1 / 3).report
    assert report["splits"] == {"train": 68, "val": 87, "test": 72}
    rest = import_folder(ground, "cells", folder).report
    assert (rest["imported"], rest["already_there"]) == (137, 227)
    assert report["boxes"] + rest["boxes"] == 4886
    assert [e["file"] for e in rest["left_out"]] == [
        "Annotations/BloodImage_00338.xml",
        "Annotations/BloodImage_00343.xml",
    ]
    with ground.database.begin() as session:
        version = freeze(session, "cells")
        assert version.counts["splits"] == {"test": 72, "train": 205, "val": 87}
        assert len(session.exec(select(DatasetItem)).all()) == 364
    assert version.classes == ["Platelets", "RBC", "WBC"]
