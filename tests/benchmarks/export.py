"""`python -m tests.benchmarks.export HOME [int8|fp16|prune ...]`: what a faster copy costs and brings, through job and gate.

The blood-cell detector (the family `yolo` at its defaults, on SUTDOL_TEST_DATA/bccd/BCCD) and a 224 px classifier
(resnet10t on scikit-learn's digits, trained at 64 px and finished at 224) are trained in HOME when it is empty, which takes
some minutes, then compressed. Speed is the whole predictor on all cores, in turns within one run. Targets: detector >= 1.5
times as fast at <= 1 point of mAP50, classifier >= 1.25 times at <= .5 points of accuracy. At the end the speed alone of the
serving benchmark's two networks (yolo11n and its classifier, random weights).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from sqlmodel import col, select

from retrain import compress, datasets, quantise, speed, supervise
from retrain.calibrate import calibrate
from retrain.child import read_result
from retrain.families import Item, Spec, get_family
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol import registry
from sutdol.context import Context, open_context
from sutdol.images import decode, encode_jpeg
from sutdol.jobs import worker
from sutdol.predictor import Predictor
from sutdol.settings import child_environment, load
from sutdol.tables import Decision, Job, Model
from sutdol.types import Label
from tests.benchmarks import models
from tests.real_data import blood_cells

TARGETS = {"cells": (1.5, 0.010), "digits224": (1.25, 0.005)}
"""Model -> (least speed-up, largest loss)."""


def digits() -> list[Record]:
    """Handwritten digits as 480 x 360 JPEGs, as a camera would send them."""
    from sklearn.datasets import load_digits

    data, records, rng = load_digits(), [], np.random.default_rng(0)
    for i, (image, target) in enumerate(zip(data.images, data.target, strict=True)):
        large = cv2.resize((image / 16 * 255).astype(np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC)
        rgb = np.repeat(large[:, :, None], 3, axis=2).astype(np.int16) + rng.normal(0, 6, (360, 480, 3))
        data_ = encode_jpeg(rgb.clip(0, 255).astype(np.uint8))
        records.append(Record(f"{i}.jpg", Label(classes=[str(target)]), data=data_))
    return records


def trained(context: Context, model: str, *, warm: Path | None = None, **params: Any) -> Path:
    """Fit in the training child, calibrate, register and promote; the weights. No gate: here it is only to be compressed."""
    with context.database.begin() as session:
        known = registry.get_model(session, model)
        dataset = datasets.freeze(session, model)
        items = datasets.items(session, dataset.id)
        version = registry.allocate_version(session, model)
    folder = (context.settings.home / "fits" / f"{model}-{version}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    family, root = get_family(known.family), context.store.root
    assert root is not None
    spec = Spec(
        run_id=f"{model}-{version}",
        run_dir=str(folder),
        family=known.family,
        task=known.task,  # type: ignore[arg-type]
        classes=list(dataset.classes),
        params=family.params(known.task, dataset.classes, params),  # type: ignore[arg-type]
        items=[
            Item(i.sample_id, i.split, datasets.label_of(i), i.source, str(root / f"samples/{i.sample_id}"))  # type: ignore[arg-type]
            for i in items
            if i.split != "test"
        ],
        locks_dir=str(folder),
        warm_start=str(warm) if warm else None,
    )
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    environment = child_environment(context.settings, **family.environment(folder))
    supervise.train(folder, environment, on_event=lambda event: None, check=lambda: None)
    result = read_result(folder)
    assert result is not None

    def read(sample_id: str) -> bytes:
        return context.store.get(f"samples/{sample_id}")

    onnx = (folder / "model.onnx").read_bytes()
    made = calibrate(
        onnx,
        result.input,
        task=spec.task,
        classes=spec.classes,
        family=spec.family,
        items=items,
        read=read,
        provenance={},
    )
    weights = folder / "weights.safetensors"
    files = made.files | {weights.name: weights.read_bytes()}
    manifest = registry.write_bundle(context.store, model, version, made.manifest, files)
    with context.database.begin() as session:
        registry.get_model(session, model).params = params  # from which the network is built again, to be pruned
        registry.register(session, model, version, manifest, size_bytes=len(onnx), metrics={}, state="ready")
        registry.promote(session, model, version, who="benchmark", text="to be compressed")
    return weights


def prepare(context: Context) -> None:
    """Both models, each trained once."""
    with context.database.begin() as session:
        for model, task, family in (("cells", "detect", "yolo"), ("digits224", "classify", "timm")):
            if session.get(Model, model) is None:
                registry.create_model(session, model, task=task, classes=[], family=family)  # type: ignore[arg-type]
        done = {m: registry.alias(session, m, "champion") for m in TARGETS}
    if done["cells"] is None:
        datasets.import_folder(context, "cells", blood_cells())
        trained(context, "cells")
    if done["digits224"] is None:
        datasets.import_records(context, "digits224", digits(), ratios=(0.4, 0.2, 0.4))
        small = {"architecture": "resnet10t", "rotate_deg": 5.0, "mixup": 0.0}
        warm = trained(context, "digits224", **small, image_size=64, epochs=6, steps_per_epoch=12)
        large = {"image_size": 224, "warm_epochs": 10, "steps_per_epoch": 16, "batch": 16, "warm_lr": 0.002}
        trained(context, "digits224", warm=warm, **small, **large)


def report(context: Context, model: str, how: str) -> None:
    """Compress, and print every variant beside the target."""
    with context.database.begin() as session:
        champion = registry.alias(session, model, "champion")
        job_id = compress.start(session, model, how)
    worker.run_pending(context, {"retrain.compress": HANDLERS["retrain.compress"]})
    with context.database.read() as session:
        job = session.get_one(Job, job_id)
        query = (
            select(Decision).where(Decision.model == model, Decision.kind == "gate").order_by(col(Decision.at).desc())
        )
        decision = session.exec(query).first()
    if job.state != "done" or decision is None:
        print(f"{model} {how}: {job.state}: {job.error}")
        return
    wanted, lost = TARGETS[model]
    print(f"\n{model} {how}, version {champion} compressed (target: >= {wanted} x, loss <= {lost:.1%} on test)")
    print(decision.text)
    if decision.verdict == "promote":  # the next one is compressed from the same champion
        with context.database.begin() as session:
            registry.rollback(session, model, who="benchmark")


def speeds(context: Context, name: str) -> None:
    """The three variants of a benchmark model with random weights: what they would bring, nothing about accuracy."""
    version = models.bundle(context, name)
    champion = Predictor.open(context.store, name, version)
    data = context.store.get(registry.bundle_key(name, version, "model.onnx"))
    images = models.photos()
    tensors = [champion.prepare(decode(image)) for image in images]
    print(f"\n{name}, random weights, speed only")
    for variant, made in quantise.int8(data, tensors):
        found = speed.measure(champion, Predictor.from_parts(made, champion.manifest, champion.ood), images, pairs=8)
        times = f"{found.champion_ms:.2f} -> {found.candidate_ms:.2f} ms"
        print(f"    {variant}: {found.ratio:.2f} times as fast [{found.low:.2f}, {found.high:.2f}], {times}")


def main(home: Path, *, only_train: bool, ways: list[str]) -> None:
    context = open_context(load(home=home))
    prepare(context)
    if only_train:
        return
    for model in TARGETS:
        for how in ways:
            report(context, model, how)
    for name in ("cls224", "det320"):
        speeds(context, name)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(
            "export: name a folder for the models that are trained first: python -m tests.benchmarks.export /tmp/export"
        )
    else:
        named = [way for way in sys.argv[2:] if way in compress.WAYS]
        main(Path(sys.argv[1]), only_train="--train" in sys.argv, ways=named or list(compress.WAYS))
