"""What is drawn how often: old data beside the new, rare classes beside the common ones.

Fine-tuning on newly labelled images alone makes a model worse, and unbalanced replay hardly learns them: half of what is drawn
is imported data and half what people labelled since, as far as a few labels may be repeated.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from retrain.families import Item

MAX_OFTEN = 25.0
"""Classification: an image that people labelled is drawn at most so many times as often as an imported one."""
MAX_REPEATS = 3
"""Detection: an image that people labelled, or with a rare class, appears at most so many times in an epoch."""
RARE = 0.3
"""Detection: a class on fewer of the images than this is rare."""


def draw_probabilities(items: list[Item], replay_share: float) -> NDArray[np.float64]:
    """Probability of each training image to be drawn, shape (n,), summing to 1.

    Imported images get `replay_share` of the draws and labelled ones the rest (all of it when one kind is missing), each
    share evenly over the label values. A labelled image is never drawn more than MAX_OFTEN times as often as an
    imported one, so the first few labels cannot take half of every batch.
    """
    kinds = ["imported" if item.source == "imported" else "labelled" for item in items]
    values = [tuple(sorted(item.value.classes)) for item in items]
    counts, groups = Counter(zip(kinds, values, strict=True)), Counter(kinds)
    classes = {kind: len({v for k, v in counts if k == kind}) for kind in groups}
    share = {"imported": replay_share, "labelled": 1 - replay_share} if len(groups) == 2 else dict.fromkeys(groups, 1.0)
    if len(groups) == 2:
        most = MAX_OFTEN * groups["labelled"] / (MAX_OFTEN * groups["labelled"] + groups["imported"])
        share["labelled"] = min(share["labelled"], most)
        share["imported"] = 1 - share["labelled"]
    drawn = [share[k] / classes[k] / counts[k, v] for k, v in zip(kinds, values, strict=True)]
    return np.asarray(drawn, np.float64)


def repeats(items: list[Item]) -> list[int]:
    """How often each training image appears in an epoch: labelled ones up to MAX_REPEATS times, towards a half of it, and
    those with a class that fewer than RARE of the images show more often, by the square root of what it lacks.

    >>> from sutdol.types import Box, Label
    >>> old = [Item(str(i), "train", Label(), "imported", "") for i in range(8)]
    >>> repeats([*old, Item("n", "train", Label(), "annotation", "")])[-1]
    3
    >>> common, rare = (Label(boxes=[Box(name, 0, 0, 1, 1)]) for name in ("a", "b"))
    >>> repeats([Item(str(i), "train", rare if i == 39 else common, "imported", "") for i in range(40)])[-1]
    3
    """
    labelled = sum(item.source != "imported" for item in items)
    imported = len(items) - labelled
    times = min(MAX_REPEATS, max(1, round(imported / labelled))) if labelled and imported else 1
    shown = Counter(name for item in items for name in {box.label for box in item.value.boxes})
    often = {name: max(1.0, math.sqrt(RARE * len(items) / count)) for name, count in shown.items()}
    return [
        min(
            MAX_REPEATS,
            round(
                (1 if item.source == "imported" else times)
                * max((often[b.label] for b in item.value.boxes), default=1.0)
            ),
        )
        for item in items
    ]
