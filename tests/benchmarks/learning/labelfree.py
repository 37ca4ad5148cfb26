"""Is a label-free estimate ever shown when it is wrong? ATC and CBPE on sixteen kinds of damage, by the job's own code.

    three seeds of the middle net x (clean + 16 damages) x windows of 300 images -> shown or hidden, error in points

The judged items are 150 of the net's test images; everything else is streamed. Nothing tells the code that a stream is
damaged: the version meets each stream from its first image on, so no chart has seen a change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sutdol.monitor.drift import Batch
from sutdol.monitor.unlabelled import threshold, unlabelled
from tests.benchmarks.learning import nets
from tests.benchmarks.learning.populations import DAMAGE, answers, net, varied
from tests.benchmarks.learning.tables import Figure, show

SEEDS = 3
JUDGED, WINDOW, WINDOWS = 150, 300, 8
WRONG_POINTS = 10.0


def main() -> bool:
    wrong = wrong_hidden = clean = clean_shown = 0
    off_clean: list[float] = []
    for seed in range(SEEDS):
        one = net("middle", seed=seed)
        rng = np.random.default_rng(100 + seed)
        judged = answers(one.predictor, varied(nets.pick(one.outside, np.arange(JUDGED)), rng))
        rest = nets.pick(one.outside, np.arange(JUDGED, len(one.outside)))
        cut = threshold(judged.confidence, judged.right)
        for name in ("clean", *DAMAGE):
            part = varied(nets.pick(rest, rng.choice(len(rest), 600)), rng)
            if name != "clean":
                part = nets.Part(np.stack([DAMAGE[name](image, rng) for image in part.images]), part.labels)
            said = answers(one.predictor, part)
            shown, off = 0, []
            for _ in range(WINDOWS):
                rows = rng.permutation(len(part))[:WINDOW]
                belief, truth = said.confidence[rows], float(said.right[rows].mean())
                found = unlabelled(judged.batch, judged.confidence, judged.right, _rows(said.batch, rows), belief)
                off.append(100 * max(abs(float(belief.mean()) - truth), abs(float((belief >= cut).mean()) - truth)))
                shown += not found.hidden
                wrong += off[-1] > WRONG_POINTS
                wrong_hidden += off[-1] > WRONG_POINTS and bool(found.hidden)
            if name == "clean":
                clean, clean_shown = clean + WINDOWS, clean_shown + shown
                off_clean += off
            row = f"seed {seed}  {name:<13} right {said.right.mean():.1%}  off by {np.mean(off):4.1f}"
            print(f"{row}  shown {shown}/{WINDOWS}", flush=True)
    note = f"{clean} windows, off by {np.mean(off_clean):.1f} points on average"
    hidden = wrong_hidden / max(wrong, 1)
    return show(
        "Label-free estimates",
        [
            Figure(
                f"hidden when off by more than {WRONG_POINTS:g} points", hidden, "at least", 0.95, f"{wrong} windows"
            ),
            Figure("shown on clean traffic", clean_shown / clean, note=note),
        ],
    )


def _rows(batch: Batch, rows: NDArray[np.integer]) -> Batch:
    signals = {name: values[rows] for name, values in batch.signals.items()}
    return Batch(signals, [batch.classes[i] for i in rows], batch.unfamiliar[rows])


if __name__ == "__main__":
    main()
