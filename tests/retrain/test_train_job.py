"""The training job as a whole: real database, store, child process, evaluation and gate."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from sqlmodel import col, select

from retrain import datasets, supervise, train
from retrain.families import load_checkpoint
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol import jobs, registry, thresholds
from sutdol.context import Context
from sutdol.errors import Cancelled, ConflictError, InputError, TrainingError
from sutdol.images import admit, encode_png
from sutdol.jobs import worker
from sutdol.predictor import Predictor
from sutdol.settings import child_environment, load
from sutdol.tables import (
    Decision,
    Evaluation,
    Job,
    JobAttempt,
    LabelRow,
    ModelVersion,
    RunProgress,
    Sample,
    TrainingRun,
)
from sutdol.types import Label
from tests import child_runs

WORKER = """
from retrain.jobs import HANDLERS
from sutdol.jobs import worker
from sutdol.settings import load
worker.run(load(), ["train"], HANDLERS)
"""


def digits(kind: str = "clean") -> tuple[list[np.ndarray[Any, Any]], list[str]]:
    """Real handwritten digits at 32 px, RGB, and their names."""
    from sklearn.datasets import load_digits

    data = load_digits()
    large = [cv2.resize((d / 16 * 255).astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC) for d in data.images]
    rgb = [np.repeat(image[:, :, None], 3, axis=2) for image in large]
    return [np.ascontiguousarray(np.rot90(i)) if kind == "rotated" else i for i in rgb], [str(t) for t in data.target]


def make_model(context: Context, count: int, **params: Any) -> None:
    rgb, names = digits()
    records = [Record(f"{i}.png", Label(classes=[names[i]]), data=encode_png(rgb[i])) for i in range(count)]
    with context.database.begin() as session:
        registry.create_model(session, "digits", task="classify", classes=[], family="timm", params=params)
    datasets.import_records(context, "digits", records, ratios=(0.6, 0.1, 0.3))


def label_rotated(context: Context, start: int, stop: int) -> None:
    """What the bridge would have written: drawn samples that people answered, a third of them for test."""
    rgb, names = digits("rotated")
    with context.database.begin() as session:
        for i in range(start, stop):
            data = encode_png(rgb[i])
            image = admit(data)
            context.store.put(f"samples/{image.sample_id}", image.data)
            session.add(
                Sample(
                    id=image.sample_id,
                    width_px=32,
                    height_px=32,
                    media_type=image.media_type,
                    size_bytes=len(image.data),
                )
            )
            session.add(
                LabelRow(
                    model="digits",
                    sample_id=image.sample_id,
                    value={"classes": [names[i]], "boxes": []},
                    source="annotation",
                    arm="drawn",
                    weight=10.0,
                    split="test" if i % 3 == 0 else "train",
                )
            )


def queue(context: Context, **params: Any) -> TrainingRun:
    with context.database.begin() as session:
        run = train.start(session, "digits", cause="test", params=params)
    assert run is not None
    return run


def rows(context: Context, table: Any) -> list[Any]:
    with context.database.read() as session:
        return list(session.exec(select(table)).all())


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def children_of(run_dir: Path) -> list[int]:
    """Living training children of that run folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"retrain.child" in words and str(run_dir).encode() in words:
            found.append(int(path.parent.name))
    return found


