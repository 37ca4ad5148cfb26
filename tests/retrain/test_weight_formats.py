"""Downloads: what a version can be had as, the same answers in every form, and a clear word where it cannot."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest

from retrain import convert, datasets, train
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol import adoption, registry
from sutdol.adoption import Answers
from sutdol.context import Context
from sutdol.errors import ConflictError, NotFoundError
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.predictor import Predictor
from sutdol.settings import load
from sutdol.tables import Job
from sutdol.types import Label, Manifest
from tests.foreign_models import classifier
from tests.small_networks import convolutional_onnx
from tests.tiny_models import classifier_bundle


def run(context: Context, model: str, format: str) -> tuple[Job, dict[str, bytes]]:
    with context.database.begin() as session:
        job_id = convert.start(session, model, 1, format)
    worker.run_pending(context, {"retrain.convert": HANDLERS["retrain.convert"]})
    with context.database.read() as session:
        job = session.get_one(Job, job_id)
    if job.state != "done" or job.result is None:
        return job, {}
    with zipfile.ZipFile(io.BytesIO(context.store.get(job.result["key"]))) as archive:
        return job, {name: archive.read(name) for name in archive.namelist()}


def test_the_bundle_itself_can_be_carried_away(context: Context) -> None:
    """One file for the runtime, and in words and data how to feed it."""
    classifier_bundle(context)
    job, files = run(context, "tiny", "onnx")
    assert job.state == "done", job.error
    assert set(files) == {"model.onnx", "scoring.npz", "golden.npz", "manifest.json", "README.txt"}
    assert msgspec.json.decode(files["manifest.json"], type=Manifest).classes == ["red", "green", "blue"]
    assert b"divided by 255" in files["README.txt"]
    assert run(context, "tiny", "onnx")[0].state == "done", "a second time it is there already"


@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra [openvino] is not installed")
def test_openvino_gives_the_same_answers(context: Context, tmp_path: Path) -> None:
    """Opened by OpenVINO itself in a process of its own, from the zip alone."""
    classifier_bundle(context, onnx_bytes=convolutional_onnx(), ood=False)
    job, files = run(context, "tiny", "openvino")
    assert job.state == "done", job.error
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(files[name])
    images = np.random.default_rng(1).random((2, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    code = (
        "import openvino, numpy as np;m = openvino.Core().compile_model('model.xml', 'CPU');"
        "np.save('y.npy', m(np.load('x.npy'))['scores'])"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = Predictor.open(context.store, "tiny", 1).run(images).scores
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (load().tensorflow_venv / "bin" / "onnx2tf").is_file(), reason="no environment with onnx2tf")
def test_tensorflow_answers_as_the_file_that_serves(context: Context) -> None:
    """Both forms are compared before they are handed out, so being handed out is the proof."""
    classifier_bundle(context, onnx_bytes=convolutional_onnx(), ood=False)
    job, files = run(context, "tiny", "tensorflow")
    assert job.state == "done", job.error
    assert {"model.tflite", "saved_model/saved_model.pb", "manifest.json", "README.txt"} <= set(files)
    assert b"channels last" in files["README.txt"]


REASONS = [
    ("tensorflow", {}, {}, "onnx2tf"),
    ("torchscript", {}, {"adopted": "x"}, "was adopted from ONNX"),
    ("torchscript", {}, {"compressed": "int8"}, "compressed copy"),
    ("torchscript", {"weights.safetensors": "0"}, {}, "family 'tiny' is not known"),
]


@pytest.mark.parametrize(("format", "files", "provenance", "words"), REASONS)
def test_what_cannot_be_had_says_why(
    format: str, files: dict[str, str], provenance: dict[str, str], words: str
) -> None:
    """ "Not available" without a because sends people to look for a bug."""
    from sutdol.types import InputSpec

    manifest = Manifest("classify", ["a"], InputSpec((8, 8)), "tiny", files=files, provenance=provenance)
    reason = str(convert.unavailable(format, manifest, load(tensorflow_venv="nowhere")))
    assert reason.startswith("not available because")
    assert words in reason


def test_an_adopted_version_is_refused_before_it_is_queued(context: Context) -> None:
    """The person who asked is still there; what is possible is possible."""
    adoption.adopt(context, "lamps", adoption.propose(classifier(), Answers(normalise="none")), who="t")
    with context.database.begin() as session:
        with pytest.raises(ConflictError, match="adopted from ONNX"):
            convert.start(session, "lamps", 1, "torchscript")
        with pytest.raises(NotFoundError, match="unknown export format"):
            convert.start(session, "lamps", 1, "coreml")
    assert run(context, "lamps", "onnx")[0].state == "done"


@pytest.mark.slow
def test_torchscript_is_traced_by_the_family_from_its_weights(context: Context, tmp_path: Path) -> None:
    """Opened by torch alone; the same answers as the file that serves."""
    rng, records = np.random.default_rng(0), []
    for i in range(24):
        rgb = rng.integers(0, 90, (40, 40, 3), np.uint8)
        rgb[:, :, i % 2] += 120
        records.append(Record(f"{i}.png", Label(classes=[("a", "b")[i % 2]]), data=encode_png(rgb)))
    with context.database.begin() as session:
        registry.create_model(session, "pair", task="classify", classes=[], family="timm", params={"epochs": 1})
    datasets.import_records(context, "pair", records)
    with context.database.begin() as session:
        train.start(session, "pair", cause="test")
    worker.run_pending(context, {"train": HANDLERS["train"]})
    job, files = run(context, "pair", "torchscript")
    assert job.state == "done", job.error
    (tmp_path / "model.torchscript").write_bytes(files["model.torchscript"])
    code = (
        "import torch, json;m = torch.jit.load('model.torchscript');"
        "x = torch.linspace(0, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32);print(json.dumps(m(x)[0].tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    images = np.linspace(0, 1, 2 * 3 * 32 * 32, dtype=np.float32).reshape(2, 3, 32, 32)
    expected = Predictor.open(context.store, "pair", 1).run(images).scores
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), expected, atol=1e-3)
