"""`python -m tests.benchmarks.learning.calibration`: does a confidence of .9 mean nine times in ten?

Five seeds of two nets of the demo's family on all ten digits, through the exported ONNX: a strong one (600 images) and a weak
one (100), each with 150 images to fit the temperature on; judged on the rest.
"""

from __future__ import annotations

import numpy as np

from retrain.metrics import expected_calibration_error
from sutdol.scoring import softmax
from tests.benchmarks.learning import nets
from tests.benchmarks.learning.tables import Figure, show

SEEDS = 5
SIZES = {"strong": 600, "weak": 100}
VAL = 150


def main() -> bool:
    digits = nets.all_digits()
    figures = []
    for name, size in SIZES.items():
        found = [_one(digits, name, size, seed) for seed in range(SEEDS)]
        table = np.array(found)
        accuracy, ece_before, ece, nll_before, nll, _, _ = table.mean(axis=0)
        worse = float((table[:, 4] - table[:, 3]).max())
        figures += [
            Figure(
                f"{name}: accuracy", accuracy, note=f"temperature {table[:, 6].min():.2f} to {table[:, 6].max():.2f}"
            ),
            Figure(f"{name}: ECE(15) before", ece_before),
            Figure(f"{name}: ECE(15) after", ece, "at most", 0.02, f"worst seed {table[:, 2].max():.4f}"),
            Figure(f"{name}: NLL before", nll_before),
            Figure(f"{name}: NLL after", nll, "at most", nll_before),
            Figure(f"{name}: NLL after - before, worst seed", worse, "at most", 0.0),
            Figure(f"{name}: images whose class order changed", table[:, 5].sum(), "at most", 0),
        ]
    return show(f"Calibration by temperature, mean of {SEEDS} seeds", figures)


def _one(digits: nets.Part, name: str, size: int, seed: int) -> tuple[float, ...]:
    total = len(digits)
    train, val, test = nets.split(digits, (size / total, VAL / total, 1 - (size + VAL) / total), seed)
    predictor = nets.net(f"ten-{name}", train, val, [str(i) for i in range(10)], seed=seed)
    logits = nets.run(predictor, test.images).scores
    temperature = predictor.manifest.temperature
    before, after = softmax(logits), softmax(logits, temperature=temperature)
    right = logits.argmax(axis=1) == test.labels
    changed = (np.argsort(-before, axis=1, kind="stable") != np.argsort(-after, axis=1, kind="stable")).any(axis=1)
    numbers = []
    for p in (before, after):
        numbers.append(expected_calibration_error(list(p.max(axis=1).clip(0, 1)), list(right)) or 0.0)
    for p in (before, after):
        numbers.append(float(-np.log(p[np.arange(len(p)), test.labels]).mean()))
    return (float(right.mean()), *numbers, float(changed.sum()), temperature)


if __name__ == "__main__":
    main()
