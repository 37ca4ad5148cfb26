"""Whether two labels, or an answer and a label, say the same. Pure; labels of people and answers of models alike.

Boxes pair up one to one, best overlap first, when their classes are equal and they overlap by at least `least_iou`.
"""

from __future__ import annotations

from typing import Any

from sutdol.types import Box, Label, Task


def same(one: Label, other: Label, *, least_iou: float = 0.5) -> bool:
    """Whether two people said the same: equal class sets, and boxes that pair up (same class, IoU of at least `least_iou`)."""
    if set(one.classes) != set(other.classes) or len(one.boxes) != len(other.boxes):
        return False
    pairs = sorted(
        ((iou(a, b), i, j) for i, a in enumerate(one.boxes) for j, b in enumerate(other.boxes) if a.label == b.label),
        reverse=True,
    )
    left, right = set(range(len(one.boxes))), set(range(len(other.boxes)))
    for overlap, i, j in pairs:
        if overlap >= least_iou and i in left and j in right:
            left.discard(i)
            right.discard(j)
    return not left and not right


def answer_is_right(answer: dict[str, Any], truth: Label, task: Task) -> bool:
    """Whether a logged answer (`classes` best first, `boxes` with confidence) is wholly right.

    >>> answer_is_right({"classes": [{"label": "a"}, {"label": "b"}], "boxes": []}, Label(classes=["a"]), "classify")
    True
    """
    if task == "detect":
        boxes = [Box(b["label"], b["x1"], b["y1"], b["x2"], b["y2"]) for b in answer["boxes"]]
        return same(Label(boxes=boxes), truth)
    said = answer["classes"][:1] if task == "classify" else answer["classes"]
    return same(Label(classes=[c["label"] for c in said]), Label(classes=truth.classes))


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1].

    >>> iou(Box("a", 0, 0, 2, 1), Box("a", 1, 0, 3, 1))
    0.3333333333333333
    """
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - both)
