"""`python -m tests.benchmarks.learning.labels`: how many labels does each arm need to 95 % of what all labels give?

Digits, 600 held out to judge by, the rest a pool; ten labels a round, a small network trained from scratch each round, five
seeds. `margin` and `diverse` by the window's own strategies (both begin with what is typical), `drawn` with the sampler's own
probabilities, random for comparison. Where a mean curve arrives is where the accuracy, averaged over the seeds, does; random
runs to 300 labels, the others to 180.

The net is scikit-learn's multi-layer perceptron on the 64 pixels, trained with copies shifted by one pixel: hundreds of
trainings must fit into ten minutes. It learns like the small convolutional nets of the product (random: .85 at 50 labels, .90
at 100, .98 with all). Its probabilities are not calibrated, as those of the product are.
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

SEEDS, BATCH, HELD_OUT = 5, 10, 600
RANDOM, OTHERS = 300, 180
"""Labels that each arm is run to; twice what it needs."""
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
    goals: list[float] = []
    curves: dict[str, list[np.ndarray]] = {name: [] for name in ARMS}
    with threadpool_limits(1):
        for seed in range(SEEDS):
            order = np.random.default_rng(seed).permutation(len(x))
            test, pool = order[:HELD_OUT], order[HELD_OUT:]
            goals.append(SHARE * _train(x[pool], y[pool], seed).score(x[test], y[test]))
            for name, picker in ARMS.items():
                labels = RANDOM if name == "random" else OTHERS
                curves[name].append(_run(picker, x, y, pool, test, labels, seed))
    arrived = {name: _arrival(np.mean(found, axis=0), float(np.mean(goals))) for name, found in curves.items()}
    early = {name: float(np.mean([c[: EARLY // BATCH] for c in found])) for name, found in curves.items()}
    figures = [
        Figure("random: labels to 95 %, mean curve", arrived["random"], note=_list(curves["random"], goals)),
        Figure(f"random: mean accuracy up to {EARLY} labels", early["random"]),
    ]
    for name, share, gain in (("margin", 0.55, 0.05), ("diverse", 0.55, 0.05), ("drawn", 0.7, 0.025)):
        figures += [
            Figure(f"{name}: labels to 95 %, mean curve", arrived[name], note=_list(curves[name], goals)),
            Figure(f"{name}: share of random's labels", arrived[name] / arrived["random"], "at most", share),
            Figure(
                f"{name}: gain in mean accuracy up to {EARLY} labels", early[name] - early["random"], "at least", gain
            ),
        ]
    return show(f"Labels to 95 % of the accuracy of all labels, {SEEDS} seeds", figures)


def _run(
    picker: Picker, x: np.ndarray, y: np.ndarray, pool: np.ndarray, test: np.ndarray, labels: int, seed: int
) -> np.ndarray:
    """Accuracy after each round, up to `labels`."""
    rng = np.random.default_rng(1000 + seed)
    left, labelled = pool, np.empty(0, np.int64)
    net: MLPClassifier | None = None
    curve = []
    while len(labelled) < labels:
        chosen = np.array(picker(_Round(x, left, net, rng)))
        labelled, left = np.concatenate([labelled, chosen]), left[~np.isin(left, chosen)]
        net = _train(x[labelled], y[labelled], seed)
        curve.append(float(net.score(x[test], y[test])))
    return np.array(curve)


def _arrival(curve: np.ndarray, goal: float) -> float:
    """Labels at which the curve first reaches the goal; one batch more than there is where it never does."""
    there = np.flatnonzero(curve >= goal)
    return float(BATCH * (there[0] + 1 if len(there) else len(curve) + 1))


def _train(x: np.ndarray, y: np.ndarray, seed: int) -> MLPClassifier:
    """On the images and their copies shifted by one pixel in four directions."""
    images = x.reshape(-1, 8, 8)
    shifted = [np.roll(images, step, (1, 2)).reshape(len(x), 64) for step in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    net = MLPClassifier(
        (128,), max_iter=60, learning_rate_init=0.01, alpha=1e-2, batch_size=min(200, len(x)), random_state=seed
    )
    return net.fit(np.concatenate([x, *shifted]), np.tile(y, 5))


def _list(curves: list[np.ndarray], goals: list[float]) -> str:
    return "per seed " + " ".join(f"{_arrival(c, g):.0f}" for c, g in zip(curves, goals, strict=True))


if __name__ == "__main__":
    main()
