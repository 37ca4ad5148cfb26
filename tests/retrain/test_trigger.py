"""When new labels start a training, and that nothing starts two."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from retrain import datasets, trigger
from retrain.formats import Record
from sutdol import jobs, registry
from sutdol.context import Context, open_context
from sutdol.errors import NotFoundError
from sutdol.jobs.rows import Running, claim
from sutdol.settings import load
from sutdol.tables import DriftState, Job, LabelRow, TrainingRun, now
from sutdol.types import Label
from tests.tiny_models import coloured_png


@pytest.fixture
def ground(tmp_path: Path) -> Any:
    """A model `cells` that wants five labels and pauses a minute between trainings."""
    context = open_context(load(home=tmp_path / "home", retrain_after_labels=5, retrain_cooldown_s=60.0))
    with context.database.begin() as session:
        registry.create_model(session, "cells", task="classify", classes=["a", "b"], family="timm", params={})
    yield context
    context.database.close()


def answer(context: Context, names: str, *, model: str = "cells", source: str = "annotation") -> None:
    """One label per letter."""
    with context.database.begin() as session:
        for name in names:
            row = LabelRow(
                model=model, sample_id=name, value={"classes": ["a"], "boxes": []}, source=source, split="train"
            )
            session.add(row)


def changed(context: Context, **settings: Any) -> Context:
    """The same ground under other settings."""
    return Context(context.settings.model_copy(update=settings), context.database, context.store)


def age_labels(context: Context, seconds: float) -> None:
    """All labels came so long ago."""
    with context.database.begin() as session:
        for row in session.exec(select(LabelRow)):
            row.updated_at = now() - seconds
            session.add(row)


def run_trigger(context: Context, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    """The handler as a worker calls it: a real job row, claimed under a real lease."""
    with context.database.begin() as session:
        job_id = jobs.send(session, "retrain.trigger", payload or {})
    assert job_id is not None
    job = claim(context.database, job_id, "test", lease_s=60)
    assert job is not None
    return trigger.handle(Running(context, job))


def runs(context: Context) -> list[TrainingRun]:
    with context.database.read() as session:
        return list(session.exec(select(TrainingRun).order_by(TrainingRun.created_at)).all())  # type: ignore[arg-type]


def end(context: Context, state: str, *, ago_s: float, frozen: bool = True) -> None:
    """The newest run ends; with `frozen` it has seen all labels there are."""
    run = runs(context)[-1]
    with context.database.begin() as session:
        run = session.get_one(TrainingRun, run.id)
        if frozen:
            run.dataset_version_id = datasets.freeze(session, run.model).id
        run.state, run.finished_at, run.created_at = state, now() - ago_s, now() - ago_s - 1
        session.add(run)
        job = session.get_one(Job, run.job_id)
        job.state, job.unique_key = "done", None
        session.add(job)


def test_enough_new_labels_start_one_training_and_say_why(ground: Context) -> None:
    """The loop closes by itself, and the run's cause tells people what started it."""
    answer(ground, "abcd")
    assert run_trigger(ground)["cells"] == {"new_labels": 4}
    answer(ground, "e")
    told = run_trigger(ground)["cells"]
    assert [run.cause for run in runs(ground)] == ["5 new labels"]
    assert told["started"] == runs(ground)[0].id


def test_a_second_trigger_starts_nothing(ground: Context) -> None:
    """Every answer in Label Studio sends one; a hundred triggers are one training."""
    answer(ground, "abcde")
    run_trigger(ground)
    run_trigger(ground, {"model": "cells"})
    assert len(runs(ground)) == 1


