"""A batch as a whole: every item once whatever happens, the same answers as the server, results in four formats."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import func, select

from serving.batch import results, runs, work
from serving.batch.runs import Order
from sutdol import cli, jobs
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, ModelError, NotFoundError
from sutdol.images import admit, encode_png
from sutdol.jobs import worker
from sutdol.predictor import Predictor
from sutdol.settings import child_environment, load
from sutdol.tables import BatchRun, Job, LabelTask, PredictionRow, Sample
from tests.running_server import wait_for
from tests.tiny_models import classifier_bundle, classifier_onnx, coloured_png

COUNT = 150
WORKER = """
from serving.jobs import HANDLERS
from sutdol.jobs import worker
from sutdol.settings import load
from retrain.jobs import HANDLERS as MORE
worker.run(load(), ["batch"], HANDLERS | MORE)
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """150 images, two of which are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(COUNT):
        data = coloured_png(("red", "green", "blue")[i % 3], seed=i)
        (folder / f"{i:04d}.png").write_bytes(data if i not in (7, 90) else data[:60])
    return folder


def start(context: Context, source: Path, kind: str = "folder", **order: Any) -> BatchRun:
    with context.database.begin() as session:
        return runs.start(session, Order("tiny", **order), runs.source_of(source, kind), who="test")


def finish(context: Context, run: BatchRun) -> runs.State:
    worker.run_pending(context, {runs.KIND: work.handle})
    return state(context, run)


def state(context: Context, run: BatchRun) -> runs.State:
    with context.database.read() as session:
        return runs.state(session, runs.get(session, run.id))


def written(context: Context, run: BatchRun, format: str = "jsonl") -> bytes:
    with context.database.read() as session:
        row = runs.get(session, run.id)
    return b"".join(results.FORMATS[format][1](context.store, row, ["red", "green", "blue"]))


def lines(context: Context, run: BatchRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(context, run).splitlines()]


def test_a_batch_answers_every_image_as_the_server_does(context: Context, photos: Path) -> None:
    """One predictor, one answer; what cannot be read is a line that says so."""
    version = classifier_bundle(context)
    run = start(context, photos)
    done = finish(context, run)
    assert (done.state, done.done, done.failed, done.total, done.version) == ("done", COUNT, 2, COUNT, version)
    found = lines(context, run)
    assert [line["index"] for line in found] == list(range(COUNT))
    assert [i for i, line in enumerate(found) if "error" in line] == [7, 90]
    predictor = Predictor.open(context.store, "tiny", version)
    for i in (0, 1, 64, 149):
        expected = predictor.predict_bytes((photos / f"{i:04d}.png").read_bytes())
        assert found[i]["confidence"] == pytest.approx(expected.confidence)
        assert found[i]["predictions"][0]["name"] == expected.classes[0].label
    with context.database.read() as session:
        assert session.exec(select(func.count()).select_from(PredictionRow)).one() == 0, "not asked for"


def test_an_image_on_which_the_model_fails_is_alone_with_it(
    context: Context, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images go through the model together; a group that fails is run again one by one."""
    classifier_bundle(context)
    monkeypatch.setattr(work, "best_batch", lambda *_, **__: 8)
    whole = Predictor.run

    def fails_on_bright_ones(self: Predictor, batch: Any) -> Any:
        if batch[:, :, 0, 0].min(axis=1).max() > 0.99:
            raise ModelError("the model failed")
        return whole(self, batch)

    monkeypatch.setattr(Predictor, "run", fails_on_bright_ones)
    (photos / "0031.png").write_bytes(encode_png(np.full((32, 32, 3), 255, np.uint8)))
    run = start(context, photos)
    done = finish(context, run)
    assert (done.state, done.done) == ("done", COUNT)
    assert [i for i, line in enumerate(lines(context, run)) if "error" in line] == [7, 31, 90]


def test_all_formats_tell_the_same(context: Context, photos: Path) -> None:
    """Counted against the lines; the zip holds a picture per readable image."""
    classifier_bundle(context)
    run = start(context, photos, pictures=True)
    finish(context, run)
    rows = list(csv.DictReader(io.StringIO(written(context, run, "csv").decode())))
    assert len([r for r in rows if r["error"]]) == 2
    assert {r["name"] for r in rows} == {f"{i:04d}.png" for i in range(COUNT)}
    coco = json.loads(written(context, run, "coco"))
    assert len(coco["images"]) == COUNT - 2
    assert len(coco["annotations"]) == sum(
        len(line["predictions"]) for line in lines(context, run) if "error" not in line
    )
    with zipfile.ZipFile(io.BytesIO(written(context, run, "zip"))) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        pictures = [n for n in names if n.startswith("pictures/")]
        assert admit(archive.read(pictures[0])).media_type == "image/jpeg"
    assert {"results.jsonl", "results.csv", "coco.json"} < set(names)
    assert len(pictures) == COUNT - 2


