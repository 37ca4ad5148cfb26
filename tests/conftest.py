"""Fixtures for all tests: a home in a temporary folder, and where the real data lies."""

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
