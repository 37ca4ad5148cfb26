"""Every family keeps the contract of `retrain.families`: trains, exports, cancels, resumes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from retrain import preview
from retrain.child import EXIT_CANCELLED, read_result
from retrain.families import FAMILIES, PARITY_MAX, load_checkpoint
from sutdol.errors import InputError
from sutdol.images import decode
from sutdol.predictor import Predictor
from sutdol.types import Manifest
from tests import child_runs

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def test_every_family_and_every_task_of_it_has_a_case() -> None:
    """A family that is added without one would be tested by nobody."""
    families = {family: {t for f, t in child_runs.CASES.values() if f == family} for family in FAMILIES}
    assert set(FAMILIES) <= set(child_runs.CASES)
    assert families == {"timm": {"classify", "multilabel"}, "yolo": {"detect", "classify"}, "efficientdet": {"detect"}}


@pytest.mark.parametrize("family", sorted(child_runs.CASES))
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
    manifest = Manifest(task=spec.task, classes=spec.classes, input=result.input, family=spec.family)
    predictor = Predictor.from_parts((alone / "model.onnx").read_bytes(), manifest)
    height, width = result.input.size_hw
    rng = np.random.default_rng(0)
    for n in (1, 2, 5):
        raw = predictor.run(rng.random((n, 3, height, width), dtype=np.float32))
        assert raw.features.shape[0] == n
        assert raw.features.shape[1] >= 16
        expected = (n, len(spec.classes)) if spec.task != "detect" else (n, 4 + len(spec.classes))
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


@pytest.mark.parametrize(
    ("family", "most"),
    [
        ("timm", 200_000),
        ("yolo", 350_000),
        pytest.param("yolo classify", 900_000, marks=pytest.mark.faults),
        pytest.param("efficientdet", 2_000_000, marks=pytest.mark.faults),
    ],
)
@pytest.mark.slow
def test_a_pruned_network_trains_on_after_a_break_and_keeps_its_contract(
    family: str, most: int, tmp_path: Path
) -> None:
    """Half of the channels of each layer go; what is left learns, is found again by its shapes, and is exported."""
    spec = child_runs.prepare(tmp_path, family, epochs=2)
    run_dir = Path(spec.run_dir)
    for stop_after, last_word in ((1, "paused"), (0, "done")):
        spec = msgspec.structs.replace(spec, prune=0.5, stop_after=stop_after)
        (run_dir / "spec.json").write_bytes(msgspec.json.encode(spec))
        status, said = child_runs.finish(spec)
        assert status == 0, (run_dir / "child.log").read_text()[-3000:]
        assert said[-1]["event"] == last_word
    assert [e["epoch"] for e in said if e["event"] == "epoch"] == [2]
    result = read_result(run_dir)
    assert result is not None
    assert result.parity <= PARITY_MAX
    assert sum(v.size for v in load_file(run_dir / "weights.safetensors").values()) < most
    manifest = Manifest(task=spec.task, classes=spec.classes, input=result.input, family=spec.family)
    Predictor.from_parts((run_dir / "model.onnx").read_bytes(), manifest).warm((1, 3))


@every_family
def test_unknown_parameters_and_tasks_are_refused_by_name(family: str) -> None:
    """A misspelt parameter that is silently ignored costs a night of training."""
    known = FAMILIES[family]
    task = child_runs.CASES[family][1]
    with pytest.raises(InputError, match=r"'epoch' is unknown \(known: .*epochs"):
        known.params(task, ["a"], {"epoch": 3})
    with pytest.raises(InputError, match="expected int"):
        known.params(task, ["a"], {"epochs": "3"})
    with pytest.raises(InputError, match="this family can do"):
        known.params("segment", ["a"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"preset 'best' is unknown \(known: fast, balanced, accurate\)"):
        known.params(task, ["a"], {"preset": "best"})
    assert known.params(task, ["a"], {"epochs": 3})["epochs"] == 3


@every_family
def test_presets_give_way_to_what_was_asked_for(family: str) -> None:
    """`fast` is a beginning; whoever names a number means it. Without a size an architecture gets its own."""
    known, task = FAMILIES[family], child_runs.CASES[family][1]
    for name in ("fast", "balanced", "accurate"):
        params = known.params(task, ["cat", "dog"], {"preset": name}, {"epochs": 3})
        assert params["epochs"] == 3
        assert params["architecture"] == FAMILIES[family].load().PRESETS[name]["architecture"]
        assert params["image_size"] >= 128
    assert known.params(task, ["cat"], {"preset": "fast"}, {"preset": "accurate"})["epochs"] > 30


@every_family
def test_digits_are_not_mirrored_and_cats_are(family: str) -> None:
    """A mirrored 2 is no 2; half of the cats look the other way."""
    known, task = FAMILIES[family], child_runs.CASES[family][1]
    usual = known.params(task, ["cat", "dog"])
    assert (usual["hflip"], usual["vflip"], usual["rotate_deg"], usual["brightness"], usual["crop"]) == (
        0.5,
        0,
        15,
        0.2,
        0,
    )
    assert usual.get("mosaic", 0.0) == 0.0
    for classes in (["0", "1"], ["turn_left", "stop"], ["왼쪽", "오른쪽"]):
        assert known.params(task, classes)["hflip"] == 0.0


@every_family
@pytest.mark.slow
def test_augmentation_can_be_looked_at_before_it_is_trained_with(family: str, tmp_path: Path) -> None:
    """A mirrored word or a box beside its object is seen in a second on a sheet, and after a night in a curve."""
    spec = child_runs.prepare(tmp_path, family)
    sheet = tmp_path / "sheet.jpg"
    command = [sys.executable, "-m", "retrain.preview", spec.run_dir, str(sheet), "3"]
    subprocess.run(command, check=True, env=child_runs.environment(family, tmp_path / "run"), cwd=child_runs.ROOT)
    rgb = decode(sheet.read_bytes())
    rows, columns = rgb.shape[0] // (preview.CELL + preview.GAP), rgb.shape[1] // (preview.CELL + preview.GAP)
    assert (rows, columns) == (len(spec.items), 4)
    first = rgb[: preview.CELL, : preview.CELL].astype(int)
    second = rgb[: preview.CELL, preview.CELL + preview.GAP :][:, : preview.CELL].astype(int)
    assert np.abs(first - second).mean() > 1, "the second picture is an augmented one"


@every_family
@pytest.mark.slow
def test_the_head_alone_can_be_trained(family: str, tmp_path: Path) -> None:
    """With forty photos and a good body, that is all that should move: not even the statistics of its batch norms."""
    first = child_runs.prepare(tmp_path / "first", family, epochs=1)
    assert child_runs.finish(first)[0] == 0, (Path(first.run_dir) / "child.log").read_text()[-3000:]
    parent = tmp_path / "parent.safetensors"
    shutil.copyfile(Path(first.run_dir) / "weights.safetensors", parent)
    spec = child_runs.prepare(tmp_path / "head", family, warm_start=str(parent), warm_epochs=1, head_only=True)
    assert child_runs.finish(spec)[0] == 0, (Path(spec.run_dir) / "child.log").read_text()[-3000:]
    before, after = load_file(parent), load_file(Path(spec.run_dir) / "weights.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    heads = {"timm": ("fc.",), "yolo": ("model.23.",), "efficientdet": ("class_net.", "box_net.")}
    assert changed
    assert all(name.startswith(heads[family]) for name in changed), sorted(changed)[:5]


@pytest.mark.parametrize("family", ["efficientdet", "timm"])
@pytest.mark.slow
def test_a_training_that_gets_no_better_ends_early(family: str, tmp_path: Path) -> None:
    """Five hundred epochs of nothing are 497 too many. (ultralytics' own patience begins with the first hit on val.)"""
    spec = child_runs.prepare(tmp_path, family, epochs=500, patience=2, lr=0.0)
    status, said = child_runs.finish(spec)
    assert status == 0, (Path(spec.run_dir) / "child.log").read_text()[-3000:]
    assert max(e["epoch"] for e in said if e["event"] == "epoch") <= 4


@every_family
@pytest.mark.slow
def test_pretrained_weights_that_cannot_be_had_are_told_with_the_remedy(family: str, tmp_path: Path) -> None:
    """A machine without network is the usual place; a stack trace of a hub client helps nobody there."""
    spec = child_runs.prepare(tmp_path, family, pretrained=True)
    status, said = child_runs.finish(spec)
    assert status == 1
    assert said[-1]["code"] == "setup"
    assert "put the file weights/" in said[-1]["text"]
