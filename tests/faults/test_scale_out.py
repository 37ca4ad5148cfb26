"""Many servers are one server: no request fails while versions move, and all of them come along."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.scale_out import Outcome, scale_out
from tests.job_processes import postgres, redis


def check(outcome: Outcome, swaps: int) -> None:
    """No request failed, every answer is in the log, every job was done once."""
    assert outcome.failures == []
    assert outcome.logged == len(outcome.answered)
    assert len(outcome.converged_s) == swaps
    assert outcome.jobs_sent == outcome.jobs_done == outcome.jobs_run == swaps


def test_two_servers_move_together(tmp_path: Path) -> None:
    """The short version: three swaps."""
    with postgres() as database_url, redis() as broker_url:
        urls = {"database_url": database_url, "broker_url": broker_url}
        outcome = scale_out(tmp_path, **urls, replicas=2, swaps=3, clients=2, within_s=60)
    check(outcome, 3)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_three_servers_follow_twenty_promotions_and_rollbacks_within_five_seconds(tmp_path: Path) -> None:
    """3 servers, 2 workers, a clock, PostgreSQL and Redis; the figures are printed for docs/figures.md."""
    with postgres() as database_url, redis() as broker_url:
        urls = {"database_url": database_url, "broker_url": broker_url}
        outcome = scale_out(tmp_path, **urls, replicas=3, swaps=20, clients=6, within_s=5)
    check(outcome, 20)
    times = sorted(outcome.converged_s)
    print(
        f"\n{len(outcome.answered)} answered, 0 failed; converged: median {times[10]:.2f} s, longest {times[-1]:.2f} s"
    )
