"""The bridge's bad hours, more of them and on PostgreSQL: `make faults`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bridge_chaos import Chaos, Plan, check
from tests.job_processes import postgres
from tests.studio_fixture import FakeStudio, RealStudio, fake_studio, real_studio  # noqa: F401

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
BIG = Plan(samples=500, bridge_kills=5, studio_kills=4, deleted_tasks=10, settle_s=120.0)
REAL = Plan(
    samples=500, answers=0.2, patience_s=4.0, bridge_kills=4, studio_kills=3, deleted_tasks=8, pace=6.0, settle_s=500.0
)
"""Its patience is that of the real server's bad hour in tests/labeling_bridge/test_chaos.py."""


@pytest.mark.parametrize("seed", range(1000, 1020))
def test_a_bad_hour_on_sqlite(fake_studio: FakeStudio, tmp_path: Path, seed: int) -> None:  # noqa: F811
    """Five hundred samples and twice the trouble."""
    check(Chaos(fake_studio, tmp_path / "home", seed, BIG).run(), BIG.samples)


@pytest.mark.parametrize("seed", range(2000, 2010))
def test_a_bad_hour_with_our_database_on_postgresql(fake_studio: FakeStudio, tmp_path: Path, seed: int) -> None:  # noqa: F811
    """Other locks, other isolation: what SQLite makes one after the other happens at once there."""
    with postgres() as url:
        check(Chaos(fake_studio, tmp_path / "home", seed, BIG, database_url=url).run(), BIG.samples)


@pytest.fixture(scope="module")
def studio_on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStudio]:
    """The real Label Studio with a PostgreSQL database of its own."""
    with postgres() as url:
        server = RealStudio(tmp_path_factory.mktemp("studio"), label_studio_database_url=url)
        server.start()
        yield server
        server.kill()
        server.context.database.close()


@pytest.mark.studio
@pytest.mark.parametrize("seed", [3000, 3001])
def test_the_real_server_on_sqlite(real_studio: RealStudio, tmp_path: Path, seed: int) -> None:  # noqa: F811
    """It loses predictions by itself there; nothing needs to be faked."""
    check(Chaos(real_studio, tmp_path / "home", seed, REAL).run(), REAL.samples)


@pytest.mark.studio
@pytest.mark.parametrize("seed", [4000, 4001])
def test_the_real_server_and_ours_on_postgresql(studio_on_postgres: RealStudio, tmp_path: Path, seed: int) -> None:
    """How a site with many people runs."""
    with postgres() as url:
        check(Chaos(studio_on_postgres, tmp_path / "home", seed, REAL, database_url=url).run(), REAL.samples)
