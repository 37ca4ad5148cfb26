"""Is the live accuracy honest, and what are its labels worth? Forty conditions, DRAWS draws each, by the very code of the job.

    five streams x n = 100, 300 labels x four designs -> DRAWS draws -> bias, RMSE against random labels, coverage, width

Streams: three nets on images like their own; the middle one with 40 % of the images turned by 90 degrees; the same with its
confidence sharpened to 2.5 times what it is worth. A sixth, beyond the target, is the worst case that we know: a weak net
that is certain of everything and whose OOD score hardly sees the turned ones.

Random labels: n drawn without replacement from the same stream, paired draws, plain share; width: of Wilson's interval.
"""

from __future__ import annotations

import sys

import numpy as np

from sutdol.monitor.estimate import Answers, live_accuracy
from sutdol.stats import wilson
from tests.benchmarks.learning import populations
from tests.benchmarks.learning.populations import Float, Said, answers, net, stream
from tests.benchmarks.learning.tables import Figure, show

DRAWS = 4_000
SIZES = (100, 300)


def designs(said: Said) -> dict[str, Float]:
    """Relative inclusion probabilities with mean 1; the first is what `sampling.drawn_probability` does."""
    doubt = (1 - said.margin) ** 2
    spread = np.sqrt(said.confidence * (1 - said.confidence))
    return {
        "default": 0.5 + 0.5 * doubt / doubt.mean(),
        "0.7 doubt": 0.3 + 0.7 * doubt / doubt.mean(),
        "0.7 sqrt(c(1-c))": 0.3 + 0.7 * spread / spread.mean(),
        "uniform": np.ones(len(said)),
    }


def streams() -> dict[str, Said]:
    found = {}
    for name in populations.NETS:
        one = net(name)
        rng = np.random.default_rng(7)
        found[f"{name}, as trained"] = answers(one.predictor, stream(one.outside, rng))
        if name == "strong":
            continue
        turned = stream(one.outside, rng, rotated=0.4)
        if name == "middle":
            found["middle, 40 % turned"] = answers(one.predictor, turned)
            found["middle, 40 % turned, overconfident"] = answers(one.predictor, turned, sharpen=2.5)
        else:
            found["(weak, 40 % turned, overconfident)"] = answers(one.predictor, turned, sharpen=2.5)
    return found


def measure(said: Said, relative: Float, n: int, draws: int, rng: np.random.Generator) -> dict[str, float]:
    """Over `draws` draws of about `n` labels."""
    size, truth = len(said), float(said.right.mean())
    probability = np.minimum(relative * n / size, 1.0)
    seen = Answers(said.confidence, said.ood, probability, np.ones(size))
    rows = np.empty((draws, 3))
    for i in range(draws):
        drawn = np.flatnonzero(rng.random(size) < probability)
        found = live_accuracy(seen, drawn, said.right[drawn])
        rows[i] = found.accuracy, found.low, found.high
    rights = rng.hypergeometric(int(said.right.sum()), size - int(said.right.sum()), n, draws)
    widths = [high - low for low, high in (wilson(int(k), n) for k in rights)]
    error = rows[:, 0] - truth
    return {
        "bias": 100 * float(error.mean()),
        "worth": float(((rights / n - truth) ** 2).mean() / (error**2).mean()),
        "coverage": float(((rows[:, 1] <= truth) & (truth <= rows[:, 2])).mean()),
        "width": float(np.median(rows[:, 2] - rows[:, 1]) / np.median(widths)),
    }


def main(draws: int = DRAWS) -> bool:
    rng = np.random.default_rng(1)
    print(f"{draws} draws each; worth: random labels that one of these replaces, by RMSE; width against Wilson's")
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for name, said in streams().items():
        print(f"{name}: accuracy {said.right.mean():.1%}, mean confidence {said.confidence.mean():.1%}", flush=True)
        for n in SIZES:
            for design, relative in designs(said).items():
                m = found[name, n, design] = measure(said, relative, n, draws, rng)
                row = f"  n {n}  {design:<17} bias {m['bias']:+.2f}  worth {m['worth']:.2f}"
                print(f"{row}  coverage {m['coverage']:.3f}  width {m['width']:.2f}", flush=True)
    target = {key: m for key, m in found.items() if not key[0].startswith("(")}
    default = {key: m for key, m in target.items() if key[2] == "default"}
    other = [m for key, m in target.items() if key[2] != "default"]
    shifted = [m["worth"] for key, m in default.items() if "turned" in key[0]]
    plain = [m["worth"] for key, m in default.items() if "turned" not in key[0]]
    return show(
        f"Live accuracy, {len(target)} conditions",
        [
            Figure("largest bias, points", max(abs(m["bias"]) for m in target.values()), "at most", 0.5),
            Figure("smallest coverage, default design", min(m["coverage"] for m in default.values()), "at least", 0.92),
            Figure("smallest coverage, other designs", min(m["coverage"] for m in other), "at least", 0.91),
            Figure("smallest worth without shift, default design", min(plain), "at least", 1.4),
            Figure("smallest worth with shift, default design", min(shifted), "at least", 1.05),
            Figure("largest median width against Wilson's", max(m["width"] for m in target.values()), "at most", 1.3),
        ],
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS)
