"""What every entry of BROKERS promises about carrying messages, tried with real servers and real processes."""

from __future__ import annotations

import gc
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from sutdol.context import Context, open_context
from sutdol.jobs.brokers import BROKERS, open_broker
from sutdol.settings import load
from tests.conftest import missing
from tests.job_processes import AMQP, Processes, postgres, redis, steps, wait_for

QUEUE = "conformance"


@contextmanager
def _sqlite() -> Iterator[dict[str, str]]:
    yield {}


@contextmanager
def _postgresql() -> Iterator[dict[str, str]]:
    with postgres() as url:
        yield {"database_url": url}


@contextmanager
def _redis() -> Iterator[dict[str, str]]:
    with redis() as url:
        yield {"broker_url": url}


@contextmanager
def _amqp() -> Iterator[dict[str, str]]:
    import pika
    from pika.exceptions import AMQPConnectionError

    try:
        connection = pika.BlockingConnection(pika.URLParameters(AMQP))
    except AMQPConnectionError:
        missing(f"no RabbitMQ answers on {AMQP}")
    try:
        with _purged(connection):
            yield {"broker_url": AMQP}
    finally:
        connection.close()
        del connection
        with warnings.catch_warnings():  # pika leaves the socket pair of each connection's poller to the collector
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@contextmanager
def _purged(connection: Any) -> Iterator[None]:
    """RabbitMQ's queues outlive everything, so the test's own are removed before and after."""
    names = [QUEUE, f"{QUEUE}.DQ", f"{QUEUE}.XQ"]
    for name in names:
        connection.channel().queue_delete(name)
    yield
    for name in names:
        connection.channel().queue_delete(name)


GROUNDS: dict[str, Callable[[], AbstractContextManager[dict[str, str]]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "redis": _redis,
    "amqp": _amqp,
}
SAME_WITH_TLS = {"rediss", "amqps"}


@pytest.fixture(params=sorted(set(BROKERS) - SAME_WITH_TLS))
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    """A context whose broker is the one under test; leases are short."""
    with GROUNDS[request.param]() as urls:
        opened = open_context(load(home=tmp_path / "home", lease_s=1.0, heartbeat_s=0.2, **urls))
        yield opened
        opened.database.close()


@pytest.fixture
def processes(ground: Context) -> Iterator[Processes]:
    started = Processes(ground.settings)
    yield started
    started.close()


def _send(context: Context, *messages: dict[str, Any], delay_ms: int | None = None) -> None:
    broker = open_broker(context)
    broker.declare_queue(QUEUE)
    for kwargs in messages:
        message: dramatiq.Message[Any] = dramatiq.Message(QUEUE, "take", (), kwargs, {})
        broker.enqueue(message, delay=delay_ms)
    broker.close()


def test_several_senders_one_worker_and_every_message_once(ground: Context, processes: Processes) -> None:
    """A lost message is work that waits for the sweeper, a repeated one is work for nothing."""
    names = [[f"s{sender}-{n}" for n in range(30)] for sender in range(3)]
    senders = [threading.Thread(target=_send, args=(ground, *({"name": n} for n in some))) for some in names]
    processes.start("consume", 4)
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    wanted = sorted(name for some in names for name in some)
    wait_for(lambda: len(steps(ground.settings, "end")) >= len(wanted), "all messages processed")
    assert sorted(step.name for step in steps(ground.settings, "end")) == wanted


def test_a_message_in_the_hands_of_a_killed_worker_is_delivered_again(ground: Context, processes: Processes) -> None:
    """Workers die by the kernel's hand when memory runs out; what they held must not die with them."""
    settings = ground.settings
    first = processes.start("consume", 1)
    _send(ground, {"name": "held", "gate": "gate"})
    wait_for(lambda: steps(settings, "start"), "the first worker has it")
    first.kill()
    first.wait()
    second = processes.start("consume", 1)
    wait_for(lambda: [s for s in steps(settings, "start") if s.pid == second.pid], "the second worker has it")
    (settings.home / "gate").touch()
    wait_for(lambda: [s for s in steps(settings, "end") if s.pid == second.pid], "the second worker is done")


def test_a_delayed_message_arrives_and_not_too_early(ground: Context, processes: Processes) -> None:
    """Back-off is a delay; a message that comes early makes it a busy loop."""
    processes.start("consume", 1)
    sent = time.time()
    _send(ground, {"name": "late"}, delay_ms=1500)
    _send(ground, {"name": "soon"})
    wait_for(lambda: len(steps(ground.settings, "end")) == 2, "both arrived")
    soon, late = steps(ground.settings, "start")
    assert (soon.name, late.name) == ("soon", "late")
    assert late.at >= sent + 1.5


def test_a_worker_asked_to_stop_loses_nothing(ground: Context, processes: Processes) -> None:
    """Every deployment stops workers with one message at work and others already fetched."""
    settings = ground.settings
    first = processes.start("consume", 1)
    _send(ground, *({"name": f"m{n}", "gate": "gate"} for n in range(6)))
    wait_for(lambda: steps(settings, "start"), "one is at work")
    first.send_signal(signal.SIGTERM)
    (settings.home / "gate").touch()
    assert first.wait(timeout=30) == 0
    processes.start("consume", 1)
    wait_for(lambda: len({step.name for step in steps(settings, "end")}) == 6, "all six done")
    assert len(steps(settings, "end")) == 6


def test_a_reopened_broker_goes_on_where_the_last_one_stopped(ground: Context) -> None:
    """Handed back is there again, acknowledged is gone, whichever broker object asks."""
    _send(ground, {"name": "one"})
    for last_word in ("requeue", "ack"):
        broker = open_broker(ground)
        broker.declare_queue(QUEUE)
        consumer = broker.consume(QUEUE, prefetch=1, timeout=50)
        message = wait_for(lambda consumer=consumer: next(consumer), f"the message, to {last_word} it")
        assert message.kwargs == {"name": "one"}
        if last_word == "requeue":
            consumer.requeue([message])
        else:
            consumer.ack(message)
        consumer.close()
        broker.close()
    broker = open_broker(ground)
    broker.declare_queue(QUEUE)
    for _ in range(3):
        consumer = broker.consume(QUEUE, prefetch=1, timeout=50)
        assert next(consumer) is None
        consumer.close()
    broker.close()
