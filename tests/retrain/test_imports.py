"""Big imports: as a job, in slices, resumed, cancelled; groups that stay together; versions described, compared, exported."""

from __future__ import annotations

import shutil
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from retrain import datasets
from retrain.formats import Record
from retrain.imports import import_folder, import_records
from retrain.jobs import HANDLERS
from retrain.splits import grouping
from sutdol import jobs, registry
from sutdol.context import Context
from sutdol.errors import DatasetError, NotFoundError
from sutdol.jobs import worker
from sutdol.jobs.rows import Running
from sutdol.tables import Dataset, DatasetItem, Event, Job, LabelRow, Sample
from sutdol.types import Box, Label
from tests.real_data import blood_cells
from tests.voc_folder import photo


@pytest.fixture
def ground(context: Context) -> Context:
    with context.database.begin() as session:
        registry.create_model(session, "kinds", task="classify", classes=[], family="timm", params={})
        registry.create_model(session, "many", task="multilabel", classes=[], family="timm", params={})
        registry.create_model(session, "cells", task="detect", classes=[], family="yolo", params={})
    return context


def rows(context: Context, table: type[Any]) -> list[Any]:
    with context.database.read() as session:
        return list(session.exec(select(table)).all())


def folder_of(path: Path, count: int) -> Path:
    for i in range(count):
        place = path / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"p{i // 4}_{i}.png").write_bytes(photo(i))
    return path


def send(context: Context, kind: str, **payload: Any) -> str:
    with context.database.begin() as session:
        job_id = jobs.send(session, kind, payload)
    assert job_id is not None
    return job_id


def job(context: Context, job_id: str) -> Job:
    with context.database.read() as session:
        return session.get_one(Job, job_id)


