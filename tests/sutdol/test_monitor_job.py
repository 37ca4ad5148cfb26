"""The monitor over a real database and a real tiny model: what counts, what alarms, what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa
from sqlmodel import select

from sutdol import images, jobs, registry
from sutdol.appearance import appearance
from sutdol.context import Context, open_context
from sutdol.errors import SutdolError
from sutdol.jobs.rows import Running, claim, finish
from sutdol.monitor import answers, columns, drift, job, report
from sutdol.predictor import Predictor
from sutdol.settings import load
from sutdol.tables import (
    DatasetItem,
    DatasetVersion,
    DriftState,
    Event,
    Job,
    LabelRow,
    LabelTask,
    ModelVersion,
    PredictionRow,
    Snapshot,
    VersionProfile,
    new_id,
    now,
)
from sutdol.types import InputSpec, Manifest
from tests.job_processes import postgres
from tests.tiny_models import CLASSES, classifier_bundle, coloured_png

MODEL = "tiny"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    opened = open_context(load(home=tmp_path / "home"))
    classifier_bundle(opened, MODEL)
    yield opened
    opened.database.close()


def run(context: Context) -> dict[str, Any]:
    """The handler as a worker calls it."""
    with context.database.begin() as session:
        job_id = jobs.send(session, "monitor", {"model": MODEL})
    assert job_id is not None
    row = claim(context.database, job_id, "test", lease_s=60)
    assert row is not None
    result = job.handle(Running(context, row))
    finish(context.database, row, result)
    return result[MODEL]


def predict(context: Context, n: int, *, seed: int = 0, version: int = 1, **values: Any) -> list[str]:
    """`n` logged predictions with ordinary numbers; `values` replace some, arrays one by one. Their sample ids."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "confidence": rng.beta(8, 1, n),
        "margin": rng.beta(5, 1, n),
        "ood_score": rng.normal(0, 1, n),
        "brightness": rng.normal(0.5, 0.1, n),
        "sharpness": rng.normal(0.1, 0.02, n),
        "colour": rng.normal(0.0, 0.05, n),
        "inclusion_probability": np.full(n, 0.2),
        "said": np.array(CLASSES)[rng.integers(0, 3, n)],
        "sample_id": np.array([f"{i:08d}-{seed:03d}" for i in range(n)]),
        "fingerprint": np.array([f"{seed:08x}{i:08x}" for i in range(n)]),
    } | values
    at = now() - 60
    rows = []
    for i in range(n):
        one = {k: (v[i].item() if isinstance(v, np.ndarray) else v) for k, v in columns.items()}
        said = one.pop("said")
        rows.append(
            PredictionRow(
                id=new_id(),
                at=at + i * 1e-4,
                model=MODEL,
                version=version,
                width_px=8,
                height_px=8,
                raw_confidence=0.9,
                answer={"classes": [{"label": said, "index": 0, "confidence": 0.9}], "boxes": []},
                arms=[],
                duration_ms=1.0,
                **one,
            )
        )
    with context.database.begin() as session:
        session.add_all(rows)
    return [row.sample_id for row in rows]


def label(context: Context, sample_ids: list[str], *, right: bool = True, state: str = "annotated") -> None:
    """A drawn task for each, answered with what the model said, or with another class."""
    with context.database.begin() as session:
        for sample_id in sample_ids:
            query = select(PredictionRow).where(PredictionRow.sample_id == sample_id)
            prediction = session.exec(query.order_by(PredictionRow.id)).first()
            assert prediction is not None
            said = prediction.answer["classes"][0]["label"]
            truth = said if right else CLASSES[(CLASSES.index(said) + 1) % 3]
            session.add(
                LabelTask(
                    model=MODEL,
                    sample_id=sample_id,
                    prediction_id=prediction.id,
                    version=prediction.version,
                    arm="drawn",
                    reason="drawn",
                    inclusion_probability=prediction.inclusion_probability,
                    priority=0.1,
                    uncertainty=0.1,
                    answer=prediction.answer,
                    state=state,
                )
            )
            if state == "annotated":
                value = {"classes": [truth], "boxes": []}
                session.add(
                    LabelRow(
                        model=MODEL, sample_id=sample_id, value=value, source="annotation", arm="drawn", split="train"
                    )
                )


