"""What families share or compute without training: parameters, batches, warm starts, missing libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from retrain.calibrate import best_score_min, calibrate, fit_familiarity
from retrain.families import FAMILIES, Family, Item, get_family
from retrain.families._classifier import one_cycle
from retrain.families._replay import MAX_OFTEN, draw_probabilities, repeats
from sutdol.errors import NotFoundError, SetupError
from sutdol.images import encode_png
from sutdol.tables import DatasetItem
from sutdol.thresholds import Study
from sutdol.types import Box, InputSpec, Label
from tests import child_runs
from tests.tiny_models import detector_onnx


def items(source: str, **counts: int) -> list[Item]:
    return [
        Item(f"{source}{name}{i}", "train", Label(classes=[name]), source, "")
        for name, n in counts.items()
        for i in range(n)
    ]


def test_a_missing_library_names_the_extra_to_install() -> None:
    """The base install cannot train, and must say what to type."""
    family = Family("retrain.families.timm", ("classify",), "train", ("no_such_library",))
    with pytest.raises(SetupError, match=r"no_such_library.*pip install 'sutdol\[train\]'"):
        family.load()


def test_an_unknown_family_lists_the_known_ones() -> None:
    """A misspelt name is found at once, by the person who typed it."""
    with pytest.raises(NotFoundError, match=r"unknown family 'tim' \(known: efficientdet, timm, yolo\)"):
        get_family("tim")


def test_families_are_known_without_importing_their_libraries() -> None:
    """The worker and the command line look at FAMILIES; only the child may pay for torch."""
    code = (
        "import sys; from retrain import families; import retrain.train, retrain.calibrate\n"
        "from pathlib import Path\n"
        "[f.params(f.tasks[0], ['a']) and f.environment(Path('x'), {}) for f in families.FAMILIES.values()]\n"
        "heavy = {'torch', 'timm', 'ultralytics', 'effdet'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert set(FAMILIES) == {"timm", "yolo", "efficientdet"}


def test_half_of_a_batch_is_replay_and_both_halves_are_balanced() -> None:
    """Fine-tuning on new hard labels alone makes a model worse; drowning them in old data teaches it nothing."""
    training = items("imported", a=90, b=10) + items("annotation", a=2, b=8)
    drawn = draw_probabilities(training, 0.5)
    assert drawn.sum() == pytest.approx(1)
    assert drawn[:100].sum() == pytest.approx(0.5)
    assert drawn[:90].sum() == pytest.approx(0.25)
    assert drawn[100:102].sum() == pytest.approx(0.25)


def test_the_first_labels_do_not_take_half_of_every_batch() -> None:
    """Three labels drawn thirty times an epoch, one of them wrong, would be learnt by heart."""
    training = items("imported", a=500, b=500) + items("annotation", a=1, b=2)
    drawn = draw_probabilities(training, 0.5)
    assert drawn[1000:].sum() == pytest.approx(MAX_OFTEN * 3 / (MAX_OFTEN * 3 + 1000))


@pytest.mark.parametrize("source", ["imported", "annotation"])
def test_without_a_second_kind_of_source_classes_alone_are_balanced(source: str) -> None:
    """A first training has no labels yet, and a model may be labelled from nothing."""
    drawn = draw_probabilities(items(source, a=30, b=10), 0.5)
    assert drawn.sum() == pytest.approx(1)
    assert drawn[:30].sum() == pytest.approx(0.5)


def test_the_learning_rate_rises_once_and_ends_at_nothing() -> None:
    """A schedule that ends high leaves the averaged weights noisy."""
    rates = [one_cycle(p) for p in np.linspace(0, 1, 101)]
    assert max(rates) == 1.0
    assert rates[0] < 0.1
    assert rates[-1] == pytest.approx(0)
    assert int(np.argmax(rates)) == 20


def test_labelled_scenes_are_repeated_but_not_for_ever() -> None:
    """Ten labelled scenes among three hundred imported ones would hardly be seen otherwise."""
    assert repeats(items("imported", a=4)) == [1] * 4
    assert repeats(items("annotation", a=4)) == [1] * 4
    assert repeats(items("imported", a=30) + items("annotation", a=2))[-2:] == [3, 3]
    assert repeats(items("imported", a=4) + items("annotation", a=4))[-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", [case for case in sorted(child_runs.CASES) if case != "timm multilabel"])
def test_a_new_class_keeps_what_was_learnt_about_the_old_ones(family: str, tmp_path: Path) -> None:
    """Class lists only grow; a warm start that threw the head away would forget everything at each new class."""
    old = child_runs.prepare(tmp_path / "old", family)
    grown = child_runs.prepare(tmp_path / "grown", family, classes=[*child_runs.CLASSES, "blue"])
    script = """
