"""Drift alarms on real photos: blood cells through a detector that was trained on 64 of them.

    BCCD photos -> 64 train a small yolo11 (ONNX, calibrated) -> the other 300: what the log would hold, clean and changed
       -> per run: 200 of them at random are the reference, the rest the stream -> charts -> images until the alarm

False alarms are counted on streams that hold each photo once (the fair test: new photos of the same world) and on long
streams drawn with repetition from the hundred that are left over, which differ from the reference by their own chance.

    SUTDOL_TEST_DATA=... python -m tests.benchmarks.learning.drift
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sutdol.monitor import drift
from sutdol.monitor.drift import Batch, State
from tests.benchmarks.learning.tables import Figure, show

TRAIN, REFERENCE = 64, 200
EPOCHS = 12
RUNS = 200
LONG = 10_000
Rgb = NDArray[np.uint8]


def swapped(rgb: Rgb, _: np.random.Generator) -> Rgb:
    return np.ascontiguousarray(rgb[:, :, ::-1])


def darker(rgb: Rgb, _: np.random.Generator) -> Rgb:
    return (rgb * 0.85).astype(np.uint8)


def noisy(rgb: Rgb, rng: np.random.Generator) -> Rgb:
    return np.clip(rgb + rng.normal(0, 0.05 * 255, rgb.shape), 0, 255).astype(np.uint8)


def blurred(rgb: Rgb, _: np.random.Generator) -> Rgb:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1.0), np.uint8)


def compressed(rgb: Rgb, _: np.random.Generator) -> Rgb:
    return np.asarray(simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(rgb, quality=15)))


CHANGES = {
    "red and blue exchanged": (swapped, 50),
    "brightness -15 %": (darker, 50),
    "noise, sigma .05": (noisy, 50),
    "blur, sigma 1 px of 640": (blurred, 500),
    "JPEG quality 15": (compressed, 500),
}


def photos() -> list[tuple[Path, Any]]:
    """Files and labels of the data set, in the order of their names."""
    from retrain import formats

    folder = Path(os.environ["SUTDOL_TEST_DATA"]) / "bccd" / "BCCD"
    return [(r.path, r.label) for r in sorted(formats.read(folder).records, key=lambda r: r.name) if r.path]


def detector(train: list[tuple[Path, Any]], folder: Path) -> Any:
    """A calibrated predictor, trained here; about a minute on two cores."""
    from retrain.families import Item, Spec, get_family
    from tests.benchmarks.learning.nets import Quiet

    family = get_family("yolo")
    os.environ.update(family.environment(folder))
    module = family.load()
    classes = sorted({box.label for _, label in train for box in label.boxes})
    items = [Item(f"{i:064d}", "train", label, "imported", str(path)) for i, (path, label) in enumerate(train)]
    params = family.params("detect", classes, {"epochs": EPOCHS, "device": "cpu"})
    spec = Spec("benchmark", str(folder), "yolo", "detect", classes, params, items, str(folder))
    export = module.to_onnx(spec, module.fit(spec, Quiet()))
    return calibrated(export, items, classes)


def calibrated(export: Any, items: list[Any], classes: list[str]) -> Any:
    import msgspec

    from retrain.calibrate import calibrate
    from sutdol.tables import DatasetItem

    rows = [
        DatasetItem(
            dataset_version_id="", sample_id=i.sample_id, split="train", value=msgspec.to_builtins(i.value), source=""
        )
        for i in items
    ]
    paths = {i.sample_id: Path(i.path) for i in items}
    found = calibrate(
        export.onnx,
        export.input,
        task="detect",
        classes=classes,
        family="yolo",
        items=rows,
        read=lambda name: paths[name].read_bytes(),
        provenance={},
        threads=2,
    )
    return found.predictor


def log_of(predictor: Any, images: list[Rgb]) -> Batch:
    """What serving would log of these images."""
    from sutdol.appearance import appearance
    from sutdol.sampling import is_unfamiliar

    columns: dict[str, list[float]] = {name: [] for name in drift.SIGNALS}
    classes, unfamiliar = [], []
    for rgb in images:
        tensor = predictor.prepare(rgb)
        prediction = predictor.interpret(predictor.run(tensor[None]), 0, rgb.shape[:2])
        looks = appearance(tensor, predictor.manifest.input)
        values = {
            "ood_score": prediction.ood_score,
            "confidence": prediction.confidence,
            "objects": float(len(prediction.boxes)),
            "brightness": looks.brightness,
            "sharpness": looks.sharpness,
            "colour": looks.colour,
        }
        for name, value in values.items():
            columns[name].append(value)
        classes.append(prediction.boxes[0].label if prediction.boxes else "")
        unfamiliar.append(is_unfamiliar(prediction, predictor.manifest))
    return Batch({k: np.array(v) for k, v in columns.items()}, classes, np.array(unfamiliar))


def chosen(batch: Batch, rows: NDArray[np.integer]) -> Batch:
    signals = {name: values[rows] for name, values in batch.signals.items()}
    return Batch(signals, [batch.classes[i] for i in rows], batch.unfamiliar[rows])


def first_alarm(reference: drift.Reference, clean: Batch, changed: Batch) -> float:
    """Images of `changed` until an alarm, after `clean` came first; infinite without one."""
    state = State()
    drift.watch(reference, state, clean)
    if state.alarms:
        return 0.0
    return next((c.at + 1.0 for c in drift.watch(reference, state, changed) if c.on), np.inf)


def main() -> bool:
    if "SUTDOL_TEST_DATA" not in os.environ:
        print("SUTDOL_TEST_DATA is not set: no real blood cells (bccd/BCCD) here, drift is not measured")
        return True
    rng = np.random.default_rng(0)
    everything = photos()
    order = rng.permutation(len(everything))
    with tempfile.TemporaryDirectory() as folder:
        predictor = detector([everything[i] for i in order[:TRAIN]], Path(folder))
    images = [np.ascontiguousarray(cv2.imread(str(everything[i][0]))[:, :, ::-1]) for i in order[TRAIN:]]
    clean = log_of(predictor, images)
    changed = {name: log_of(predictor, [change(i, rng) for i in images]) for name, (change, _) in CHANGES.items()}
    print(f"{len(images)} photos outside training; unfamiliar when clean: {clean.unfamiliar.mean():.1%}")
    once = repeated = images_once = 0
    waits: dict[str, list[float]] = {name: [] for name in CHANGES}
    for _ in range(RUNS):
        rows = rng.permutation(len(images))
        reference, rest = drift.learn(chosen(clean, rows[:REFERENCE])), rows[REFERENCE:]
        once += sum(c.on for c in drift.watch(reference, State(), chosen(clean, rest)))
        images_once += len(rest)
        for name in CHANGES:
            before, after = rng.choice(rest, 50), rng.choice(rest, 500)
            waits[name].append(first_alarm(reference, chosen(clean, before), chosen(changed[name], after)))
    for _ in range(RUNS // 10):
        rows = rng.permutation(len(images))
        reference = drift.learn(chosen(clean, rows[:REFERENCE]))
        repeated += sum(
            c.on for c in drift.watch(reference, State(), chosen(clean, rng.choice(rows[REFERENCE:], LONG)))
        )
    figures = []
    for name, (_, within) in CHANGES.items():
        share = float(np.mean([0 < w <= within for w in waits[name]]))
        note = f"median {np.median(waits[name]):.0f}, 95 % within {np.quantile(waits[name], 0.95):.0f} images"
        figures.append(Figure(f"{name}: share of alarms within {within} images", share, "at least", 0.95, note))
    rate = once / images_once * 10_000
    figures.append(Figure("false alarms per 10,000 new photos", rate, "at most", 1, f"{images_once} photos"))
    rate = repeated / (RUNS // 10 * LONG) * 10_000
    note = f"{RUNS // 10 * LONG} draws from the {len(images) - REFERENCE} photos left over"
    figures.append(Figure("the same, long streams with repetition", rate, "at most", 1, note))
    return show("Drift on real photos", figures)


if __name__ == "__main__":
    main()
