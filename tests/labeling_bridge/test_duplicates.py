"""One picture is labelled once, and no other picture is mistaken for it."""

from __future__ import annotations

import numpy as np
import pytest

from labeling_bridge.duplicates import Picture, merges

A = np.zeros(8, np.float32)
NEAR, APART = A + 0.01, A + 1.0
LIMIT = {1: 0.1}


def picture(name: str, fingerprint: str | None, features: np.ndarray | None, version: int = 1) -> Picture:
    return Picture(name, version, fingerprint, features)


@pytest.mark.parametrize(
    ("fingerprint", "features", "version", "same"),
    [
        ("00ff00ff00ff00ff", NEAR, 1, True),
        ("00ff00ff00ff00fc", None, 1, True),
        ("00ff00ff00ff00ff", APART, 1, False),
        ("00ff00ff00ff00f0", None, 1, False),
        ("ffffffffffffffff", NEAR, 1, True),
        ("ffffffffffffffff", NEAR, 2, False),
        ("ffffffffffffffff", APART, 1, False),
        (None, None, 1, False),
        (None, NEAR, 1, True),
    ],
    ids=[
        "the same",
        "encoded again",
        "features contradict",
        "four bits apart",
        "a still camera",
        "another version",
        "another picture",
        "nothing known",
        "no hash",
    ],
)
def test_the_same_picture_is_told(
    fingerprint: str | None, features: np.ndarray | None, version: int, same: bool
) -> None:
    """Fingerprints find the file encoded again, features the camera that stands still; neither may overrule the other."""
    kept = picture("kept", "00ff00ff00ff00ff", A)
    found = merges([picture("new", fingerprint, features, version)], [kept], duplicate_at=LIMIT)
    assert found == ({"new": "kept"} if same else {})


def test_the_better_of_two_candidates_stays() -> None:
    """Candidates come best first."""
    pair = [picture("best", None, A), picture("worse", None, NEAR), picture("other", None, APART)]
    assert merges(pair, [], duplicate_at=LIMIT) == {"worse": "best"}


@pytest.mark.parametrize("limit", [{}, {1: 0.0}])
def test_a_version_that_cannot_tell_merges_by_fingerprint_alone(limit: dict[int, float]) -> None:
    """Without statistics nobody knows how far apart pictures lie."""
    kept = [picture("kept", "00", A)]
    assert merges([picture("new", None, A)], kept, duplicate_at=limit) == {}
    assert merges([picture("new", "00", A)], kept, duplicate_at=limit) == {"new": "kept"}


def test_nobody_waits_and_nothing_is_merged() -> None:
    """The window runs every few seconds, mostly over nothing."""
    assert merges([], [picture("kept", None, A)], duplicate_at=LIMIT) == {}
    assert merges([picture("new", None, A)], [], duplicate_at=LIMIT) == {}