def accuracy(context: Context, days: int = 7) -> report.Accuracy:
    with context.database.read() as session:
        return report.accuracy(session, MODEL, days=days)


def drift_now(context: Context) -> report.Drift:
    with context.database.read() as session:
        return report.drift_of(session, MODEL)


def events(context: Context, kind: str) -> list[Event]:
    with context.database.read() as session:
        return list(session.exec(select(Event).where(Event.kind == kind)))


def test_drift_is_learned_noticed_told_and_over_with_the_next_version(context: Context) -> None:
    """The whole life of an alarm: event, training trigger, state for whoever reads, and a new beginning."""
    assert drift_now(context).state == "unknown"
    predict(context, 150, seed=1)
    run(context)
    assert (drift_now(context).state, drift_now(context).text) == ("learning", "150 of 200 images collected")
    predict(context, 400, seed=2)
    run(context)
    assert (drift_now(context).state, drift_now(context).reference) == ("quiet", 500)
    predict(context, 60, seed=3, brightness=np.random.default_rng(3).normal(0.2, 0.1, 60))
    assert run(context)["alarms"] == ["brightness-"]
    found = drift_now(context)
    assert (found.state, found.alarms) == ("alarm", ["brightness-"])
    assert "brightness is lower than usual" in found.text
    assert found.since is not None
    assert [e.model for e in events(context, "drift.alarm")] == [MODEL]
    with context.database.read() as session:
        assert session.exec(select(Job).where(Job.kind == "retrain.trigger")).one().payload == {"model": MODEL}
    run(context)
    assert len(events(context, "drift.alarm")) == 1
    classifier_bundle(context, MODEL)
    run(context)
    assert (drift_now(context).state, drift_now(context).version) == ("learning", 2)
    assert len(events(context, "drift.over")) == 1


def test_a_repeated_image_is_no_news(context: Context) -> None:
    """A client that sends one picture five hundred times has not changed the world."""
    predict(context, 500, seed=1)
    run(context)
    same = np.array(["same"] * 500)
    predict(context, 500, seed=2, sample_id=same, brightness=np.full(500, 0.95))
    assert run(context) == {"taken": 500, "seen": 501, "alarms": []}


def test_a_strange_world_from_the_first_image_on_is_not_learned_as_usual(context: Context) -> None:
    """`unfamiliar_at` of the tiny model is 50."""
    predict(context, 300, seed=1, ood_score=np.full(300, 60.0))
    assert run(context)["alarms"] == ["unfamiliar"]
    assert drift_now(context).reference == 0


def test_accuracy_is_refused_until_there_are_enough_labels_and_honest_after(context: Context) -> None:
    """Thirty labels; before that the number that is missing."""
    ids = predict(context, 400, seed=1)
    label(context, ids[:20])
    run(context)
    assert (accuracy(context).overall.accuracy, accuracy(context).overall.needed) == (None, 10)
    label(context, ids[20:80])
    label(context, ids[80:100], right=False)
    label(context, ids[100:104], state="skipped")
    forget_snapshots(context)
    run(context)
    found = accuracy(context)
    assert found.overall.labels == 100
    assert found.overall.accuracy == pytest.approx(0.8, abs=0.05)
    assert (found.overall.low or 1) < 0.8 < (found.overall.high or 0)
    assert found.overall.missing_width > 0
    assert found.drawn == {"labelled": 100, "waiting": 0, "unlabelable": 4}
    assert set(found.versions) == {"1"}
    assert set(found.classes) == set(CLASSES)
    arm = found.learning["arms"]["drawn"]
    assert (arm["labels"], arm["errors"]) == (100, 20)


