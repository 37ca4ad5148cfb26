"""What real nets say about streams of digits: the ground on which estimators are tried, thousands of draws each.

    digits (scikit-learn) -> three nets of the demo's family, trained on 40, 200 and 600 images, through ONNX
        -> streams of STREAM varied images from sources outside training -> confidence, margin, OOD score, right or wrong

A stream is made once; every draw of a benchmark only picks other labels from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sutdol import scoring
from sutdol.appearance import appearance
from sutdol.monitor import drift
from tests.benchmarks.learning import nets

STREAM = 4_000
NETS: dict[str, tuple[int, dict[str, Any]]] = {
    "weak": (40, {"epochs": 6}),
    "middle": (200, {"epochs": 12}),
    "strong": (600, {}),
}
CLASSES = [str(i) for i in range(10)]
Float = NDArray[np.float64]
Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class Said:
    """A model's answers to a stream, each array (n,): calibrated confidence and margin, OOD score, right (0 or 1).

    `batch` is what the drift charts would see, `features` (n, d) are those of the ONNX file.
    """

    confidence: Float
    margin: Float
    ood: Float
    right: Float
    batch: drift.Batch
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True)
class Net:
    """A trained and calibrated net, its val images as they were used for that, and what it has never seen."""

    predictor: Any
    val: nets.Part
    outside: nets.Part


def net(name: str, *, seed: int = 0) -> Net:
    """One of NETS, trained on the images that `seed` gives it."""
    size, params = NETS[name]
    digits = nets.all_digits()
    train, val, outside = nets.split(digits, (600 / len(digits), 200 / len(digits), 1.0), seed)
    few = nets.pick(train, np.arange(size))
    rng = np.random.default_rng(seed)
    few, val = varied(few, rng), varied(val, rng)
    return Net(nets.net(f"population-{name}", few, val, CLASSES, seed=seed, **params), val, outside)


def answers(predictor: Any, part: nets.Part, *, sharpen: float = 1.0) -> Said:
    """`sharpen` above 1 makes the confidence worse than calibrated: the temperature is divided by it."""
    manifest = predictor.manifest
    raw = nets.run(predictor, part.images)
    looks = [appearance(predictor.prepare(image), manifest.input) for image in part.images]
    ood = np.array([predictor.interpret(raw, i, (64, 64)).ood_score for i in range(len(part))])
    chances = np.sort(scoring.softmax(raw.scores, temperature=manifest.temperature / sharpen), axis=1)
    said = raw.scores.argmax(axis=1)
    signals = {
        "ood_score": ood,
        "confidence": chances[:, -1],
        "brightness": np.array([look.brightness for look in looks]),
        "sharpness": np.array([look.sharpness for look in looks]),
        "colour": np.array([look.colour for look in looks]),
    }
    batch = drift.Batch(signals, [CLASSES[c] for c in said], ood >= manifest.unfamiliar_at)
    right = (said == part.labels).astype(np.float64)
    return Said(chances[:, -1], chances[:, -1] - chances[:, -2], ood, right, batch, raw.features)


def stream(source: nets.Part, rng: np.random.Generator, *, n: int = STREAM, rotated: float = 0.0) -> nets.Part:
    """`n` varied images drawn from `source`, a share of them turned by 90 degrees."""
    part = varied(nets.pick(source, rng.choice(len(source), n)), rng)
    turned = rng.random(n) < rotated
    images = [np.ascontiguousarray(np.rot90(i)) if t else i for i, t in zip(part.images, turned, strict=True)]
    return nets.Part(np.stack(images), part.labels)


def varied(part: nets.Part, rng: np.random.Generator) -> nets.Part:
    """Brightness and sensor noise, so that no two frames of one source are the same."""
    gains = rng.uniform(0.85, 1.1, (len(part), 1, 1, 1))
    noise = rng.normal(0, 6, (*part.images.shape[:3], 1))
    return nets.Part(np.clip(part.images * gains + noise, 0, 255).astype(np.uint8), part.labels)


def _blur(sigma: float) -> Any:
    return lambda i, rng: cv2.GaussianBlur(i, (0, 0), sigma)


def _noise(sigma: float) -> Any:
    return lambda i, rng: np.clip(i + rng.normal(0, sigma, i.shape), 0, 255).astype(np.uint8)


def _gain(factor: float, offset: float = 0.0) -> Any:
    return lambda i, rng: np.clip(i * factor + offset, 0, 255).astype(np.uint8)


def _turn(degrees: float) -> Any:
    matrix = cv2.getRotationMatrix2D((31.5, 31.5), degrees, 1.0)
    return lambda i, rng: cv2.warpAffine(i, matrix, (64, 64))


def _pixelate(side: int) -> Any:
    return lambda i, rng: cv2.resize(cv2.resize(i, (side, side)), (64, 64), interpolation=cv2.INTER_NEAREST)


def _cover(image: Rgb, rng: np.random.Generator) -> Rgb:
    covered = image.copy()
    x, y = rng.integers(0, 40, 2)
    covered[y : y + 24, x : x + 24] = 128
    return covered


def _jpeg(quality: int) -> Any:
    return lambda i, rng: simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(np.ascontiguousarray(i), quality=quality))


DAMAGE: dict[str, Any] = {
    "blur 2 px": _blur(2.0),
    "blur 4 px": _blur(4.0),
    "blur 6 px": _blur(6.0),
    "noise 40": _noise(40.0),
    "noise 80": _noise(80.0),
    "dark x .4": _gain(0.4),
    "bright +90": _gain(1.0, 90.0),
    "low contrast": _gain(0.3, 80.0),
    "inverted": lambda i, rng: 255 - i,
    "turned 30": _turn(30.0),
    "turned 60": _turn(60.0),
    "turned 90": _turn(90.0),
    "mirrored": lambda i, rng: np.ascontiguousarray(i[:, ::-1]),
    "12 pixels": _pixelate(12),
    "covered": _cover,
    "JPEG q5": _jpeg(5),
}
"""Sixteen ways to spoil an image (64, 64, 3) uint8."""
