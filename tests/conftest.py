"""Fixtures for all tests: a home in a temporary folder, and where the real data lies; what runs beside what."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sutdol.context import Context, open_context
from sutdol.settings import load

IN_CI = os.environ.get("CI") == "true"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """Settings, a migrated SQLite database and a folder store, all in a temporary home."""
    opened = open_context(load(home=tmp_path / "home"))
    yield opened
    opened.database.close()


def missing(reason: str) -> None:
    """A real part is not here: a failure in CI, a skip with its reason on a laptop."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share the tests out for `pytest -n`: half of their time is waiting, so two workers need little more than half of it.

    Every story of tests/e2e is a group of its own, all that need Label Studio are one (one server), and so is each other
    file. The long ones come first, so that no worker is left with one at the end.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_turn)


def _group(item: pytest.Item) -> str:
    if item.path.parent.name == "e2e":
        return item.nodeid
    return "studio" if item.get_closest_marker("studio") else str(item.path)


def _turn(item: pytest.Item) -> int:
    if item.path.parent.name == "e2e":
        return 0 if "blood_cells" in item.name else 2
    return 1 if item.get_closest_marker("studio") else 3