def test_an_import_as_a_job_goes_on_where_it_was_killed(
    ground: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand photos over a network drive are not read a second time because a machine was restarted."""
    folder = folder_of(tmp_path / "set", 200)
    job_id = send(ground, "retrain.import", model="kinds", path=str(folder), name="first", tags=["a"], memo="m")
    read = Record.read
    opened: list[str] = []

    def dies(record: Record) -> bytes:
        opened.append(record.name)
        if len(opened) == 150:
            raise KeyboardInterrupt
        return read(record)

    monkeypatch.setattr(Record, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        HANDLERS["retrain.import"](Running(ground, job(ground, job_id)))
    assert rows(ground, LabelRow) == []
    before = len(opened)
    monkeypatch.setattr(Record, "read", lambda record: opened.append(record.name) or read(record))  # type: ignore[func-returns-value]
    assert worker.run_pending(ground, HANDLERS) == 1
    done = job(ground, job_id)
    assert (done.state, done.result["imported"]) == ("done", 200)  # type: ignore[index]
    assert len(opened) - before <= 200 - 128, "two batches of 64 were through"
    [made] = rows(ground, Dataset)
    assert (made.name, made.tags, made.memo, made.job_id) == ("first", ["a"], "m", job_id)
    assert HANDLERS["retrain.import"](Running(ground, done))["dataset_id"] == made.id  # type: ignore[index]
    assert len(rows(ground, Dataset)) == 1
    assert not (ground.settings.home / "imports" / job_id).exists()


def test_a_job_whose_data_set_is_broken_says_so_once(ground: Context, tmp_path: Path) -> None:
    """It would be as broken at the next attempt."""
    job_id = send(ground, "retrain.import", model="kinds", path=str(tmp_path / "nowhere"))
    worker.run_pending(ground, HANDLERS)
    done = job(ground, job_id)
    assert (done.state, done.attempt) == ("failed", 1)
    assert "expected a folder, found nothing there" in str(done.error)


def test_a_folder_that_changed_between_two_attempts_is_read_anew_from_there(ground: Context, tmp_path: Path) -> None:
    """Numbers of photos are only as good as the listing they come from."""
    folder, stage = folder_of(tmp_path / "set", 100), tmp_path / "stage"

    def stop(done: int, total: int) -> None:
        if done == 90:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_folder(ground, "kinds", folder, stage=stage, progress=stop)
    (folder / "cat" / "a_new_one.png").write_bytes(photo(1000))
    (folder / "dog" / "p0_0.png").unlink()
    report = import_folder(ground, "kinds", folder, stage=stage).report
    assert report["imported"] == 100
    assert len(rows(ground, LabelRow)) == 100


def test_memory_does_not_grow_with_the_photos(ground: Context) -> None:
    """What is held at a time is a batch of photos, not the data set."""

    def peak(count: int) -> int:
        def records() -> Any:
            for i in range(count):
                yield Record(f"{i}.png", Label(classes=["a"]), data=photo(i))

        from retrain.formats import Import
        from retrain.imports import Plan, _import

        tracemalloc.start()
        folder = ground.settings.home / f"stage{count}"
        _import(ground, "kinds", Import("records"), records(), Plan(), folder, None)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(70)
    assert peak(1500) < peak(300) + 700_000, "1,200 photos more; their labels and names alone would be 2 MB"


RULES = [
    ("folder", "a/b/1.png", {}, "a/b"),
    ("folder:1", "a/b/1.png", {}, "a"),
    ("folder:1", "1.png", {}, None),
    ("name:^(p[0-9]+)_", "x/p7_1.png", {}, None),
    ("name:(p[0-9]+)_", "x/p7_1.png", {}, "p7"),
    ("column:camera", "1.png", {"camera": "남쪽"}, "남쪽"),
    ("column:camera", "1.png", {"camera": ""}, None),
    (None, "1.png", {}, None),
]


@pytest.mark.parametrize(("rule", "name", "columns", "expected"), RULES)
def test_a_group_is_made_of_a_folder_a_name_or_a_column(
    rule: str | None, name: str, columns: dict[str, str], expected: str | None
) -> None:
    """Sessions, patients and cameras stand in one of these three places."""
    assert grouping(rule)(Record(name, Label(), data=b"x", columns=columns)) == expected


@pytest.mark.parametrize("rule", ["patient", "name:(", "name:p1", "column:", "folder:x"])
def test_a_rule_that_is_none_is_refused_before_anything_is_read(ground: Context, tmp_path: Path, rule: str) -> None:
    """Not after an hour of reading."""
    with pytest.raises(DatasetError, match=r"group|e\.g\."):
        import_folder(ground, "kinds", folder_of(tmp_path / "set", 4), group=rule)
    with pytest.raises(DatasetError, match="expected a column 'camera', found none"):
        import_folder(ground, "kinds", folder_of(tmp_path / "set", 4), group="column:camera")


def test_groups_stay_together_now_and_in_later_imports(ground: Context, tmp_path: Path) -> None:
    """A patient who comes back next year belongs where the first photos are."""
    folder = folder_of(tmp_path / "set", 200)
    report = import_folder(ground, "kinds", folder, group="name:^(p[0-9]+)_").report
    assert {
        s: abs(n - e) <= 4 for (s, n), e in zip(report["splits"].items(), (140, 20, 40), strict=True)
    } == dict.fromkeys(("train", "val", "test"), True)
    split_of = {row.sample_group: row.split for row in rows(ground, LabelRow)}
    assert len(split_of) == 50
    assert len({(row.sample_group, row.split) for row in rows(ground, LabelRow)}) == 50
    shutil.rmtree(folder)
    later = tmp_path / "later" / "cat"
    later.mkdir(parents=True)
    for i in range(50):
        (later / f"p{i}_later.png").write_bytes(photo(1000 + i))
    report = import_folder(ground, "kinds", tmp_path / "later", group="name:^(p[0-9]+)_").report
    assert report["imported"] == 50
    assert "50 photos follow their group" in report["notes"][0]
    assert len({(row.sample_group, row.split) for row in rows(ground, LabelRow)}) == 50


def test_groups_of_unequal_size_still_give_the_shares_that_were_asked_for(ground: Context) -> None:
    """Counting groups instead of photos would make a test set of one huge patient."""
    records = []
    for group in range(60):
        records += [
            Record(f"{group}-{i}.png", Label(classes=["a"]), data=photo(100 * group + i), group=str(group))
            for i in range(1 + group % 7)
        ]
    report = import_records(ground, "kinds", records).report
    total = len(records)
    assert abs(report["splits"]["test"] / total - 0.2) < 0.03
    assert abs(report["splits"]["val"] / total - 0.1) < 0.03


def test_splits_that_divide_a_group_are_refused_with_the_remedy(ground: Context) -> None:
    """The data set says train and test for one patient; one of the two wishes cannot be fulfilled."""
    records = [
        Record("1.png", Label(classes=["a"]), data=photo(1), split="train", group="p"),
        Record("2.png", Label(classes=["a"]), data=photo(2), split="test", group="p"),
        *(Record(f"{i}.png", Label(classes=["a"]), data=photo(i), split="train") for i in range(3, 20)),
    ]
    with pytest.raises(DatasetError, match=r"divide 1 groups; the first, 'p': 1\.png, 2\.png.*--resplit"):
        import_records(ground, "kinds", records)
    import_records(ground, "kinds", records, resplit=True)
    assert len({row.split for row in rows(ground, LabelRow) if row.sample_group == "p"}) == 1


def test_many_labels_come_from_a_table(ground: Context, tmp_path: Path) -> None:
    """Rust and cracks on one photo; none of them on another; cameras in a column of their own."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = ["file,camera,labels"]
    for i in range(40):
        (folder / f"{i}.png").write_bytes(photo(i))
        lines.append(f"{i}.png,cam{i // 8},{['', 'rust', 'crack', 'rust|crack'][i % 4]}")
    (folder / "list.csv").write_text("\n".join(lines))
    report = import_folder(ground, "many", folder, group="column:camera").report
    assert (report["imported"], report["classes"]) == (40, {"crack": 20, "rust": 20})
    assert len({(row.sample_group, row.split) for row in rows(ground, LabelRow)}) == 5


def test_a_version_is_counted_described_and_compared(ground: Context) -> None:
    """What is in it, what changed since: the two questions before every training."""
    boxes = [Box("a", 0, 0, 20, 10), Box("b", 5, 5, 9, 9)]
    first = [Record(f"{i}.png", Label(boxes=boxes[: i % 3]), data=photo(i)) for i in range(30)]
    import_records(ground, "cells", first)
    with ground.database.begin() as session:
        old = datasets.freeze(session, "cells")
        datasets.describe(old, name="start", tags=["x", "x"], memo="first camera")
        session.add(old)
    import_records(ground, "cells", [Record("n.png", Label(boxes=[Box("new", 1, 1, 5, 5)]), data=photo(99))])
    with ground.database.begin() as session:
        changed = session.exec(select(LabelRow).where(LabelRow.split == "train")).first()
        assert changed is not None
        before = datasets.label_of(changed)
        changed.value = {"classes": [], "boxes": [{"label": "b", "x1": 1, "y1": 1, "x2": 4, "y2": 4}]}
        session.add(changed)
    with ground.database.begin() as session:
        new = datasets.freeze(session, "cells")
    with ground.database.read() as session:
        assert datasets.get_version(session, "cells", 1).tags == ["x"]
        assert datasets.get_version(session, "cells").number == 2
        with pytest.raises(NotFoundError, match="known: 1, 2"):
            datasets.get_version(session, "cells", 7)
        told = datasets.statistics(session, old)
        change = datasets.diff(session, old, new)
        nothing = datasets.diff(session, old, old)
    assert (told["images"], told["empty"], told["boxes_per_image"]) == (30, 10, 1.0)
    assert sum(told["classes"]["a"].values()) == 20
    assert told["imbalance"] == pytest.approx(told["classes"]["a"]["train"] / told["classes"]["b"]["train"])
    assert told["photo_px"] == {"min": 40, "median": 40, "max": 40}
    assert (told["box_share"]["p5"], told["box_share"]["p95"]) == (0.1, 0.5)
    assert (change["added"], change["removed"], change["relabelled"], change["moved"]) == (1, 0, 1, 0)
    assert change["relabelled_samples"] == [changed.sample_id]
    assert change["classes"] == ["new"]
    expected = Counter({"new": 1, "b": 1})
    expected.subtract(box.label for box in before.boxes)
    assert change["per_class"] == {k: v for k, v in sorted(expected.items()) if v}
    assert not any(nothing[k] for k in ("added", "removed", "relabelled", "moved", "per_class"))


def test_an_export_is_a_zip_in_the_store_that_imports_again(ground: Context, tmp_path: Path) -> None:
    """A colleague without access to our disk gets everything, and nothing is lost on the way."""
    import_records(ground, "kinds", [Record(f"{i}.png", Label(classes=["개"]), data=photo(i)) for i in range(20)])
    with ground.database.begin() as session:
        digest = datasets.freeze(session, "kinds").digest
    job_id = send(ground, "retrain.export", model="kinds", version=None, format="csv")
    worker.run_pending(ground, HANDLERS)
    done = job(ground, job_id)
    assert done.state == "done", done.error
    (tmp_path / "back.zip").write_bytes(ground.store.get(done.result["key"]))  # type: ignore[index]
    assert zipfile.ZipFile(tmp_path / "back.zip").testzip() is None
    with ground.database.begin() as session:
        registry.create_model(session, "copy", task="classify", classes=[], family="timm", params={})
    import_folder(ground, "copy", tmp_path / "back.zip")
    with ground.database.begin() as session:
        assert datasets.freeze(session, "copy").digest == digest


def test_labels_that_a_format_cannot_hold_are_refused_by_name(ground: Context, tmp_path: Path) -> None:
    """Boxes in a table of classes would be lost without a word."""
    import_records(
        ground, "cells", [Record("1.png", Label(boxes=[Box("a", 0, 0, 9, 9)]), data=photo(1))], ratios=(1, 0, 0)
    )
    with ground.database.begin() as session:
        version = datasets.freeze(session, "cells")
    with pytest.raises(DatasetError, match="choose voc or coco or yolo"):
        datasets.export(ground, version, tmp_path / "out", "csv")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(DatasetError, match="new or empty folder"):
        datasets.export(ground, version, tmp_path / "full", "voc")


@pytest.mark.parametrize("format", ["voc", "coco", "yolo"])
def test_the_real_blood_cells_go_out_and_come_back_identical(ground: Context, tmp_path: Path, format: str) -> None:
    """4,886 boxes and the given splits, through every format that holds boxes: one digest tells."""
    import_folder(ground, "cells", blood_cells())
    with ground.database.begin() as session:
        version = datasets.freeze(session, "cells")
        registry.create_model(session, "back", task="detect", classes=[], family="yolo", params={})
    datasets.export(ground, version, tmp_path / "out", format)
    report = import_folder(ground, "back", tmp_path / "out").report
    assert (report["boxes"], report["left_out"], report["clipped_boxes"]) == (4886, [], 0)
    assert report["splits"] == {"train": 205, "val": 87, "test": 72}
    with ground.database.begin() as session:
        assert datasets.freeze(session, "back").digest == version.digest
        assert len(session.exec(select(DatasetItem)).all()) == 2 * 364


@pytest.mark.parametrize("format", ["voc", "coco", "yolo"])
def test_supervision_reads_our_exports_and_agrees(ground: Context, tmp_path: Path, format: str) -> None:
    """Somebody else's reader is the judge of what we write."""
    import supervision

    import_folder(ground, "cells", blood_cells())
    with ground.database.begin() as session:
        version = datasets.freeze(session, "cells")
    out = tmp_path / "out"
    datasets.export(ground, version, out, format)
    found: Counter[str] = Counter()
    area = 0.0
    for split in ("train", "val", "test"):
        if format == "coco":
            read = supervision.DetectionDataset.from_coco(
                str(out / "images" / split), str(out / "annotations" / f"instances_{split}.json")
            )
        elif format == "yolo":
            read = supervision.DetectionDataset.from_yolo(
                str(out / "images" / split), str(out / "labels" / split), str(out / "data.yaml")
            )
        elif split == "train":
            read = supervision.DetectionDataset.from_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations"))
        else:
            continue
        for _, detections in ((path, read.annotations[path]) for path in read.image_paths):
            found.update(read.classes[i] for i in detections.class_id)
            # It takes the corners of Pascal VOC as counted from 1 and moves the first one; we take them as written.
            first = detections.xyxy[:, :2] + (1 if format == "voc" else 0)
            area += float(((detections.xyxy[:, 2:] - first).prod(axis=1)).sum())
    assert found == {"Platelets": 361, "RBC": 4153, "WBC": 372}
    with ground.database.read() as session:
        ours = sum(
            (b.x2 - b.x1) * (b.y2 - b.y1)
            for item in datasets.items(session, version.id)
            for b in datasets.label_of(item).boxes
        )
    assert area == pytest.approx(ours, rel=1e-3)


def test_events_and_samples_tell_of_an_import(ground: Context, tmp_path: Path) -> None:
    """The console lists what happened; the store holds what was seen."""
    import_folder(ground, "kinds", folder_of(tmp_path / "set", 8))
    assert [e.kind for e in rows(ground, Event)][-1] == "dataset.imported"
    assert all(ground.store.has(f"samples/{s.id}") for s in rows(ground, Sample))
