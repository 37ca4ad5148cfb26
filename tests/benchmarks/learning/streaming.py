"""`python -m tests.benchmarks.learning.streaming`: does a budget of 5 % stay 5 % when the world changes half-way?

20,000 answers of the demo's family (ten digits, 600 training images, through the exported ONNX): 10,000 clean ones, then the
same digits turned by 90 degrees. Every arm alone with 5 %, then all of them together as they are by default. Windows of 1,000
begin after the first 500 answers, in which the thresholds are learned.

For comparison the budget as a fixed threshold, set on the first 1,000 answers.
"""

from __future__ import annotations

import numpy as np

from sutdol.focus import focus_of
from sutdol.predictor import Predictor
from sutdol.sampling import Sampler
from sutdol.settings import load
from sutdol.types import Prediction
from tests.benchmarks.learning import nets
from tests.benchmarks.learning.tables import Figure, show

HALF, WINDOW, WARM_UP = 10_000, 1_000, 500
BUDGET = 0.05
ARMS = ("unfamiliar", "weak", "diverse", "margin")


def main() -> bool:
    predictor, answers = _stream()
    figures = []
    for arm in ARMS:
        picked, _, _ = _play(predictor, answers, drawn=0.0, others=BUDGET, arms=[arm])
        low, high = _windows(picked)
        drifted = _windows(picked[HALF:])
        if arm == "unfamiliar":  # the clean half has next to no candidates: there is nothing to spend on
            figures += [
                Figure("unfamiliar alone, drifted half", float(picked[HALF:].mean()), "at least", 0.045),
                Figure("unfamiliar alone, highest window", high, "at most", 0.07),
                Figure("unfamiliar alone, lowest window of the drifted half", drifted[0], "at least", 0.035),
            ]
            continue
        figures += _held(f"{arm} alone", picked, low, high)
    picked, probability, _ = _play(predictor, answers, drawn=BUDGET, others=0.0, arms=[])
    figures.append(Figure("drawn alone, overall", float(picked.mean()), "info"))
    figures.append(_deviations("drawn alone", picked, probability))
    defaults = load().arms.split(",")
    picked, probability, drawn = _play(predictor, answers, drawn=BUDGET / 2, others=BUDGET / 2, arms=defaults)
    figures += _between("all by default, overall", float(picked.mean()), 0.045, 0.055)
    figures.append(Figure("all by default, highest window", _windows(picked)[1]))
    figures.append(_deviations("all by default", drawn, probability))
    doubt = 1 - np.array([a.margin for a in answers])
    fixed = doubt > np.quantile(doubt[:1000], 1 - BUDGET)
    figures.append(Figure("for comparison, a fixed threshold: overall", float(fixed.mean())))
    figures.append(Figure("for comparison, a fixed threshold: highest window", _windows(fixed)[1]))
    return show("A streaming budget of 5 % with drift at half time", figures)


def _stream() -> tuple[Predictor, list[Prediction]]:
    """The net, and what it says: a clean half, a turned half."""
    digits = nets.all_digits()
    total = len(digits)
    train, val, test = nets.split(digits, (600 / total, 150 / total, 1 - 750 / total), 0)
    predictor = nets.net("ten-strong", train, val, [str(i) for i in range(10)], seed=0)
    rng = np.random.default_rng(0)
    worlds = [test.images, np.rot90(test.images, axes=(1, 2))]
    answers: list[Prediction] = []
    for images in worlds:
        noisy = np.clip(images.astype(np.float32) + rng.normal(0, 3, images.shape), 0, 255).astype(np.uint8)
        raw = nets.run(predictor, noisy)
        known = [predictor.interpret(raw, i, (64, 64)) for i in range(len(noisy))]
        answers += [known[int(i)] for i in rng.integers(0, len(known), HALF)]
    return predictor, answers


def _play(
    predictor: Predictor, answers: list[Prediction], *, drawn: float, others: float, arms: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(picked by any arm, inclusion probability, drawn) per answer."""
    sampler = Sampler("digits", drawn_rate=drawn, other_rate=others, arms=arms)
    classes = [str(i) for i in range(10)]
    matrix = np.eye(10, dtype=int) * 30
    matrix[8, 3] = matrix[4, 9] = 5
    sampler.set_focus(focus_of({"confusion": {"classes": classes, "matrix": matrix.tolist()}}))
    picks = [sampler.pick(f"s{i}", answer, predictor.manifest, at=0.0) for i, answer in enumerate(answers)]
    return (
        np.array([bool(p.arms) for p in picks]),
        np.array([p.inclusion_probability for p in picks]),
        np.array(["drawn" in p.arms for p in picks]),
    )


def _windows(picked: np.ndarray) -> tuple[float, float]:
    """Lowest and highest share in any window of WINDOW answers, sliding."""
    sums = np.convolve(picked[WARM_UP:], np.ones(WINDOW), "valid") / WINDOW
    return float(sums.min()), float(sums.max())


def _held(name: str, picked: np.ndarray, low: float, high: float) -> list[Figure]:
    return [
        *_between(f"{name}, overall", float(picked.mean()), 0.045, 0.055),
        Figure(f"{name}, lowest window", low, "at least", 0.035),
        Figure(f"{name}, highest window", high, "at most", 0.07),
    ]


def _between(name: str, value: float, low: float, high: float) -> list[Figure]:
    return [
        Figure(name, value, "at least", low),
        Figure(name, value, "at most", high),
    ]


def _deviations(name: str, drawn: np.ndarray, probability: np.ndarray) -> Figure:
    """How far the number of draws lies from the sum of their probabilities, worst over the whole and each 1,000."""
    worst = 0.0
    for start in (None, *range(0, len(drawn), WINDOW)):
        part = slice(None) if start is None else slice(start, start + WINDOW)
        expected, variance = probability[part].sum(), (probability[part] * (1 - probability[part])).sum()
        worst = max(worst, abs(float(drawn[part].sum()) - expected) / float(np.sqrt(variance)))
    return Figure(f"{name}: draws from their expected count, standard deviations", worst, "at most", 4.0)


if __name__ == "__main__":
    main()
