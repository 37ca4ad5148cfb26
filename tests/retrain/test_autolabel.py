"""Labels without people: made under a proven rule, marked, only for training, and never while the world is changing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlmodel import select

from retrain import autolabel, datasets, trigger
from sutdol import images, jobs
from sutdol.context import Context, open_context
from sutdol.errors import InputError
from sutdol.jobs.rows import Running, claim, finish
from sutdol.monitor import guarantee, report
from sutdol.predictor import Predictor
from sutdol.settings import load
from sutdol.tables import DriftState, Event, LabelRow, LabelTask, PredictionRow, Sample, new_id, now
from tests.tiny_models import CLASSES, classifier_bundle, coloured_png

MODEL = "tiny"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    opened = open_context(load(home=tmp_path / "home"))
    classifier_bundle(opened, MODEL)
    yield opened
    opened.database.close()


def quiet(context: Context, **values: Any) -> None:
    """The drift charts have learned what is usual; `values` change the row."""
    row: dict[str, Any] = {"model": MODEL, "version": 1, "charts": {}, "recent": [], "reference": {"size": 500}}
    with context.database.begin() as session:
        session.merge(DriftState(**(row | values)))


def picture(context: Context, seed: int, name: str = "red") -> str:
    """A kept image of one colour; its sample id."""
    image = images.admit(coloured_png(name, seed=seed))
    context.store.put(f"samples/{image.sample_id}", image.data)
    size = {"width_px": image.width_px, "height_px": image.height_px, "size_bytes": len(image.data)}
    with context.database.begin() as session:
        session.merge(Sample(id=image.sample_id, media_type=image.media_type, **size))
    return image.sample_id


def predict(
    context: Context, sample_id: str, *, arms: tuple[str, ...] = (), at: float | None = None, **values: Any
) -> str:
    """A logged answer of the tiny model to a red image."""
    found = Predictor.open(context.store, MODEL, 1).predict_bytes(context.store.get(f"samples/{sample_id}"))
    row = {
        "id": new_id(),
        "at": at or now(),
        "model": MODEL,
        "version": 1,
        "sample_id": sample_id,
        "width_px": 40,
        "height_px": 40,
        "answer": {"classes": msgspec.to_builtins(found.classes), "boxes": []},
        "confidence": found.confidence,
        "raw_confidence": found.raw_confidence,
        "margin": found.margin,
        "ood_score": found.ood_score,
        "inclusion_probability": 0.2,
        "arms": list(arms),
        "duration_ms": 1.0,
    } | values
    with context.database.begin() as session:
        session.add(PredictionRow(**row))
    return str(row["id"])


def drawn(context: Context, n: int, *, wrong: int = 0, at: float | None = None, first: int = 0) -> list[str]:
    """`n` drawn and labelled images, `wrong` of them with another class than the model says."""
    ids = []
    for i in range(n):
        sample_id = picture(context, first + i)
        prediction = predict(context, sample_id, arms=("drawn",), at=at)
        truth = CLASSES[1] if i < wrong else CLASSES[0]
        task = LabelTask(
            model=MODEL,
            sample_id=sample_id,
            prediction_id=prediction,
            version=1,
            arm="drawn",
            reason="",
            inclusion_probability=0.2,
            priority=0.1,
            uncertainty=0.1,
            answer={},
            state="annotated",
        )
        label = LabelRow(
            model=MODEL,
            sample_id=sample_id,
            value={"classes": [truth], "boxes": []},
            source="annotation",
            arm="drawn",
            split="test",
        )
        with context.database.begin() as session:
            session.add_all([task, label])
        ids.append(sample_id)
    return ids


def run(context: Context, target: float = 0.05, limit: int = 500) -> dict[str, Any]:
    """The job, asked for as the API asks for it."""
    with context.database.begin() as session:
        job_id = guarantee.request(session, MODEL, target=target, limit=limit)
    assert job_id is not None
    row = claim(context.database, job_id, "test", lease_s=60)
    assert row is not None
    result = autolabel.handle(Running(context, row))
    finish(context.database, row, result)
    return dict(result[MODEL])


def auto(context: Context) -> list[LabelRow]:
    with context.database.read() as session:
        return list(session.exec(select(LabelRow).where(LabelRow.source == "auto")))


def test_proven_labels_are_marked_and_only_train(context: Context) -> None:
    """Sure, familiar, kept, picked by nobody: those and no others; never val, test or a reason to retrain."""
    quiet(context)
    drawn(context, 60)
    good = [picture(context, 1000 + i) for i in range(5)]
    for sample_id in good:
        predict(context, sample_id)
    predict(context, picture(context, 2000), ood_score=60.0)  # unfamiliar
    predict(context, picture(context, 2001), confidence=0.4)  # not sure
    predict(context, picture(context, 2002), arms=("unfamiliar",))  # picked
    result = run(context)
    assert result["labelled"] == 5
    rows = auto(context)
    assert sorted(row.sample_id for row in rows) == sorted(good)
    assert {row.split for row in rows} == {"train"}
    assert {row.value["classes"][0] for row in rows} == {"red"}
    with context.database.begin() as session:
        version = datasets.freeze(session, MODEL)
        auto_splits = {item.split for item in datasets.items(session, version.id) if item.source == "auto"}
        assert auto_splits == {"train"}
        assert trigger.new_labels(session, MODEL) == 60
    with context.database.read() as session:
        found = report.auto_labels(session, MODEL)
        assert session.exec(select(Event).where(Event.kind == "auto-labels.made")).one().model == MODEL
    assert (found.labelled, found.refused, found.target) == (5, None, 0.05)
    assert run(context)["labelled"] == 0


def test_too_few_labels_are_refused_with_the_number_missing(context: Context) -> None:
    """The caller learns how many to wait for, and nothing is labelled."""
    quiet(context)
    drawn(context, 20)
    predict(context, picture(context, 1000))
    result = run(context)
    assert result["missing"] == 25
    assert "25 drawn labels are missing" in result["refused"]
    assert auto(context) == []
    with context.database.read() as session:
        assert session.exec(select(Event).where(Event.kind == "auto-labels.refused")).one().model == MODEL


def test_errors_among_the_surest_labels_forbid_it(context: Context) -> None:
    """A tenth wrong is not five per cent."""
    quiet(context)
    drawn(context, 60, wrong=12)
    predict(context, picture(context, 1000))
    assert "do not show an error below" in run(context)["refused"]
    assert auto(context) == []


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"alarm": True, "alarm_text": "it is dark"}, "a drift alarm is on: it is dark"),
        ({"reference": None}, "still being learned"),
        ({"version": 7}, "still being learned"),
        (None, "still being learned"),
    ],
)
def test_it_pauses_while_nobody_knows_whether_the_world_is_the_same(
    context: Context, state: dict[str, Any] | None, words: str
) -> None:
    """The promise is about images like those that were drawn."""
    if state is not None:
        quiet(context, **state)
    drawn(context, 60)
    predict(context, picture(context, 1000))
    result = run(context)
    assert words in result["refused"]
    assert result["paused"]
    assert auto(context) == []


def test_labels_from_before_the_last_alarm_prove_nothing(context: Context) -> None:
    """They are about another world."""
    before = now() - 1000
    quiet(context, last_alarm_at=before + 1)
    drawn(context, 60, at=before)
    assert run(context)["missing"] == 45


def test_a_person_has_the_last_word(context: Context) -> None:
    """An auto-label never replaces what somebody said."""
    quiet(context)
    drawn(context, 60)
    sample_id = picture(context, 1000)
    predict(context, sample_id)
    with context.database.begin() as session:
        value = {"classes": ["blue"], "boxes": []}
        session.add(LabelRow(model=MODEL, sample_id=sample_id, value=value, source="annotation", split="train"))
    assert run(context)["labelled"] == 0


def test_doubtful_images_are_thinned_to_a_plain_sample() -> None:
    """Drawn five times as often, kept once in five; the number depends on the content alone."""
    kept = np.mean([autolabel.thinned(f"sample-{i}", 0.5, 0.1) for i in range(4000)])
    assert kept == pytest.approx(0.2, abs=0.03)
    assert all(autolabel.thinned(f"sample-{i}", 0.1, 0.1) for i in range(100))


@pytest.mark.parametrize("target", [0.0, -0.1, 0.7])
def test_an_impossible_target_is_refused_at_once(context: Context, target: float) -> None:
    """Before a job is made of it."""
    with context.database.begin() as session, pytest.raises(InputError, match=r"in \(0, 0.5\]"):
        guarantee.request(session, MODEL, target=target)


def test_the_clock_does_nothing_unless_it_is_switched_on(context: Context) -> None:
    """`auto_label_error` is 0 by default."""
    with context.database.begin() as session:
        job_id = jobs.send(session, "retrain.autolabel", {})
    assert job_id is not None
    row = claim(context.database, job_id, "test", lease_s=60)
    assert row is not None
    assert autolabel.handle(Running(context, row)) == {}
