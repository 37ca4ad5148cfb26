"""`python -m tests.benchmarks.learning.cost`: what the scores cost in serving, on one thread.

A classifier of 100 classes with 1,280 features, projected to 256, and a bank of 10,000 images: larger than most. Beside it
the demo's own size (10 classes, 128 features, 600 images). Wall clock of one image at a time, as the engine calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from sutdol import familiarity
from sutdol.predictor import Predictor, Raw
from sutdol.types import InputSpec, Manifest
from tests import tiny_models
from tests.benchmarks.learning.tables import Figure, show

ROUNDS = 400


def main() -> bool:
    figures = []
    with threadpool_limits(1):
        for name, classes, width, bank, target in (("large", 100, 1280, 10_000, True), ("demo", 10, 128, 600, False)):
            predictor, raw = _predictor(classes, width, bank)
            answer = predictor.interpret(raw, 0, (64, 64))
            assert predictor.ood is not None
            arrays = [getattr(predictor.ood, n) for n in ("mean", "basis", "whitening", "centres", "bank")]
            size = sum(a.nbytes for a in (*arrays, *(predictor.ood._head or ())) if a is not None) / 1e6
            features = raw.features[:1]
            statistics = predictor.ood
            every = _p50_ms(lambda i, p=predictor, r=raw: p.interpret(_one(r, i), 0, (64, 64)))
            named = _p50_ms(lambda i, p=predictor, r=raw, a=answer: p.scores(r, i, a))
            alone = _p50_ms(lambda i, s=statistics, f=features: s.score(f))
            figures += [
                Figure(f"{name}: answer and unfamiliarity, every image, ms", every, *_limit(0.5, target)),
                Figure(f"{name}: of which unfamiliarity, bank included, ms", alone),
                Figure(f"{name}: all scores by name, picked images only, ms", named),
                Figure(f"{name}: both together, ms", every + named, *_limit(0.5, target)),
                Figure(f"{name}: statistics, MB", size, *_limit(16, target)),
            ]
    return show("Cost of the scores, one thread, p50", figures)


def _one(raw: Raw, i: int) -> Raw:
    """A batch of image `i` alone, of which nothing has been computed yet."""
    return Raw(raw.scores[i : i + 1], raw.features[i : i + 1])


def _limit(value: float, wanted: bool) -> tuple[str, float | None]:
    return ("at most", value) if wanted else ("info", None)


def _predictor(classes: int, width: int, bank: int) -> tuple[Predictor, Raw]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, bank)
    centres = rng.normal(0, 2, (classes, width)).astype(np.float32)
    features = np.maximum(centres[labels] + rng.normal(0, 1, (bank, width)).astype(np.float32), 0)
    statistics = familiarity.fit_ood(features, labels, held_out=features[:200] * 1.01, normalise=True)
    side = tiny_models.SIDE_PX
    manifest = Manifest("classify", [f"c{i}" for i in range(classes)], InputSpec((side, side)), "tiny", temperature=0.7)
    predictor = Predictor.from_parts(tiny_models.classifier_onnx(), manifest, statistics)
    return predictor, Raw(rng.normal(0, 3, (64, classes)).astype(np.float32), features[:64])


def _p50_ms(call: Callable[[int], object]) -> float:
    for i in range(20):
        call(i % 64)
    times = []
    for i in range(ROUNDS):
        began = time.perf_counter()
        call(i % 64)
        times.append(time.perf_counter() - began)
    return float(np.median(times) * 1000)


if __name__ == "__main__":
    main()
