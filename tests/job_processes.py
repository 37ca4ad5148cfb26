"""Real worker, clock and consumer processes for tests, the databases and brokers they need, and waiting with a deadline.

The handlers of the workers and the actor of the consumers write one line per step into `steps.txt` in the home folder:
`start|end <name> <pid> <time>`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sutdol.settings import Settings, child_environment, load

POSTGRES = os.environ.get("SUTDOL_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("SUTDOL_TEST_REDIS", "redis://127.0.0.1:6379/9")
AMQP = os.environ.get("SUTDOL_TEST_AMQP", "amqp://guest:guest@127.0.0.1:5672")
DEADLINE_S = 30.0


class Step(NamedTuple):
    what: str
    name: str
    pid: int
    at: float


def steps(settings: Settings, what: str | None = None) -> list[Step]:
    """What the processes of this home have done so far, in order; only `what` if given."""
    path = settings.home / "steps.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    all_ = [Step(a, b, int(c), float(d)) for a, b, c, d in (line.split() for line in lines)]
    return [step for step in all_ if what in (None, step.what)]


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`; AssertionError naming `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.03)
    raise AssertionError(f"did not happen within {deadline_s:.0f} s: {what}")


class Started:
    """One real process, with the few words of `subprocess.Popen` that tests need."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = DEADLINE_S) -> int:
        """The exit status; AssertionError when it does not end in time."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"process {self.pid} does not end"
        return int(self._process.exitcode)


class Processes:
    """Starts processes of this module; kills what is left at the end of the test.

    They are forked off a server that has the imports behind it: starting Python and importing takes longer than a test.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._all: list[Started] = []

    def start(self, *arguments: object) -> Started:
        """`work QUEUE GRACE_S`, `clock` or `consume THREADS`, with these settings; output goes to process-<n>.log."""
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["sutdol.jobs.worker", "sutdol.jobs.clock", "alembic.command"])
        log = self.settings.home / f"process-{len(self._all)}.log"
        process = server.Process(
            target=_child, args=(child_environment(self.settings), log, [str(a) for a in arguments])
        )
        process.start()
        self._all.append(Started(process))
        return self._all[-1]

    def close(self) -> None:
        for process in self._all:
            process.kill()
            process.wait()


def _child(environment: dict[str, str], log: Path, arguments: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    main(*arguments)


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database of its own, dropped afterwards; `missing` when there is no server."""
    import sqlalchemy as sa

    from tests.conftest import missing

    try:
        engine = sa.create_engine(POSTGRES, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
        connection = engine.connect()
    except (ModuleNotFoundError, sa.exc.OperationalError) as error:
        missing(f"no PostgreSQL: {error}")
    name = f"sutdol_test_{uuid4().hex[:12]}"
    try:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
        yield engine.url.set(database=name).render_as_string(hide_password=False)
    finally:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.close()
        engine.dispose()


def empty(context: Any) -> None:
    """Delete every row, so that a database can serve the next test."""
    from sqlmodel import SQLModel

    with context.database.begin() as session:
        for table in reversed(SQLModel.metadata.sorted_tables):
            session.execute(table.delete())


@contextmanager
def redis() -> Iterator[str]:
    """A broker URL with a namespace of its own, emptied afterwards; `missing` when there is no server."""
    from tests.conftest import missing

    try:
        from redis import ConnectionError as Unreachable
        from redis import Redis
    except ModuleNotFoundError as error:
        missing(f"no Redis: {error}")
    namespace = f"sutdol-test-{uuid4().hex[:12]}"
    client = Redis.from_url(REDIS)
    try:
        try:
            client.ping()
        except Unreachable as error:
            missing(f"no Redis: {error}")
        yield f"{REDIS}?namespace={namespace}"
        for key in client.scan_iter(f"{namespace}*"):
            client.delete(key)
    finally:
        client.close()


def _note(settings: Settings, what: str, name: str) -> None:
    with (settings.home / "steps.txt").open("a") as out:
        out.write(f"{what} {name} {os.getpid()} {time.time()}\n")


def _wait_at_gate(settings: Settings, gate: str | None, look: Callable[[], None]) -> None:
    while gate is not None and not (settings.home / gate).exists():
        look()
        time.sleep(0.02)


def handler(running: Any) -> dict[str, Any]:
    """Waits until the file `gate` exists (looking for a cancel unless `deaf`), then commits an event and ends."""
    from sutdol.events import tell

    settings, payload = running.context.settings, running.payload
    name = payload.get("name", running.job.kind)
    running.report(**{f"pid_{running.attempt}": os.getpid()})
    _note(settings, "start", name)
    look = (lambda: None) if payload.get("deaf") else running.check_cancelled
    _wait_at_gate(settings, payload.get("gate"), look)
    with running.commit() as session:
        tell(session, "test.done", name)
    _note(settings, "end", name)
    return {"pid": os.getpid()}


def consume(threads: int) -> None:
    """A bare Dramatiq worker on the queue `conformance` of the configured broker, until SIGTERM."""
    import dramatiq

    from sutdol.context import open_context
    from sutdol.jobs.brokers import open_broker

    context = open_context(load())
    broker = open_broker(context)

    def take(name: str, gate: str | None = None) -> None:
        _note(context.settings, "start", name)
        _wait_at_gate(context.settings, gate, lambda: None)
        _note(context.settings, "end", name)

    dramatiq.Actor(take, broker=broker, actor_name="take", queue_name="conformance", priority=0, options={})
    worker = dramatiq.Worker(broker, worker_timeout=200, worker_threads=threads)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    worker.start()
    signal.sigwait([signal.SIGTERM])
    worker.stop(timeout=20_000)
    broker.close()


def main(mode: str, *arguments: str) -> None:
    if mode == "work":
        from sutdol.jobs import KINDS, worker

        worker.run(load(), [arguments[0]], dict.fromkeys(KINDS, handler), grace_s=float(arguments[1]))
    elif mode == "clock":
        from sutdol.jobs import clock

        clock.run(load())
    else:
        consume(int(arguments[0]))
