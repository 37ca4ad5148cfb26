"""Are wrong labels found? Five per cent of the digits get another class; who is suspected, and rightly?

    1,797 digits, 5 % of the labels exchanged at random -> raw pixels (five seeds), and features of a net (one) trained on 1,200
        of these very labels -> out_of_fold, suspects

Figures: AUROC of 1 - P(given class); precision among the k most suspected, k being the number of wrong ones; precision and
recall of the two rules together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrain.labelquality import out_of_fold, suspects
from tests.benchmarks.learning import nets
from tests.benchmarks.learning.populations import CLASSES
from tests.benchmarks.learning.tables import Figure, show

SEEDS = 5
NOISE = 0.05


def main() -> bool:
    digits = nets.all_digits()
    pixels = digits.images[:, ::8, ::8, 0].reshape(len(digits), -1) / 255
    figures = []
    for name in ("pixels", "features of a net trained on them"):
        rows = []
        for seed in range(SEEDS if name == "pixels" else 1):
            given, wrong = _spoil(digits.labels, np.random.default_rng(seed))
            features = pixels if name == "pixels" else _features(nets.Part(digits.images, given), seed)
            rows.append(_measure(out_of_fold(features, given, len(CLASSES)), given, wrong))
            print(f"{name}, seed {seed}: " + ", ".join(f"{v:.3f}" for v in rows[-1]), flush=True)
        auroc, at_k, precision, recall = np.mean(rows, axis=0)
        figures += [
            Figure(f"{name}: AUROC", auroc, "at least", 0.99),
            Figure(f"{name}: precision at k", at_k, "at least", 0.85),
            Figure(f"{name}: both rules, precision", precision, note=f"recall {recall:.2f}"),
        ]
    return show("Label errors at 5 % noise", figures)


def _spoil(labels: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    wrong = np.zeros(len(labels), bool)
    wrong[rng.choice(len(labels), round(NOISE * len(labels)), replace=False)] = True
    other = (labels + rng.integers(1, len(CLASSES), len(labels))) % len(CLASSES)
    return np.where(wrong, other, labels), wrong


def _features(part: nets.Part, seed: int) -> NDArray[np.float32]:
    order = np.random.default_rng(seed).permutation(len(part))
    train, val = nets.pick(part, order[:1200]), nets.pick(part, order[1200:1400])
    predictor = nets.net("noisy-labels", train, val, CLASSES, seed=seed, epochs=12)
    return np.asarray(nets.run(predictor, part.images).features)


def _measure(
    probabilities: NDArray[np.float64], given: NDArray[np.int64], wrong: NDArray[np.bool_]
) -> tuple[float, float, float, float]:
    suspicion = 1 - probabilities[np.arange(len(given)), given]
    order = np.argsort(-suspicion)
    ranks = np.empty(len(order))
    ranks[np.argsort(suspicion)] = np.arange(len(order))
    k = int(wrong.sum())
    auroc = (ranks[wrong].sum() - k * (k - 1) / 2) / (k * (len(wrong) - k))
    found = [s.place for s in suspects(probabilities, given)]
    right = int(wrong[found].sum())
    return float(auroc), float(wrong[order[:k]].mean()), right / max(len(found), 1), right / k


if __name__ == "__main__":
    main()
