"""From the annotations of one task to the one label we believe, and the split it may enter. Pure.

    revisions of all annotations of a task -> newest of each -> newest valid one per annotator -> resolve -> Resolution

Only answers to `drawn` samples are a fair picture of the traffic, so only they may enter val and test; the rotation gives
exactly a third of them to test and a sixth to val, and never changes what it gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sutdol.agreement import same
from sutdol.types import Label, Split

UNLABELABLE_AFTER = 2
"""Different people who skipped a task before we stop hoping for an answer."""
_ROTATION: tuple[Split, ...] = ("test", "train", "train", "test", "train", "val")


@dataclass(frozen=True)
class Answer:
    """The newest revision of one annotation. `label` is set exactly when `state` is `valid`."""

    annotation_id: int
    updated_at: str
    annotator: int | None
    state: str
    """valid | skipped | deleted | invalid | empty"""
    ground_truth: bool = False
    label: Label | None = None


@dataclass(frozen=True)
class Resolution:
    """What a task's answers amount to; `label` is set exactly when `state` is `annotated`."""

    state: Literal["in_studio", "annotated", "skipped", "conflict", "unlabelable"]
    label: Label | None = None


def resolve(answers: list[Answer], *, wanted: int = 1, unlabelable_after: int = UNLABELABLE_AFTER) -> Resolution:
    """One verdict over all annotations of a task.

    The newest annotation marked as ground truth wins. Else each annotator counts once, with the newest valid annotation; a
    strict majority that says the same wins as soon as `wanted` people have answered, otherwise the task is in conflict and
    is never trained on. Without valid annotations one outside the classes is a conflict too (with the class list); then
    skips decide, and without those the task is still open.

    Args:
        wanted: people who must have answered.
        unlabelable_after: different people who skipped before nobody is asked any more.
    """
    valid = sorted((a for a in answers if a.state == "valid"), key=_age)
    truths = [a for a in valid if a.ground_truth]
    if truths:
        return Resolution("annotated", truths[-1].label)
    newest = list({a.annotator: a for a in valid}.values())
    if newest:
        newest.sort(key=_age, reverse=True)
        for answer in newest:
            assert answer.label is not None
            agreeing = sum(1 for other in newest if other.label is not None and same(answer.label, other.label))
            if 2 * agreeing > len(newest):
                enough = len(newest) >= wanted
                return Resolution("annotated", answer.label) if enough else Resolution("in_studio")
        return Resolution("conflict")
    if any(a.state == "invalid" for a in answers):
        return Resolution("conflict")
    skippers = {a.annotator for a in answers if a.state == "skipped"}
    if len(skippers) >= unlabelable_after:
        return Resolution("unlabelable")
    return Resolution("skipped") if skippers else Resolution("in_studio")


def split_for(arm: str, drawn_so_far: int) -> Split:
    """The split of a sample that gets its first label.

    Args:
        arm: why it was picked.
        drawn_so_far: how many `drawn` samples of this model were given a split before.

    >>> [split_for("drawn", i) for i in range(6)]
    ['test', 'train', 'train', 'test', 'train', 'val']
    >>> split_for("unfamiliar", 0)
    'train'
    """
    return _ROTATION[drawn_so_far % len(_ROTATION)] if arm == "drawn" else "train"


def _age(answer: Answer) -> tuple[str, int]:
    return answer.updated_at, answer.annotation_id