import sys, msgspec, torch
from pathlib import Path
from safetensors.torch import save_file
from retrain.families import Spec, get_family
old, grown = (msgspec.json.decode(Path(f, "spec.json").read_bytes(), type=Spec) for f in sys.argv[1:])
family = get_family(old.family).load()
before = {k: v.clone() for k, v in family.build(old).state_dict().items()}
save_file(before, "parent.safetensors")
net = family.build(grown)
family.start_warm(net, Path("parent.safetensors"), grown)
after = net.state_dict()
heads = [k for k in before if before[k].shape != after[k].shape]
assert heads, "the head grew"
for name, value in before.items():
    if name not in heads:
        assert torch.equal(after[name], value), name
    else:
        shape = (len(value) // len(old.classes), len(old.classes), *value.shape[1:])  # anchors, classes
        found = after[name].reshape(shape[0], len(grown.classes), *shape[2:])
        assert torch.equal(found[:, : shape[1]], value.reshape(shape)), name
"""
    subprocess.run(
        [sys.executable, "-c", script, old.run_dir, grown.run_dir],
        check=True,
        cwd=tmp_path,
        env=child_runs.environment(family, tmp_path) | {"PYTHONPATH": str(child_runs.ROOT)},
    )


def blobs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes in sixteen dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centres = np.random.default_rng(99).normal(0, 3, (3, 16))
    return (centres[labels] + rng.normal(0, 1, (n, 16))).astype(np.float32), labels


@pytest.mark.parametrize("val", [0, 10, 39, 40, 200])
def test_few_familiar_images_are_called_unfamiliar_whatever_the_size_of_val(val: int) -> None:
    """Every familiar image that is marked costs a label; a threshold from ten images may mark a third of them."""
    train, labels = blobs(300)
    fitted = fit_familiarity(train, labels, blobs(val, 1)[0].reshape(val, 16), normalise=True)
    assert fitted is not None
    statistics, threshold = fitted
    assert np.mean(statistics.score(blobs(2000, 2)[0]) >= threshold) < 0.10
    strange = np.random.default_rng(3).normal(0, 3, (500, 16)).astype(np.float32)
    assert np.mean(statistics.score(strange) >= threshold) > 0.9


def test_with_a_handful_of_images_nothing_is_called_familiar() -> None:
    """Statistics of three images would mark everything or nothing."""
    train, labels = blobs(5)
    assert fit_familiarity(train, labels, blobs(0)[0].reshape(0, 16), normalise=True) is None


@pytest.mark.parametrize(
    ("scores", "hits", "objects", "expected"),
    [
        ([0.45, 0.4, 0.3, 0.2], [True, True, False, False], 2, 0.4),
        ([0.9, 0.8], [False, False], 2, 0.5),
        ([0.99, 0.98], [True, True], 2, 0.5),
        ([0.02, 0.01], [True, True], 2, 0.05),
        ([], [], 3, 0.25),
        ([0.7], [False], 0, 0.25),
    ],
)
def test_boxes_are_reported_from_the_best_trade_of_found_and_false(
    scores: list[float], hits: list[bool], objects: int, expected: float
) -> None:
    """The bounds keep a detector talkative enough to be corrected, and quiet enough to be read."""
    assert best_score_min(np.array(scores), np.array(hits, bool), objects) == pytest.approx(expected)


def test_a_detector_learns_on_val_which_class_is_hard_and_what_accuracy_costs() -> None:
    """A doubt about a hard class weighs more, and people see what they would trade."""
    rng = np.random.default_rng(5)
    files: dict[str, bytes] = {}
    rows = []
    truth = {"classes": [], "boxes": [msgspec.to_builtins(Box("cat", 24, 28, 40, 36))]}
    for i in range(40):
        files[f"s{i}"] = encode_png(rng.integers(0, 255, (64, 64, 3), np.uint8))
        split = "val" if i % 2 else "train"
        rows.append(DatasetItem(dataset_version_id="d", sample_id=f"s{i}", split=split, value=truth, source="imported"))
    found = calibrate(
        detector_onnx([(32, 32, 16, 8, 0.9, 0.1), (10, 10, 8, 8, 0.1, 0.6), (50, 50, 8, 8, 0.3, 0.1)]),
        InputSpec((64, 64), "letterbox"),
        task="detect",
        classes=["cat", "dog"],
        family="tiny",
        items=rows,
        read=files.__getitem__,
        provenance={},
    )
    assert found.manifest.difficulty == {"cat": pytest.approx(0.0)}
    assert found.manifest.accept_at == []
    study = msgspec.json.decode(found.files["thresholds.json"], type=Study)
    assert (study.n, study.accept_at) == (60, [])
    assert study.accuracy[3][-1] is None or study.accuracy[3][-1] == 1.0