def test_triggers_at_the_same_moment_start_one_training(ground: Context) -> None:
    """Two workers, one database: the count, the decision and the start are one transaction."""
    answer(ground, "abcde")
    threads = [threading.Thread(target=run_trigger, args=(ground,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs(ground)) == 1


def test_only_labels_that_the_last_training_did_not_contain_count(ground: Context) -> None:
    """What was frozen into its dataset version is used up; what came while it trained is not."""
    answer(ground, "abcde")
    run_trigger(ground)
    end(ground, "done", ago_s=100)
    answer(ground, "fghi")
    assert run_trigger(ground)["cells"] == {"new_labels": 4}
    answer(ground, "j")
    assert "started" in run_trigger(ground)["cells"]


def test_imported_and_automatic_labels_start_nothing(ground: Context) -> None:
    """Importing a data set is not people answering; it is trained by hand or by the demo."""
    answer(ground, "abcde", source="imported")
    answer(ground, "fghij", source="auto")
    assert run_trigger(ground)["cells"] == {"new_labels": 0}


def test_the_cooldown_holds_labels_back_and_then_lets_them_through(ground: Context) -> None:
    """Label Studio answered in a burst must not train every minute for each handful."""
    answer(ground, "abcde")
    run_trigger(ground)
    end(ground, "done", ago_s=10)
    answer(ground, "fghij")
    assert "cooldown" in run_trigger(ground)["cells"]["waits"]
    end(ground, "done", ago_s=61, frozen=False)
    assert "started" in run_trigger(ground)["cells"]


def test_a_failed_training_is_not_repeated_every_minute(ground: Context) -> None:
    """A broken set-up fails for ever; its labels are only tried again more and more rarely, or when new ones come."""
    answer(ground, "abcde")
    run_trigger(ground)
    end(ground, "failed", ago_s=61, frozen=False)
    assert "cooldown" in run_trigger(ground)["cells"]["waits"]
    end(ground, "failed", ago_s=121, frozen=False)
    assert "started" in run_trigger(ground)["cells"]


def test_a_failed_training_has_used_up_the_labels_it_froze(ground: Context) -> None:
    """Training fails on what it was given: give it something new before trying again."""
    answer(ground, "abcde")
    run_trigger(ground)
    end(ground, "failed", ago_s=1e6)
    assert run_trigger(ground)["cells"] == {"new_labels": 0}


def test_models_are_counted_apart(ground: Context) -> None:
    """Three labels here and two there are not five."""
    with ground.database.begin() as session:
        registry.create_model(session, "other", task="classify", classes=["a", "b"], family="timm", params={})
    answer(ground, "abc")
    answer(ground, "de", model="other")
    assert run_trigger(ground) == {"cells": {"new_labels": 3}, "other": {"new_labels": 2}}


def test_an_unknown_model_is_an_error_in_words(ground: Context) -> None:
    """A job for a model that was deleted must say so, not vanish."""
    with pytest.raises(NotFoundError, match="known: cells"):
        run_trigger(ground, {"model": "gone"})


def test_a_relabelled_imported_sample_counts(ground: Context) -> None:
    """People correcting the original data is new knowledge."""
    record = Record("1", Label(classes=["a"]), data=coloured_png(), split="train")
    datasets.import_records(ground, "cells", [record])
    answer(ground, "abcde")
    run_trigger(ground)
    end(ground, "done", ago_s=100)
    with ground.database.begin() as session:
        row = session.exec(select(LabelRow).where(LabelRow.source == "imported")).one()
        row.source, row.value = "annotation", {"classes": ["b"], "boxes": []}
        session.add(row)
    assert run_trigger(ground)["cells"] == {"new_labels": 1}


def test_while_a_drift_alarm_is_on_fewer_labels_are_enough(ground: Context) -> None:
    """A changed world is the best reason to retrain; without the alarm the same labels wait for company."""
    few = ground.settings.model_copy(update={"retrain_on_drift_labels": 2})
    answer(ground, "abc")
    with ground.database.begin() as session:
        assert trigger.consider(session, "cells", few) == {"new_labels": 3}
        state = DriftState(model="cells", version=1, charts={}, recent=[], alarm=True, alarm_text="it is dark")
        session.add(state)
        session.flush()
        assert "started" in trigger.consider(session, "cells", few)
    assert runs(ground)[0].cause == "3 new labels, drift: it is dark"


@pytest.mark.parametrize(("growth", "fresh", "starts"), [(0.0, "f", False), (50.0, "f", False), (20.0, "f", True)])
def test_growth_by_a_share_starts_one_too(ground: Context, growth: float, fresh: str, starts: bool) -> None:
    """A hundred labels are much for a model of two hundred images and nothing for one of a million."""
    answer(ground, "abcde")
    run_trigger(ground)
    end(ground, "done", ago_s=100)
    answer(ground, fresh)
    told = run_trigger(changed(ground, retrain_after_growth=growth))["cells"]
    assert ("started" in told) == starts
    if starts:
        assert runs(ground)[-1].cause == "1 new labels, 20 % more"


def test_a_schedule_starts_one_when_there_is_anything_new(ground: Context) -> None:
    """Every night, if somebody labelled something; training the same data again would be a waste."""
    answer(ground, "abcde")
    run_trigger(ground)
    end(ground, "done", ago_s=3700)
    nightly = changed(ground, retrain_every_s=3600.0)
    assert run_trigger(nightly)["cells"] == {"new_labels": 0}
    answer(ground, "f")
    assert run_trigger(changed(ground, retrain_every_s=7200.0))["cells"] == {"new_labels": 1}
    assert "started" in run_trigger(nightly)["cells"]
    assert runs(ground)[-1].cause == "schedule, 1.0 h after the last training, 1 new labels"


def test_labels_that_are_still_coming_are_waited_for_but_not_for_ever(ground: Context) -> None:
    """Five answers in the first minute of a session of two hundred: the training wants the rest, and not never."""
    patient = changed(ground, retrain_debounce_s=30.0)
    answer(ground, "abcde")
    assert "still coming" in run_trigger(patient)["cells"]["waits"]
    age_labels(ground, 31)
    answer(ground, "f")
    assert "still coming" in run_trigger(patient)["cells"]["waits"], "the newest one is fresh"
    age_labels(ground, 31)
    assert "started" in run_trigger(patient)["cells"]
    end(ground, "done", ago_s=1000)
    answer(ground, "ghijk")
    age_labels(ground, 301)
    answer(ground, "l")
    assert "started" in run_trigger(patient)["cells"], "ten times thirty seconds are enough"