def test_a_prediction_on_what_its_version_was_trained_on_does_not_count(context: Context) -> None:
    """Nor one on the same picture in another file; an item of the test split does."""
    data = [coloured_png("red", seed=i) for i in range(60)]
    admitted = [images.admit(d) for d in data]
    with context.database.begin() as session:
        version = DatasetVersion(model=MODEL, number=1, digest="d", test_digest="t", classes=list(CLASSES), counts={})
        session.add(version)
        session.flush()
        for i, image in enumerate(admitted):
            context.store.put(f"samples/{image.sample_id}", image.data)
            session.add(
                DatasetItem(
                    dataset_version_id=version.id,
                    sample_id=image.sample_id,
                    split="test" if i >= 50 else "train",
                    value={"classes": ["red"], "boxes": []},
                    source="imported",
                )
            )
        row = session.get_one(ModelVersion, (MODEL, 1))
        row.dataset_version_id = version.id
        session.add(row)
    predictor = Predictor.open(context.store, MODEL, 1)
    looks = [appearance(predictor.prepare(images.decode(d)), predictor.manifest.input) for d in data]
    predict(context, 60, seed=1, sample_id=np.array([image.sample_id for image in admitted]))
    copies = {name: np.array([getattr(look, name) for look in looks[:50]]) for name in ("brightness", "sharpness")}
    predict(context, 50, seed=2, fingerprint=np.array([look.fingerprint for look in looks[:50]]), **copies)
    predict(context, 30, seed=3)
    run(context)
    found = accuracy(context)
    assert found.left_out == {"trained_on": 50, "near_duplicates": 50}
    assert found.overall.answers == 40
    with context.database.read() as session:
        profile = session.get_one(VersionProfile, (MODEL, 1))
    assert len(profile.trained_on) == 50
    assert profile.judged["right"] == [True] * 10


def test_repeats_of_one_content_are_one_entry_with_their_number(context: Context) -> None:
    """Otherwise a popular picture would look like many labels."""
    ids = predict(context, 100, seed=1)
    for seed in (2, 3):
        predict(context, 100, seed=seed, sample_id=np.array(ids), inclusion_probability=np.full(100, 0.5))
    label(context, ids[:40])
    with context.database.read() as session:
        model = registry.get_model(session, MODEL)
        counted = answers.count(session, model, since=0, until=now())
    assert len(counted.answers) == 100
    assert set(counted.answers.weight) == {3.0}
    assert set(counted.answers.probability) == {0.5}
    assert len(counted.labelled) == 40


def test_tasks_that_wait_make_every_probability_smaller(context: Context) -> None:
    """Half answered is half drawn; and a second logged draw multiplies the first."""
    ids = predict(context, 100, seed=1)
    label(context, ids[:20])
    label(context, ids[20:40], state="in_studio")
    with context.database.begin() as session:
        task = session.exec(select(LabelTask).where(LabelTask.sample_id == ids[0])).one()
        task.inclusion_probability = 0.05
        session.add(task)
    with context.database.read() as session:
        counted = answers.count(session, registry.get_model(session, MODEL), since=0, until=now())
    assert counted.waiting == 20
    assert sorted(counted.answers.probability)[:2] == pytest.approx([0.05 * 0.5, 0.2 * 0.5])


def test_nothing_new_writes_no_snapshot(context: Context) -> None:
    """The clock comes every few seconds; the table must not grow while nothing happens."""
    predict(context, 50, seed=1)
    run(context)
    run(context)
    with context.database.read() as session:
        assert len(session.exec(select(Snapshot).where(Snapshot.kind == "accuracy")).all()) == 1


def test_new_traffic_alone_is_read_ten_minutes_later_and_a_new_label_at_once(context: Context) -> None:
    """Reading a busy log costs seconds; the estimate rests on labels."""
    ids = predict(context, 50, seed=1)
    run(context)
    age_snapshots(context, 120)
    predict(context, 50, seed=2)
    run(context)
    assert accuracy(context).overall.answers == 50
    label(context, ids[:5])
    run(context)
    assert (accuracy(context).overall.answers, accuracy(context).overall.labels) == (100, 5)
    age_snapshots(context, 700)
    predict(context, 50, seed=3)
    run(context)
    assert accuracy(context).overall.answers == 150


