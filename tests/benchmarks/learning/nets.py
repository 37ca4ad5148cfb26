"""Small nets for the benchmarks: the demo's family on scikit-learn's digits, through the exported ONNX file.

    digits (8 x 8 -> 64 x 64) -> split by seed -> family `timm`, its defaults -> ONNX -> `calibrate` -> Predictor -> Judged

What is trained is kept under a temporary folder of the machine for an hour, so that the benchmarks of one afternoon train
each net once; delete `sutdol-learning` there, or change the source of the family, to train anew.
"""

from __future__ import annotations

import hashlib
import inspect
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from retrain import calibrate
from retrain.families import Export, Item, Spec, _export, get_family, timm
from sutdol import familiarity, scoring
from sutdol.demo import digits as worlds
from sutdol.familiarity import OodStatistics
from sutdol.images import encode_png
from sutdol.predictor import Predictor, Raw
from sutdol.tables import DatasetItem
from sutdol.types import Label, Manifest

KEEP_S = 3600.0
Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """Images (n, 64, 64, 3) uint8 and their classes (n,); -1 where no class is right."""

    images: Rgb
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


class Quiet:
    """Hooks of a family that nobody listens to."""

    def step(self, **numbers: float) -> None: ...
    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None: ...
    def check(self) -> None: ...


def all_digits() -> Part:
    """The 1,797 digits in grey as RGB."""
    digits = worlds.load()
    return Part(np.repeat(digits.sources[..., None], 3, axis=3), np.array([int(v) for v in digits.labels]))


def pick(part: Part, rows: NDArray[np.integer]) -> Part:
    return Part(part.images[rows], part.labels[rows])


def split(part: Part, shares: tuple[float, ...], seed: int) -> list[Part]:
    """Parts of these shares, drawn with `seed`; the last one gets the rest."""
    order = np.random.default_rng(seed).permutation(len(part))
    cuts = np.cumsum([round(share * len(part)) for share in shares])[:-1]
    return [pick(part, rows) for rows in np.split(order, cuts)]


def fit_onnx(train: Part, val: Part, classes: list[str], *, seed: int, **params: Any) -> Export:
    """Train and export the demo's network."""
    family = get_family("timm")
    with tempfile.TemporaryDirectory() as folder:
        items = []
        for name, part in (("train", train), ("val", val)):
            for i, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
                path = Path(folder) / f"{name}-{i}.png"
                path.write_bytes(encode_png(image))
                items.append(Item(f"{name}-{i}", name, Label([classes[label]]), "imported", str(path)))  # type: ignore[arg-type]
        chosen = family.params("classify", classes, {"seed": seed, "device": "cpu"} | params)
        spec = Spec("benchmark", folder, "timm", "classify", classes, chosen, items, folder)
        module = family.load()
        export: Export = module.to_onnx(spec, module.fit(spec, Quiet()))
    return export


def kept(name: str, make: Callable[[], Any], *sources: Any) -> Any:
    """What `make` returns, from the last hour's file when neither `name` nor the code of `sources` has changed."""
    code = "".join(inspect.getsource(source) for source in sources)
    folder = Path(tempfile.gettempdir()) / "sutdol-learning"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(code.encode()).hexdigest()[:12]}.pickle"
    if path.is_file() and time.time() - path.stat().st_mtime < KEEP_S:
        return pickle.loads(path.read_bytes())  # written by this very function
    value = make()
    path.write_bytes(pickle.dumps(value))
    return value


def net(name: str, train: Part, val: Part, classes: list[str], *, seed: int, **params: Any) -> Predictor:
    """Trained, exported and calibrated by the very code of a training run; `name` says what it was trained on."""

    def make() -> tuple[bytes, bytes, bytes]:
        found = _calibrated(train, val, classes, seed=seed, **params)
        return found.files["model.onnx"], msgspec.json.encode(found.manifest), found.files["scoring.npz"]

    onnx, manifest, statistics = kept(f"{name}-{seed}", make, timm, _export, calibrate, familiarity, scoring)
    return Predictor.from_parts(
        onnx, msgspec.json.decode(manifest, type=Manifest), OodStatistics.from_bytes(statistics)
    )


def run(predictor: Predictor, images: Rgb) -> Raw:
    """What the model says about images (n, h, w, 3), through `prepare` as in serving."""
    raws = [
        predictor.run(np.stack([predictor.prepare(image) for image in images[start : start + 64]]))
        for start in range(0, len(images), 64)
    ]
    return Raw(np.concatenate([r.scores for r in raws]), np.concatenate([r.features for r in raws]))


def _calibrated(train: Part, val: Part, classes: list[str], *, seed: int, **params: Any) -> calibrate.Calibrated:
    export = fit_onnx(train, val, classes, seed=seed, **params)
    files: dict[str, bytes] = {}
    items = []
    for name, part in (("train", train), ("val", val)):
        for i, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            files[f"{name}-{i}"] = encode_png(image)
            value = {"classes": [classes[label]], "boxes": []}
            items.append(
                DatasetItem(
                    dataset_version_id="benchmark",
                    sample_id=f"{name}-{i}",
                    split=name,
                    value=value,
                    source="imported",
                )
            )
    return calibrate.calibrate(
        export.onnx,
        export.input,
        task="classify",
        classes=classes,
        family="timm",
        items=items,
        read=files.__getitem__,
        provenance={},
        low_level=export.low_level,
    )