@contextmanager
def working(context: Context) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker on the `train` queue; killed at the end if it still lives."""
    process = subprocess.Popen([sys.executable, "-c", WORKER], env=child_environment(context.settings), cwd=Path.cwd())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
def test_labels_of_a_changed_world_become_a_better_version_that_is_promoted(context: Context) -> None:
    """This is the loop: the second version must be good at what the first could not do, and prove it at the gate."""
    make_model(context, 300, epochs=12, warm_epochs=12)
    first = queue(context)
    assert worker.run_pending(context, {"train": HANDLERS["train"]}) == 1
    with context.database.read() as session:
        done = session.get_one(TrainingRun, first.id)
        assert (done.state, done.error, done.version) == ("done", None, 1)
        assert registry.alias(session, "digits", "champion") == 1
        assert list(done.timings or {}) == ["preparing", "training", "exporting", "evaluating", "deciding"]
        progress = session.exec(select(RunProgress).order_by(col(RunProgress.epoch))).all()
    assert [p.epoch for p in progress] == list(range(1, 13))
    assert progress[-1].metrics["val/accuracy"] > 0.5

    predictor = Predictor.open(context.store, "digits", 1)
    predictor.check_golden()
    assert predictor.manifest.unfamiliar_at is not None
    study = thresholds.read(context.store, "digits", 1)
    assert (study.n, study.temperature) == (30, predictor.manifest.temperature)
    inverted = [255 - image for image in digits()[0][1500:1600]]
    scores = [predictor.predict_rgb(image).ood_score for image in inverted]
    assert np.mean([score > predictor.manifest.unfamiliar_at for score in scores if score is not None]) > 0.9

    label_rotated(context, 400, 520)
    second = queue(context)
    worker.run_pending(context, {"train": HANDLERS["train"]})
    with context.database.read() as session:
        done = session.get_one(TrainingRun, second.id)
        assert (done.state, done.version, done.parent_version) == ("done", 2, 1)
        decisions = session.exec(select(Decision).order_by(col(Decision.at))).all()
        assert registry.alias(session, "digits", "champion") == 2, decisions[-1].text
    assert [(d.kind, d.verdict, d.candidate) for d in decisions] == [
        ("gate", "promote", 1),
        ("promote", "done", 1),
        ("gate", "promote", 2),
        ("promote", "done", 2),
    ]
    assert len(rows(context, Evaluation)) == 3, "the first alone, then candidate and champion on the same items"
    better = Predictor.open(context.store, "digits", 2)
    rotated, names = digits("rotated")
    right = [better.predict_rgb(rotated[i]).classes[0].label == names[i] for i in range(1500, 1700)]
    assert np.mean(right) > 0.6
    folder = context.settings.home / "runs" / second.id
    assert sorted(p.name for p in folder.iterdir()) == ["child.log", "result.json", "spec.json"]


@pytest.mark.slow
def test_a_worker_killed_in_mid_training_costs_an_epoch_and_nothing_else(context: Context, tmp_path: Path) -> None:
    """Two children on one device, or two versions from one run, is what a careless take-over ends in."""
    context = Context(load(home=context.settings.home, lease_s=3.0, heartbeat_s=0.5), context.database, context.store)
    make_model(context, 120, epochs=20, steps_per_epoch=5)
    run = queue(context)
    run_dir = (context.settings.home / "runs" / run.id).absolute()
    with working(context) as process:
        wait_for(lambda: len(rows(context, RunProgress)) >= 3, 90, "three epochs")
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not children_of(run_dir), 10, "the training child dies with its worker")
    checkpoint = load_checkpoint(run_dir)
    assert checkpoint is not None

    with working(context):

        def ended() -> TrainingRun | None:
            with context.database.read() as session:
                row = session.get_one(TrainingRun, run.id)
            return row if row.state in ("done", "failed") else None

        done = wait_for(ended, 150, "the second attempt")
    assert (done.state, done.error, done.version) == ("done", None, 1)
    epochs: dict[int, list[int]] = {}
    for progress in rows(context, RunProgress):
        epochs.setdefault(progress.attempt, []).append(progress.epoch)
    assert min(epochs[2]) == checkpoint[0] + 1
    assert max(epochs[2]) == 20
    assert [v.version for v in rows(context, ModelVersion)] == [1]
    outcomes = {a.attempt: a.outcome for a in rows(context, JobAttempt)}
    assert outcomes[1] == "abandoned"
    assert len(outcomes) == 2


@pytest.mark.slow
def test_a_cancelled_training_ends_and_says_so(context: Context) -> None:
    """Somebody who stops a training wants the machine back, not a failed job that is tried again."""
    make_model(context, 60, epochs=5000)
    run = queue(context)
    with working(context):
        wait_for(lambda: rows(context, RunProgress), 90, "one epoch")
        with context.database.begin() as session:
            jobs.cancel(session, str(run.job_id))
        wait_for(lambda: rows(context, Job)[0].state == "cancelled", 30, "the job is cancelled")
    done = rows(context, TrainingRun)[0]
    assert done.state == "cancelled"
    assert not children_of((context.settings.home / "runs" / run.id).absolute())
    assert rows(context, ModelVersion) == []


def test_a_model_has_at_most_one_training_under_way(context: Context) -> None:
    """Labels arrive while a training waits; each of them must not queue another one."""
    make_model(context, 30)
    first = queue(context)
    with context.database.begin() as session:
        assert train.start(session, "digits", cause="again") is None
    with context.database.begin() as session:
        jobs.cancel(session, str(first.job_id))
    second = queue(context)
    states = {run.id: run.state for run in rows(context, TrainingRun)}
    assert states == {first.id: "cancelled", second.id: "queued"}


def test_a_training_with_an_unknown_parameter_is_refused_before_it_is_queued(context: Context) -> None:
    """The person who typed it is still there to read the answer."""
    make_model(context, 30)
    with context.database.begin() as session, pytest.raises(InputError, match="'epoch' is unknown"):
        train.start(session, "digits", cause="by hand", params={"epoch": 3})
    assert rows(context, Job) == []


def test_a_training_that_fails_says_why_in_the_childs_own_words(tmp_path: Path) -> None:
    """ "The process ended with status 1" sends people to a log that they cannot find."""
    spec = child_runs.prepare(tmp_path, "timm")
    (tmp_path / "run" / "spec.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(spec, family="tim")))
    environment = child_runs.environment("timm", tmp_path)
    with pytest.raises(TrainingError, match="unknown family 'tim'"):
        supervise.train(tmp_path / "run", environment, on_event=lambda event: None, check=lambda: None)


@pytest.mark.parametrize("error", [ConflictError("the lease is somebody else's"), Cancelled("stop")])
def test_no_child_is_left_behind(tmp_path: Path, error: Exception) -> None:
    """Whoever lost the job must be gone from the device before the next attempt comes to it."""
    spec = child_runs.prepare(tmp_path, "timm")
    Path(spec.locks_dir).mkdir()
    with (Path(spec.locks_dir) / "device-0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        seen: list[str] = []

        def check() -> None:
            if seen:
                raise error

        with pytest.raises(type(error)):
            supervise.train(
                Path(spec.run_dir),
                child_runs.environment("timm", tmp_path),
                on_event=lambda event: seen.append(event["event"]),
                check=check,
            )
    assert seen == ["waiting"]
    assert not children_of(Path(spec.run_dir))