def test_a_model_whose_bundle_is_gone_does_not_blind_the_others(context: Context) -> None:
    """Its own error is told; the others are watched all the same."""
    classifier_bundle(context, "broken")
    context.store.delete("models/broken/1/model.onnx")
    predict(context, 20, seed=1)
    with context.database.begin() as session:
        job_id = jobs.send(session, "monitor", {})
    assert job_id is not None
    row = claim(context.database, job_id, "test", lease_s=60)
    assert row is not None
    with pytest.raises(SutdolError, match="broken"):
        job.handle(Running(context, row))
    assert drift_now(context).seen == 20


@pytest.fixture(params=["sqlite", "postgres"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    """The ground on either database."""
    with postgres() if request.param == "postgres" else nullcontext("") as url:
        opened = open_context(load(home=tmp_path / "home", database_url=url))
        yield opened
        opened.database.close()


@pytest.mark.parametrize("task", ["classify", "multilabel", "detect"])
def test_the_log_is_read_for_every_task_on_every_database(both: Context, task: str) -> None:
    """JSON paths and lengths are where the two databases differ; a detector may have found nothing."""
    box = {"label": "b", "x1": 0, "y1": 0, "x2": 5, "y2": 5, "confidence": 0.9}
    with both.database.begin() as session:
        registry.create_model(session, MODEL, task=task, classes=["a", "b"], family="x")  # type: ignore[arg-type]
    values = {"fingerprint": np.array([f"{i:016x}" for i in range(30)])}
    predict(both, 30, seed=1, **values)
    with both.database.begin() as session:
        for i, row in enumerate(session.exec(select(PredictionRow).order_by(PredictionRow.sample_id))):
            said = {"classes": [], "boxes": [box] * (i % 3)} if task == "detect" else {"classes": [box], "boxes": []}
            row.answer = said
            session.add(row)
            if i < 10:
                truth = {"classes": [], "boxes": [box]} if task == "detect" else {"classes": ["b"], "boxes": []}
                session.add(
                    LabelRow(model=MODEL, sample_id=row.sample_id, value=truth, source="annotation", split="train")
                )
                session.add(
                    LabelTask(
                        model=MODEL,
                        sample_id=row.sample_id,
                        prediction_id=row.id,
                        version=1,
                        arm="drawn",
                        reason="",
                        inclusion_probability=0.2,
                        priority=0.1,
                        uncertainty=0.1,
                        answer={},
                        state="annotated",
                    )
                )
    manifest = Manifest(task=task, classes=["a", "b"], input=InputSpec((8, 8)), family="x")  # type: ignore[arg-type]
    with both.database.read() as session:
        counted = answers.count(session, registry.get_model(session, MODEL), since=0, until=now())
        rows = list(session.execute(sa.select(*columns.of_prediction(task)).order_by(PredictionRow.sample_id)))
    batch = columns.batch_of(rows, manifest)
    assert len(counted.answers) == 30
    if task == "detect":
        assert int(counted.right.sum()) == 3  # of ten, those with exactly one box
        assert batch.signals["objects"].tolist() == [i % 3 for i in range(30)]
        assert batch.classes[:2] == ["(nothing)", "b"]
    else:
        assert counted.right.tolist() == [1.0] * 10
        assert set(batch.classes) == {"b"}


def age_snapshots(context: Context, by_s: float) -> None:
    with context.database.begin() as session:
        for row in session.exec(select(Snapshot)):
            row.at -= by_s
            session.add(row)


def test_charts_survive_the_database(context: Context) -> None:
    """What is stored is what is read."""
    predict(context, 300, seed=1)
    run(context)
    with context.database.read() as session:
        row = session.get_one(DriftState, MODEL)
    reference = msgspec.convert(row.reference, drift.Reference)
    assert reference.size == 200
    assert msgspec.convert(row.charts, drift.State).seen == 300
    assert len((row.learning or {})["said"]) == 300


def forget_snapshots(context: Context) -> None:
    with context.database.begin() as session:
        for row in session.exec(select(Snapshot)):
            session.delete(row)
