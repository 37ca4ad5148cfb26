"""`python -m tests.benchmarks.learning.labels`: how many labels does each arm need to 95 % of what all labels give?

Digits, 600 held out to judge by, the rest a pool; ten labels a round, a small network trained from scratch each round, ten
seeds in two processes. `margin` and `diverse` by the window's own strategies (both begin with what is typical), `drawn` with
the sampler's own probabilities, random for comparison. Where a mean curve arrives is where the accuracy, averaged over the
seeds, does; random runs to 300 labels, the others to 180.

The net is a small convolutional one, as the product's classifiers are, on the 8 x 8 pixels as they come: hundreds of trainings
must fit into ten minutes. Every training has the same number of steps, with copies shifted by a pixel. Its probabilities are
not calibrated, as those of the product are.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from labeling_bridge.strategies import Candidate, choose
from sutdol.sampling import drawn_probability
from tests.benchmarks.learning.tables import Figure, show

SEEDS, BATCH, HELD_OUT = 10, 10, 600
RANDOM, OTHERS = 300, 180
"""Labels that each arm is run to; twice what it needs."""
SHARE = 0.95
EARLY = 150
STEPS, STEP_IMAGES, RATE = 150, 32, 5e-3
"""Of one training, with AdamW and one cycle of the learning rate."""
Picker = Callable[["_Round"], list[int]]


class _Net:
    """Three convolutions, trained when it is made; (n, 64) float in [0, 1] -> chances (n, 10), features (n, 64)."""

    def __init__(self, x: np.ndarray, y: np.ndarray, seed: int) -> None:
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        self._body = nn.Sequential(
            *_block(1, 16), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self._head = nn.Linear(64, 10)
        weights = [*self._body.parameters(), *self._head.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
        images, labels = _images(x), torch.from_numpy(y)
        order = np.empty(0, np.int64)
        self._body.train()
        for _ in range(STEPS):
            while len(order) < STEP_IMAGES:
                order = np.concatenate([order, rng.permutation(len(x))])
            some, order = order[:STEP_IMAGES], order[STEP_IMAGES:]
            down, right = (int(n) for n in rng.integers(-1, 2, 2))
            shifted = torch.roll(images[some], (down, right), (2, 3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(self._head(self._body(shifted)), labels[some]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        self._body.eval()

    @torch.no_grad()
    def answers(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = self._body(_images(x))
        return torch.softmax(self._head(features), 1).numpy(), features.numpy()

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        return float((self.answers(x)[0].argmax(axis=1) == y).mean())


class _Round:
    """What a picker sees: the pool that is left, and what the net of the last round says of it (None before the first)."""

    def __init__(self, x: np.ndarray, left: np.ndarray, net: _Net | None, rng: np.random.Generator) -> None:
        self.left, self.rng, self.has_net = left, rng, net is not None
        chances, features = net.answers(x[left]) if net is not None else (np.zeros((len(left), 2)), x[left])
        best = np.sort(chances, axis=1)
        self.margin = best[:, -1] - best[:, -2]
        self.features = (features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)).astype(
            np.float32
        )


def random(now: _Round) -> list[int]:
    return [int(i) for i in now.rng.choice(now.left, BATCH, replace=False)]


def drawn(now: _Round) -> list[int]:
    """Ten at a time with the logged probability: half uniform, half with (1 - margin)^2."""
    if not now.has_net:
        return random(now)
    doubt = (1 - now.margin) ** 2
    p = np.array([drawn_probability(d, rate=0.01, mean_doubt=float(doubt.mean())) for d in doubt])
    return [int(i) for i in now.rng.choice(now.left, BATCH, replace=False, p=p / p.sum())]


def by_arm(arm: str) -> Picker:
    def pick(now: _Round) -> list[int]:
        doubt = 1 - now.margin
        candidates = [
            Candidate(str(i), arm, 0.5, float(d), None, 0.0, f)
            for i, d, f in zip(now.left, doubt, now.features, strict=True)
        ]
        return [int(i) for i in choose(candidates, BATCH, now.rng, cold=not now.has_net)]

    return pick


ARMS: dict[str, Picker] = {"random": random, "drawn": drawn, "margin": by_arm("margin"), "diverse": by_arm("diverse")}


def main() -> bool:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(_seed, range(SEEDS)))
    goals = [goal for goal, _ in runs]
    curves = {name: [found[name] for _, found in runs] for name in ARMS}
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


def _seed(seed: int) -> tuple[float, dict[str, np.ndarray]]:
    """(accuracy to arrive at, the curve of each arm) of one split of the digits."""
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    x = x / 16
    order = np.random.default_rng(seed).permutation(len(x))
    test, pool = order[:HELD_OUT], order[HELD_OUT:]
    goal = SHARE * _Net(x[pool], y[pool], seed).accuracy(x[test], y[test])
    return goal, {name: _run(name, x, y, pool, test, seed) for name in ARMS}


def _run(arm: str, x: np.ndarray, y: np.ndarray, pool: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Accuracy after each round."""
    rng = np.random.default_rng(1000 + seed)
    left, labelled = pool, np.empty(0, np.int64)
    net: _Net | None = None
    curve = []
    while len(labelled) < (RANDOM if arm == "random" else OTHERS):
        chosen = np.array(ARMS[arm](_Round(x, left, net, rng)))
        labelled, left = np.concatenate([labelled, chosen]), left[~np.isin(left, chosen)]
        net = _Net(x[labelled], y[labelled], seed)
        curve.append(net.accuracy(x[test], y[test]))
    return np.array(curve)


def _arrival(curve: np.ndarray, goal: float) -> float:
    """Labels at which the curve, straight between its rounds, first reaches the goal; one round more where it never does."""
    there = np.flatnonzero(curve >= goal)
    if not len(there):
        return float(BATCH * (len(curve) + 1))
    i = int(there[0])
    short = (curve[i] - goal) / (curve[i] - curve[i - 1]) if i else 0.0
    return float(BATCH * (i + 1 - short))


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _images(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.reshape(-1, 1, 8, 8).astype(np.float32))


def _list(curves: list[np.ndarray], goals: list[float]) -> str:
    return "per seed " + " ".join(f"{_arrival(c, g):.0f}" for c, g in zip(curves, goals, strict=True))


if __name__ == "__main__":
    main()
