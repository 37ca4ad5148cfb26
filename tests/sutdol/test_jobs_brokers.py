"""What only the embedded broker promises, and how broker URLs are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from sutdol.context import Context, open_context
from sutdol.errors import SetupError
from sutdol.jobs.brokers import EmbeddedBroker, open_broker
from sutdol.settings import load
from sutdol.tables import now
from tests.job_processes import wait_for


def _broker(context: Context, *names: str) -> EmbeddedBroker:
    broker = EmbeddedBroker(context.database, lease_s=0.3)
    broker.declare_queue("q")
    for name in names:
        message: dramatiq.Message[Any] = dramatiq.Message("q", "a", (name,), {}, {})
        broker.enqueue(message)
    return broker


def test_a_message_in_living_hands_is_not_delivered_again(context: Context) -> None:
    """A training outlives its doorbell's lease many times over."""
    broker = _broker(context, "long")
    holder, idle = broker.consume("q", timeout=10), broker.consume("q", timeout=10)
    held = wait_for(lambda: next(holder), "the message")
    end = now() + 1.0
    while now() < end:
        assert next(holder) is None
        assert next(idle) is None
    holder.ack(held)
    broker.join("q", timeout=1000)


def test_a_consumer_never_holds_more_than_it_was_allowed(context: Context) -> None:
    """With one in hand, the second training belongs to another worker."""
    broker = _broker(context, "one", "two")
    first, second = broker.consume("q", prefetch=1, timeout=10), broker.consume("q", prefetch=1, timeout=10)
    one, two = next(first), next(second)
    assert one is not None
    assert two is not None
    assert (one.args, two.args) == (("one",), ("two",))
    assert next(first) is None
    first.requeue([one])
    again = next(first)
    assert again is not None
    assert again.args == ("one",)


def test_a_late_acknowledgement_does_not_delete_what_is_in_other_hands(context: Context) -> None:
    """A worker that slept acknowledges a message that was delivered to another meanwhile."""
    broker = _broker(context, "one")
    slept, awake = broker.consume("q", timeout=10), broker.consume("q", timeout=10)
    old = next(slept)
    assert old is not None
    new = wait_for(lambda: next(awake), "it is delivered again")
    slept.ack(old)
    awake.requeue([new])
    assert next(awake) is not None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("kafka://localhost", r"expected one of sqlite://, postgresql://, redis://.*found 'kafka'"),
        ("sqlite:////tmp/other.db", r"must be the database in use.*leave SUTDOL_BROKER_URL empty"),
    ],
)
def test_a_broker_url_that_cannot_work_is_refused(url: str, message: str, tmp_path: Path) -> None:
    """At the start and in words, not as jobs that never run."""
    context = open_context(load(home=tmp_path / "home", broker_url=url))
    with pytest.raises(SetupError, match=message):
        open_broker(context)
    context.database.close()


@pytest.mark.parametrize(
    ("url", "module", "message"),
    [
        ("redis://localhost", "redis", r"needs the package redis \(pip install 'sutdol\[redis\]'\)"),
        ("amqp://localhost", "pika", r"needs the package pika"),
    ],
)
def test_a_missing_extra_is_named(
    url: str, module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base install has neither client; the remedy is one command."""
    for loaded in [
        name for name in sys.modules if name.split(".")[0] == module or name.startswith("dramatiq.brokers.")
    ]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    context = open_context(load(home=tmp_path / "home", broker_url=url))
    with pytest.raises(SetupError, match=message):
        open_broker(context)
    context.database.close()


def test_sending_a_job_needs_no_dramatiq() -> None:
    """The serving process sends jobs and stays small."""
    program = "import sys, sutdol.jobs; sys.exit('dramatiq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
