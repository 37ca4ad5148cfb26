"""`kill -9` at seeded random moments of a training: of the worker, of the trainer, of another client of the database.

Whatever dies, the run comes to its end once: no run lost, no version registered twice, at most one epoch repeated. A few
seeds run with all tests (ten kills); `make faults` runs fifty kills.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlmodel import col, select

from sutdol.context import Context, open_context
from sutdol.settings import child_environment, load
from sutdol.tables import Decision, JobAttempt, ModelVersion, RunProgress, TrainingRun
from tests.retrain.test_train_job import WORKER, children_of, make_model, queue

KILLS = 2
"""In one run: a job is tried three times."""
WRITER = """
import sys
from sutdol.context import open_context
from sutdol.settings import load
from sutdol.tables import Event
context = open_context(load())
while True:
    with context.database.begin() as session:
        for i in range(200):
            session.add(Event(kind="noise", text="written by somebody who will die", data={"i": i}))
        session.flush()
        print(".", flush=True)
"""
"""Somebody else who writes in large transactions, and is killed in the middle of one."""


def ended(context: Context, run_id: str) -> TrainingRun | None:
    with context.database.read() as session:
        run = session.get_one(TrainingRun, run_id)
        attempts = session.exec(select(JobAttempt).where(JobAttempt.job_id == run.job_id)).all()
    over = run.state == "done" or (run.state == "failed" and len(attempts) > KILLS)
    return run if over and all(a.ended_at for a in attempts) else None


def story(home: Path, seed: int) -> None:
    """One run, killed twice at moments that the seed chooses, then left alone."""
    rng = random.Random(seed)
    context = open_context(load(home=home, lease_s=2.0, heartbeat_s=0.4, clock_tick_s=0.2))
    make_model(context, 60, epochs=8, steps_per_epoch=4)
    run = queue(context)
    run_dir = (home / "runs" / run.id).absolute()
    environment = child_environment(context.settings)
    root = Path(__file__).resolve().parents[2]

    def start(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=root, stdout=subprocess.PIPE)

    worker, killed = start(WORKER), []
    writer: subprocess.Popen[bytes] | None = None
    try:
        at = time.monotonic()
        moments = sorted(rng.uniform(0.5, 9.0) for _ in range(KILLS))
        deadline = at + 150
        while (done := ended(context, run.id)) is None:
            assert time.monotonic() < deadline, f"seed {seed}: not over after {killed}"
            if moments and time.monotonic() - at >= moments[0]:
                moments.pop(0)
                victim = rng.choice(("worker", "trainer", "client"))
                if victim == "trainer" and (trainers := children_of(run_dir)):
                    os.kill(trainers[0], signal.SIGKILL)
                elif victim == "client":
                    writer = start(WRITER)
                    assert writer.stdout is not None
                    writer.stdout.read(1)  # it holds the write lock now
                    writer.kill()
                    writer.communicate()
                else:
                    victim = "worker"
                    worker.kill()
                    worker.communicate()
                    worker = start(WORKER)
                killed.append(victim)
            time.sleep(0.05)
    finally:
        for process in (worker, writer):
            if process is None or (process.stdout is not None and process.stdout.closed):
                continue  # killed and read to its end above
            process.kill()
            process.communicate()
    with context.database.read() as session:
        versions = session.exec(select(ModelVersion)).all()
        decisions = session.exec(select(Decision).where(Decision.kind == "gate")).all()
        progress = session.exec(select(RunProgress).order_by(col(RunProgress.attempt), col(RunProgress.epoch))).all()
    context.database.close()
    assert (done.state, done.error) == ("done", None), f"seed {seed}, killed {killed}"
    assert [v.version for v in versions] == [1], f"seed {seed}, killed {killed}"
    assert len(decisions) == 1
    reached = 0
    for row in progress:
        assert row.epoch in (reached, reached + 1), f"seed {seed}, killed {killed}: epoch {row.epoch} after {reached}"
        reached = row.epoch
    assert reached == 8
    assert not children_of(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_ten_kills_lose_no_run_and_register_no_version_twice(seed: int, tmp_path: Path) -> None:
    """Machines are switched off in the middle of everything; people find out the next morning, or never."""
    story(tmp_path / "home", seed)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 125))
def test_fifty_kills_lose_no_run_and_register_no_version_twice(seed: int, tmp_path: Path) -> None:
    """The same with more luck."""
    story(tmp_path / "home", seed)