def test_a_logged_batch_is_traffic_like_any_other(context: Context, photos: Path) -> None:
    """Rows with probabilities, tasks for what the arms picked, images kept for those; ids lead from result to log."""
    context = Context(load(home=context.settings.home, label_rate=0.5), context.database, context.store)
    classifier_bundle(context)
    run = start(context, photos, log=True)
    finish(context, run)
    ids = {line["prediction_id"] for line in lines(context, run) if "error" not in line}
    with context.database.read() as session:
        rows = {row.id: row for row in session.exec(select(PredictionRow))}
        tasks = session.exec(select(LabelTask)).all()
        samples = set(session.exec(select(Sample.id)))
    assert set(rows) == ids
    assert len(ids) == COUNT - 2
    assert all(0 < row.inclusion_probability <= 1 for row in rows.values())
    assert 5 < len(tasks) < COUNT
    assert {task.sample_id for task in tasks} == samples
    assert all(context.store.has(f"samples/{sample}") for sample in samples)
    drawn = {row.sample_id for row in rows.values() if "drawn" in row.arms}
    assert {task.sample_id for task in tasks if task.arm == "drawn"} == drawn


@contextmanager
def working(context: Context) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", WORKER], env=child_environment(context.settings), cwd=Path.cwd())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("log", [True, False])
def test_kill_9_in_the_middle_repeats_and_loses_nothing(context: Context, tmp_path: Path, log: bool) -> None:
    """Every item once in the results and, if logged, once in the log."""
    settings = load(home=context.settings.home, lease_s=2.0, heartbeat_s=0.4, inference_threads=2)
    context = Context(settings, context.database, context.store)
    classifier_bundle(context, onnx_bytes=classifier_onnx(burden=2))
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i:04d}.png").write_bytes(coloured_png(seed=i))
    run = start(context, folder, log=log)
    with working(context) as process:
        wait_for(lambda: state(context, run).done >= 64, "the first chunk", within_s=60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    cut = state(context, run)
    assert 64 <= cut.done < 400
    context.store.put(f"batches/{run.id}/{cut.done // 64:06d}.jsonl", b"half a chunk, not committed")
    with working(context):
        wait_for(lambda: state(context, run).state == "done", "the second attempt", within_s=90)
    found = lines(context, run)
    assert [line["name"] for line in found] == [f"{i:04d}.png" for i in range(400)]
    with context.database.read() as session:
        assert session.get_one(Job, state_job(context, run)).attempt == 2
        rows = session.exec(select(PredictionRow.id)).all()
    assert set(rows) == ({line["prediction_id"] for line in found} if log else set())


def state_job(context: Context, run: BatchRun) -> str:
    with context.database.read() as session:
        return runs.get(session, run.id).job_id


def test_a_cancelled_batch_keeps_what_it_has_and_goes_on(context: Context, photos: Path) -> None:
    """Somebody needs the machine for an hour."""
    classifier_bundle(context)
    run = start(context, photos)
    with context.database.read() as session:
        job = session.get_one(Job, run.job_id)

    commits = work._Attempt._commit

    def once(self: Any, chunk: Any, total: Any, *, last: bool = False) -> None:
        commits(self, chunk, total, last=last)
        with context.database.begin() as session:
            jobs.cancel(session, job.id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work._Attempt, "_commit", once)
        cut = finish(context, run)
    assert (cut.state, cut.done) == ("cancelled", 64)
    assert len(lines(context, run)) == 64
    with context.database.begin() as session:
        runs.resume(session, run.id)
        with pytest.raises(ConflictError, match="queued"):
            runs.resume(session, run.id)
    done = finish(context, run)
    assert (done.state, done.done) == ("done", COUNT)
    assert [line["index"] for line in lines(context, run)] == list(range(COUNT))


def test_files_that_come_later_are_not_in_the_batch(context: Context, photos: Path) -> None:
    """A second attempt must mean the same items as the first."""
    classifier_bundle(context)
    run = start(context, photos)
    store = context.store
    names = sorted(p.name for p in photos.glob("*.png"))[:3]
    store.put(f"batches/{run.id}/names.json", json.dumps(names).encode())
    assert finish(context, run).done == 3


def test_an_empty_folder_is_a_batch_of_nothing(context: Context, tmp_path: Path) -> None:
    """Done, with no results, in every format."""
    classifier_bundle(context)
    (tmp_path / "empty").mkdir()
    run = start(context, tmp_path / "empty")
    assert (finish(context, run).state, state(context, run).done) == ("done", 0)
    assert written(context, run) == b""
    assert json.loads(written(context, run, "coco"))["images"] == []
    with zipfile.ZipFile(io.BytesIO(written(context, run, "zip"))) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    "order",
    [{"every_s": 0.0}, {"every_s": float("nan")}, {"scene": 2.0}, {"every_s": 1.0, "scene": 0.5}],
)
def test_orders_that_make_no_sense_are_refused(context: Context, tmp_path: Path, order: dict[str, Any]) -> None:
    """Before anything is queued."""
    classifier_bundle(context)
    with pytest.raises(InputError):
        start(context, tmp_path, **order)
    with context.database.read() as session, pytest.raises(NotFoundError):
        runs.get(session, "nope")


def test_the_command_predicts_a_folder_into_a_file(
    context: Context, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ending of the file says the format."""
    monkeypatch.setenv("SUTDOL_HOME", str(context.settings.home))
    classifier_bundle(context)
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", "models:/tiny@champion", str(photos), "--out", str(tmp_path / "found.csv")])
    assert not ended.value.code
    assert "150 images, 2 could not be read" in capsys.readouterr().out
    assert (tmp_path / "found.csv").read_text().startswith("index,name")
