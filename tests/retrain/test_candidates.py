"""Several networks in one run: the weak ones are given up early, the best one goes to the gate, a crash repeats nothing."""

from __future__ import annotations

from typing import Any

import pytest
from sqlmodel import col, select

from retrain import supervise, train
from retrain.jobs import HANDLERS
from sutdol import jobs, registry, runs
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError
from sutdol.jobs import worker
from sutdol.jobs.rows import Running, claim
from sutdol.tables import Job, ModelVersion, RunCandidate, RunProgress, TrainingRun
from tests.retrain.test_train_job import make_model

CANDIDATES: list[dict[str, Any]] = [
    {"params": {"lr": 0.004}},
    {"params": {"lr": 0.0}},
    {"params": {"architecture": "no_such_network"}},
    {"params": {"lr": 0.006}},
]
"""Two that learn, one that cannot, and one that does not exist."""


def queue(context: Context, candidates: list[dict[str, Any]]) -> str:
    with context.database.begin() as session:
        run = train.start(session, "digits", cause="a comparison", candidates=candidates)
    assert run is not None
    return run.id


def candidates(context: Context, run_id: str) -> list[RunCandidate]:
    with context.database.read() as session:
        query = select(RunCandidate).where(RunCandidate.run_id == run_id).order_by(col(RunCandidate.number))
        return list(session.exec(query).all())


def epochs(context: Context, run_id: str) -> dict[int, list[int]]:
    """Epochs that each candidate reported, in all attempts."""
    found: dict[int, list[int]] = {}
    with context.database.read() as session:
        for row in session.exec(select(RunProgress).where(RunProgress.run_id == run_id)):
            found.setdefault(row.candidate, []).append(row.epoch)
    return {number: sorted(seen) for number, seen in found.items()}


@pytest.mark.slow
def test_the_best_of_several_is_judged_and_the_weak_are_given_up_early(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison of four networks must not cost four trainings; and a crash in it must not cost a second one."""
    make_model(context, 300, epochs=8, warm_epochs=8, steps_per_epoch=16)
    run_id = queue(context, CANDIDATES)
    real, started = supervise.train, []

    def crashes(folder: Any, *arguments: Any, **more: Any) -> None:
        started.append(folder.name)
        if len(started) == 6:
            raise KeyboardInterrupt
        real(folder, *arguments, **more)

    monkeypatch.setattr(supervise, "train", crashes)
    with context.database.read() as session:
        job_id = str(session.get_one(TrainingRun, run_id).job_id)
    claimed = claim(context.database, job_id, "somebody who dies", lease_s=0.0)
    assert claimed is not None
    with pytest.raises(KeyboardInterrupt):
        HANDLERS["train"](Running(context, claimed))
    assert started == ["candidate-1", "candidate-2", "candidate-3", "candidate-4", *started[4:]]
    assert sorted(started[4:]) == ["candidate-1", "candidate-4"], "the two that learn, to their end"
    with context.database.begin() as session:
        row = session.get_one(Job, job_id)
        row.state, row.lease_owner, row.not_before = "queued", None, 0.0
        session.add(row)
    worker.run_pending(context, {"train": HANDLERS["train"]})

    with context.database.read() as session:
        run = session.get_one(TrainingRun, run_id)
        assert (run.state, run.error, run.version) == ("done", None, 1)
        assert registry.alias(session, "digits", "champion") == 1
        assert len(session.exec(select(ModelVersion)).all()) == 1
        told = runs.detail(session, run_id)
    rows = candidates(context, run_id)
    states = {row.number: row.state for row in rows}
    assert states[3] == "failed"
    assert "no_such_network" in str(rows[2].error)
    assert sorted(states[n] for n in (1, 4)) == ["chosen", "finished"]
    assert states[2] == "eliminated"
    seen = epochs(context, run_id)
    assert seen[1] == seen[4] == list(range(1, 9)), "trained to the end, and no epoch twice"
    assert seen[2] == [1, 2], "given up at a quarter"
    chosen = told["candidates"][0]
    assert chosen["state"] == "chosen"
    assert chosen["metrics"]["accuracy"] > 0.3
    assert chosen["metrics"]["latency_ms_p50"] > 0
    assert chosen["metrics"]["size_bytes"] > 100_000
    assert chosen["training_s"] > 0
    curve = chosen["curve"][-1]["metrics"]
    for name in (
        "train/loss",
        "val/loss",
        "val/accuracy",
        "machine/images_per_s",
        "machine/cores",
        "machine/memory_mb",
    ):
        assert curve[name] > 0, name


def test_candidates_are_checked_before_anything_is_queued(context: Context) -> None:
    """One misspelt parameter among eight would be found in the night."""
    make_model(context, 30)
    with context.database.begin() as session:
        with pytest.raises(InputError, match="'learning_rate' is unknown"):
            train.start(session, "digits", cause="x", candidates=[{}, {"params": {"learning_rate": 1.0}}])
        with pytest.raises(NotFoundError, match="unknown family 'tim'"):
            train.start(session, "digits", cause="x", candidates=[{"family": "tim"}])
        with pytest.raises(InputError, match="this family can do detect"):
            train.start(session, "digits", cause="x", candidates=[{"family": "efficientdet"}])
        with pytest.raises(InputError, match="expected 1 to 16, found 17"):
            train.start(session, "digits", cause="x", candidates=[{}] * 17)
        assert session.exec(select(Job)).all() == []


def test_a_run_is_found_by_the_beginning_of_its_id_and_cancelled(context: Context) -> None:
    """Nobody types 36 characters."""
    make_model(context, 30)
    run_id = queue(context, [{}])
    with context.database.begin() as session:
        assert runs.cancel(session, run_id[:20]).state == "cancelled"
        assert session.get_one(Job, runs.find(session, run_id).job_id).state == "cancelled"
        with pytest.raises(NotFoundError, match="unknown training run"):
            runs.find(session, "")
    assert jobs.KINDS["train"].queue == "train"
