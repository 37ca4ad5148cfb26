"""Labels that are probably wrong are found and asked about again; none is changed or deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import select

from retrain import labelquality
from retrain.labelquality import out_of_fold, suspects
from sutdol import images, jobs, registry
from sutdol.context import Context, open_context
from sutdol.errors import InputError
from sutdol.jobs.rows import Running, claim, finish
from sutdol.settings import load
from sutdol.tables import Event, Job, LabelRow, LabelTask, Sample
from tests.tiny_models import CLASSES, classifier_bundle, coloured_png

MODEL = "tiny"


def clouds(n: int = 300, wrong: int = 15, seed: int = 0):
    """Three well separated classes in five dimensions, with some labels exchanged: (features, given labels, who is wrong)."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 3
    features = rng.normal(0, 1, (n, 5))
    features[np.arange(n), truth] += 6
    bad = np.zeros(n, bool)
    bad[rng.choice(n, wrong, replace=False)] = True
    return features, np.where(bad, (truth + 1) % 3, truth), bad


def test_exchanged_labels_are_suspected_first_and_hardly_any_other() -> None:
    """The person's time is spent on what is really wrong."""
    features, given, bad = clouds()
    found = suspects(out_of_fold(features, given, 3), given)
    right = [bool(bad[s.place]) for s in found]
    assert sum(right) >= 12
    assert all(right[:10])
    assert len(found) <= 18
    assert all(s.likelier != given[s.place] for s in found)
    assert [s.given_probability for s in found] == sorted(s.given_probability for s in found)


def test_clean_labels_are_left_in_peace() -> None:
    """No budget of suspects has to be filled."""
    features, given, _ = clouds(wrong=0)
    assert len(suspects(out_of_fold(features, given, 3), given)) <= 3


@pytest.mark.parametrize(
    "given",
    [np.zeros(30, int), np.r_[np.zeros(29, int), 1], np.arange(30) % 30],
    ids=["one class", "a lone item", "all alone"],
)
def test_odd_label_sets_have_an_answer(given: np.ndarray) -> None:
    """One class only, a class with one item, nothing but such classes."""
    features = np.random.default_rng(0).normal(0, 1, (30, 4))
    classes = int(given.max()) + 1
    probabilities = out_of_fold(features, given, classes)
    assert np.isfinite(probabilities).all()
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(30))
    assert len(suspects(probabilities, given)) <= 30


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.zeros((3, 2)), np.zeros(3, int)),
        (np.zeros((10, 2)), np.zeros(9, int)),
        (np.full((10, 2), np.nan), np.zeros(10, int)),
        (np.zeros((10, 2)), np.full(10, 5)),
        (np.zeros(10), np.zeros(10, int)),
    ],
)
def test_impossible_input_is_refused(features: np.ndarray, labels: np.ndarray) -> None:
    """In words, before the arithmetic fails somewhere inside."""
    with pytest.raises(InputError, match="label quality"):
        out_of_fold(features, labels, 3)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    opened = open_context(load(home=tmp_path / "home"))
    classifier_bundle(opened, MODEL)
    yield opened
    opened.database.close()


def label(context: Context, seed: int, shown: str, said: str, *, source: str = "imported") -> str:
    """A kept image of colour `shown`, labelled `said`."""
    image = images.admit(coloured_png(shown, seed=seed))
    context.store.put(f"samples/{image.sample_id}", image.data)
    size = {"width_px": image.width_px, "height_px": image.height_px, "size_bytes": len(image.data)}
    with context.database.begin() as session:
        session.add(Sample(id=image.sample_id, media_type=image.media_type, **size))
        value = {"classes": [said], "boxes": []}
        session.add(LabelRow(model=MODEL, sample_id=image.sample_id, value=value, source=source, split="test"))
    return image.sample_id


def task(context: Context, sample_id: str, **values: Any) -> None:
    row: dict[str, Any] = {
        "prediction_id": "p",
        "version": 1,
        "arm": "drawn",
        "reason": "",
        "inclusion_probability": 0.2,
        "priority": 0.1,
        "uncertainty": 0.1,
        "answer": {},
        "state": "annotated",
    } | values
    with context.database.begin() as session:
        session.add(LabelTask(model=MODEL, sample_id=sample_id, **row))


def run(context: Context, limit: int = 20, model: str = MODEL) -> dict[str, Any]:
    with context.database.begin() as session:
        job_id = jobs.send(session, "retrain.labelquality", {"model": model, "limit": limit})
    assert job_id is not None
    row = claim(context.database, job_id, "test", lease_s=60)
    assert row is not None
    result = labelquality.handle(Running(context, row))
    finish(context.database, row, result)
    return result


def sixty(context: Context) -> None:
    for i in range(60):
        label(context, i, CLASSES[i % 3], CLASSES[i % 3])


def test_a_wrong_import_becomes_a_task_with_the_likelier_class_and_the_reason(context: Context) -> None:
    """A person decides; the label and its split stay what they are until then, and nobody is asked twice."""
    sixty(context)
    wrong = label(context, 100, "red", "blue")
    assert run(context) == {"labels": 61, "suspect": 1, "asked": 1}
    with context.database.read() as session:
        row = session.exec(select(LabelTask)).one()
        kept = session.get_one(LabelRow, (MODEL, wrong))
        assert session.exec(select(Event).where(Event.kind == "labels.suspect")).one().model == MODEL
    assert (row.sample_id, row.arm, row.state, row.split) == (wrong, "disagree", "candidate", "test")
    assert row.answer["classes"][0]["label"] == "red"
    assert "labelled blue, images like it are red" in row.reason
    assert kept.value["classes"] == ["blue"]
    assert run(context)["asked"] == 0


def test_a_wrong_answer_is_asked_of_one_more_person(context: Context) -> None:
    """By the road that settles contradictions; an answer that two people gave is left in peace."""
    sixty(context)
    once = label(context, 100, "red", "blue", source="annotation")
    twice = label(context, 101, "green", "blue", source="annotation")
    task(context, once)
    task(context, twice, overlap=2)
    assert run(context) == {"labels": 62, "suspect": 2, "asked": 1}
    with context.database.read() as session:
        states = {row.sample_id: row.state for row in session.exec(select(LabelTask))}
        reask = session.exec(select(Job).where(Job.kind == "bridge.reask")).one()
        assert session.get_one(LabelRow, (MODEL, once)).value["classes"] == ["blue"]
    assert states == {once: "conflict", twice: "annotated"}
    assert reask.payload == {"model": MODEL}


def test_the_limit_holds_and_too_few_labels_say_so(context: Context) -> None:
    """Second looks come out of people's time."""
    assert "50 labels are needed" in run(context)["refused"]
    sixty(context)
    for i in range(4):
        label(context, 100 + i, "red", "blue")
    assert run(context, limit=2) == {"labels": 64, "suspect": 4, "asked": 2}


def test_a_detector_is_refused_in_words(context: Context) -> None:
    """Boxes have no out-of-fold probability."""
    with context.database.begin() as session:
        registry.create_model(session, "boxes", task="detect", classes=["a"], family="yolo")
    with pytest.raises(InputError, match="only models that classify"):
        run(context, model="boxes")
