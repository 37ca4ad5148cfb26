"""`python -m tests.benchmarks.learning.labels`: how many labels does each arm need to 95 % of what all labels give?

Digits, 600 held out to judge by, the rest a pool; ten labels a round, a small network trained from scratch each round, five
seeds. `margin` and `diverse` by the window's own strategies (`diverse` begins with what is typical), `drawn` with the sampler's
own probabilities, random for comparison. Each runs until it arrives, at most to 500 labels.

The net is scikit-learn's multi-layer perceptron on the 64 pixels: a thousand trainings must fit into ten minutes. It learns
like the small convolutional nets of the product (random: .81 at 50 labels, .89 at 100).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from labeling_bridge.strategies import Candidate, choose
from sutdol.sampling import drawn_probability
from tests.benchmarks.learning.tables import Figure, show

SEEDS, BATCH, MOST, HELD_OUT = 5, 10, 500, 600
SHARE = 0.95
EARLY = 150
Picker = Callable[["_Round"], list[int]]


class _Round:
    """What a picker sees: the pool that is left, and the net of the last round (None before the first)."""

    def __init__(self, x: np.ndarray, left: np.ndarray, net: MLPClassifier | None, rng: np.random.Generator) -> None:
        self.x, self.left, self.net, self.rng = x, left, net, rng

    @property
    def margin(self) -> np.ndarray:
        assert self.net is not None
        p = np.sort(self.net.predict_proba(self.x[self.left]), axis=1)
        return p[:, -1] - p[:, -2] if p.shape[1] > 1 else np.zeros(len(p))

    @property
    def features(self) -> np.ndarray:
        """Of the net's hidden layer, as the log keeps them; before there is a net the pixels."""
        x = self.x[self.left]
        if self.net is not None:
            x = np.maximum(x @ self.net.coefs_[0] + self.net.intercepts_[0], 0)
        return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def random(now: _Round) -> list[int]:
    return [int(i) for i in now.rng.choice(now.left, BATCH, replace=False)]


def drawn(now: _Round) -> list[int]:
    """Ten at a time with the logged probability: half uniform, half with (1 - margin)^2."""
    if now.net is None:
        return random(now)
    doubt = (1 - now.margin) ** 2
    p = np.array([drawn_probability(d, rate=0.01, mean_doubt=float(doubt.mean())) for d in doubt])
    return [int(i) for i in now.rng.choice(now.left, BATCH, replace=False, p=p / p.sum())]


def by_arm(arm: str) -> Picker:
    def pick(now: _Round) -> list[int]:
        if now.net is None and arm == "margin":
            return random(now)
        doubt = np.ones(len(now.left)) if now.net is None else 1 - now.margin
        candidates = [
            Candidate(str(i), arm, 0.5, float(d), None, 0.0, f)
            for i, d, f in zip(now.left, doubt, now.features, strict=True)
        ]
        return [int(i) for i in choose(candidates, BATCH, now.rng, cold=now.net is None)]

    return pick


ARMS: dict[str, Picker] = {"random": random, "drawn": drawn, "margin": by_arm("margin"), "diverse": by_arm("diverse")}


def main() -> bool:
    warnings.simplefilter("ignore", ConvergenceWarning)
    x, y = load_digits(return_X_y=True)
    x = x / 16
    needed: dict[str, list[int]] = {name: [] for name in ARMS}
    early: dict[str, list[float]] = {name: [] for name in ARMS}
    with threadpool_limits(1):
        for seed in range(SEEDS):
            order = np.random.default_rng(seed).permutation(len(x))
            test, pool = order[:HELD_OUT], order[HELD_OUT:]
            goal = SHARE * _train(x[pool], y[pool], seed).score(x[test], y[test])
            for name, picker in ARMS.items():
                curve = _run(picker, x, y, pool, test, goal, seed)
                arrived = [n for n, accuracy in curve if accuracy >= goal]
                needed[name].append(arrived[0] if arrived else MOST)
                early[name].append(float(np.mean([a for n, a in curve if n <= EARLY])))
    base, base_early = float(np.mean(needed["random"])), float(np.mean(early["random"]))
    figures = [
        Figure("random: labels to 95 %, mean", base, note=_list(needed["random"])),
        Figure(f"random: mean accuracy up to {EARLY} labels", base_early),
    ]
    for name, share, gain in (("margin", 0.55, 0.05), ("diverse", 0.55, 0.05), ("drawn", 0.7, 0.025)):
        mean = float(np.mean(needed[name]))
        figures += [
            Figure(f"{name}: labels to 95 %, mean", mean, note=_list(needed[name])),
            Figure(f"{name}: share of random's labels", mean / base, "at most", share),
            Figure(
                f"{name}: gain in mean accuracy up to {EARLY} labels",
                float(np.mean(early[name])) - base_early,
                "at least",
                gain,
            ),
        ]
    return show(f"Labels to 95 % of the accuracy of all labels, {SEEDS} seeds", figures)


def _run(
    picker: Picker, x: np.ndarray, y: np.ndarray, pool: np.ndarray, test: np.ndarray, goal: float, seed: int
) -> list[tuple[int, float]]:
    """(labels, accuracy) of each round, until the goal is reached and EARLY is past."""
    rng = np.random.default_rng(1000 + seed)
    left, labelled = pool, np.empty(0, np.int64)
    net: MLPClassifier | None = None
    curve: list[tuple[int, float]] = []
    while len(labelled) < MOST and (len(labelled) < EARLY or all(a < goal for _, a in curve)):
        chosen = np.array(picker(_Round(x, left, net, rng)))
        labelled, left = np.concatenate([labelled, chosen]), left[~np.isin(left, chosen)]
        net = _train(x[labelled], y[labelled], seed)
        curve.append((len(labelled), float(net.score(x[test], y[test]))))
    return curve


def _train(x: np.ndarray, y: np.ndarray, seed: int) -> MLPClassifier:
    return MLPClassifier((64,), max_iter=200, learning_rate_init=0.01, alpha=1e-3, random_state=seed).fit(x, y)


def _list(values: list[int]) -> str:
    return "per seed " + " ".join(str(v) for v in values)


if __name__ == "__main__":
    main()
