"""Whatever Label Studio, its network and our own processes do: every sample one task, every answer once."""

from __future__ import annotations

import pytest

from tests.faults.bridge_chaos import Chaos, Plan, check
from tests.studio_fixture import FakeStudio, RealStudio

pytestmark = pytest.mark.slow
REAL = Plan(
    samples=500, answers=0.2, patience_s=4.0, bridge_kills=3, studio_kills=2, deleted_tasks=5, pace=6.0, settle_s=500.0
)
"""With a fake's patience the faults would all come at once where a real submit takes half a second, and nobody would work."""


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_and_nothing_doubled_in_a_bad_hour(fake_studio: FakeStudio, tmp_path, seed: int) -> None:
    """Labels are the most expensive thing here; each fault alone is easy, together they are what happens."""
    plan = Plan()
    check(Chaos(fake_studio, tmp_path / "home", seed, plan).run(), plan.samples)


@pytest.mark.studio
@pytest.mark.timeout(900)
def test_the_real_server_has_a_bad_hour_too(real_studio: RealStudio, tmp_path) -> None:
    """The fake only does what we know of; the real one is killed, on SQLite, with the labelers at work."""
    check(Chaos(real_studio, tmp_path / "home", 1, REAL).run(), REAL.samples)
