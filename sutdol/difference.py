"""Whether two answers for one image say the same: what shadow, canary and the watch after a swap count.

    Prediction, Prediction -> agreement in [0, 1] -> differs? -> the difference in words, for the labeler

classify: the same best class. multilabel: shared over all named classes. detect: twice the matched boxes (same class, at
least half overlapping) over all boxes. Two answers that name nothing agree.
"""

from __future__ import annotations

from sutdol.agreement import iou
from sutdol.types import Box, Prediction, Task

MIN_IOU = 0.5
MIN_AGREEMENT = 0.5
"""Below it two answers count as different."""


def agreement(one: Prediction, other: Prediction, task: Task) -> float:
    """How far two answers for one image agree, in [0, 1]."""
    if task == "detect":
        boxes = len(one.boxes) + len(other.boxes)
        return 2 * _matches(one.boxes, other.boxes) / boxes if boxes else 1.0
    if task == "multilabel":
        named, also = {c.label for c in one.classes}, {c.label for c in other.classes}
        return len(named & also) / len(named | also) if named | also else 1.0
    best = [answer.classes[0].label if answer.classes else "" for answer in (one, other)]
    return float(best[0] == best[1])


def differs(one: Prediction, other: Prediction, task: Task) -> bool:
    """Whether a person would call these different answers."""
    return agreement(one, other, task) < MIN_AGREEMENT


def in_words(version: int, answer: Prediction, task: Task) -> str:
    """`version 3 says cat (0.91)`."""
    if task == "detect":
        counts: dict[str, int] = {}
        for box in answer.boxes:
            counts[box.label] = counts.get(box.label, 0) + 1
        said = ", ".join(f"{n} {label}" for label, n in counts.items()) or "nothing"
    elif task == "multilabel":
        said = ", ".join(f"{c.label} ({c.confidence:.2f})" for c in answer.classes) or "nothing"
    else:
        said = f"{answer.classes[0].label} ({answer.confidence:.2f})" if answer.classes else "nothing"
    return f"version {version} says {said}"


def _matches(one: list[Box], other: list[Box]) -> int:
    """Boxes of `one` that found a partner of their class, each partner once, best overlap first."""
    pairs = [
        (overlap, i, j)
        for i, a in enumerate(one)
        for j, b in enumerate(other)
        if a.label == b.label and (overlap := iou(a, b)) >= MIN_IOU
    ]
    taken: tuple[set[int], set[int]] = set(), set()
    for _, i, j in sorted(pairs, reverse=True):
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
    return len(taken[0])
