"""Every family keeps the contract of `retrain.families`: trains, exports, cancels, resumes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from retrain.child import EXIT_CANCELLED, read_result
from retrain.families import FAMILIES, PARITY_MAX, load_checkpoint
from sutdol.errors import InputError
from sutdol.predictor import Predictor
from sutdol.types import Manifest
from tests import child_runs

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


@every_family
@pytest.mark.slow
def test_the_exported_file_stands_alone(family: str, tmp_path: Path) -> None:
    """A model whose weights lie in a second file is lost at the first copy; and a fixed batch size refuses batching."""
    spec = child_runs.prepare(tmp_path, family, epochs=1)
    status, said = child_runs.finish(spec)
    assert status == 0, (Path(spec.run_dir) / "child.log").read_text()[-3000:]
    assert [e["event"] for e in said if e["event"] != "step"] == ["epoch", "exporting", "done"]
    result = read_result(Path(spec.run_dir))
    assert result is not None
    assert result.parity <= PARITY_MAX

    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(Path(spec.run_dir) / "model.onnx", alone / "model.onnx")
    shutil.rmtree(spec.run_dir)
    manifest = Manifest(task=spec.task, classes=spec.classes, input=result.input, family=family)
    predictor = Predictor.from_parts((alone / "model.onnx").read_bytes(), manifest)
    height, width = result.input.size_hw
    rng = np.random.default_rng(0)
    for n in (1, 2, 5):
        raw = predictor.run(rng.random((n, 3, height, width), dtype=np.float32))
        assert raw.features.shape[0] == n
        assert raw.features.shape[1] >= 16
        expected = (n, len(spec.classes)) if spec.task == "classify" else (n, 4 + len(spec.classes))
        assert raw.scores.shape[:2] == expected
    predictor.predict_bytes(Path(spec.items[0].path).read_bytes())


@every_family
@pytest.mark.slow
def test_a_killed_training_goes_on_after_its_last_checkpoint_and_can_be_cancelled(family: str, tmp_path: Path) -> None:
    """Machines lose power and people change their minds; neither may cost more than the epoch it happened in."""
    spec = child_runs.prepare(tmp_path, family, epochs=500)
    run_dir = Path(spec.run_dir)
    with child_runs.popen(spec) as child:
        for event in child_runs.events(child):
            if event["event"] == "epoch" and event["epoch"] == 2:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    checkpoint = load_checkpoint(run_dir)
    assert checkpoint is not None
    assert checkpoint[0] >= 2

    epochs = []
    with child_runs.popen(spec) as child:
        for event in child_runs.events(child):
            if event["event"] == "epoch":
                epochs.append(event["epoch"])
                (run_dir / "cancel").touch()
    assert child.returncode == EXIT_CANCELLED, (run_dir / "child.log").read_text()[-3000:]
    assert epochs[0] == checkpoint[0] + 1
    assert len(epochs) <= 2
    assert read_result(run_dir) is None


@every_family
def test_unknown_parameters_and_tasks_are_refused_by_name(family: str) -> None:
    """A misspelt parameter that is silently ignored costs a night of training."""
    known = FAMILIES[family]
    task = child_runs.TASKS[family]
    with pytest.raises(InputError, match=r"'epoch' is unknown \(known: .*epochs"):
        known.params(task, ["a"], {"epoch": 3})
    with pytest.raises(InputError, match="expected int"):
        known.params(task, ["a"], {"epochs": "3"})
    other = next(t for t in ("classify", "detect") if t not in known.tasks)
    with pytest.raises(InputError, match="this family can do"):
        known.params(other, ["a"])  # type: ignore[arg-type]
    assert known.params(task, ["a"], {"epochs": 3})["epochs"] == 3
