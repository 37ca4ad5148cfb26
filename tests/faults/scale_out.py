"""Several servers, workers and a clock on PostgreSQL and Redis, swapped back and forth under load, counted and timed.

    scale_out(home, database_url, broker_url, ...) -> Outcome

Every process is a real one. Clients send without a pause to all servers in turn; whoever promotes speaks to a different server
each time, as a balancer would have it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlmodel import col, func, select

from sutdol import jobs, keys
from sutdol.context import Context, open_context
from sutdol.settings import load
from sutdol.tables import Job, PredictionRow
from tests.job_processes import Processes, steps
from tests.running_server import RunningServer, spawn, wait_for, wait_until_up
from tests.tiny_models import classifier_bundle, coloured_png

SLUG = "tiny"


@dataclass
class Outcome:
    """What was seen."""

    answered: list[tuple[str, int]] = field(default_factory=list)
    """(prediction id, version) of every answer."""
    failures: list[str] = field(default_factory=list)
    converged_s: list[float] = field(default_factory=list)
    """From the request to promote until every server answers with it, per swap."""
    logged: int = 0
    """Of the answered ids, those in the log."""
    jobs_sent: int = 0
    jobs_done: int = 0
    jobs_run: int = 0
    """Runs to the end; more than were sent would be a job done twice."""


def scale_out(
    home: Path, *, database_url: str, broker_url: str, replicas: int, swaps: int, clients: int, within_s: float
) -> Outcome:
    """Run it; fails when a swap does not reach every server within `within_s`."""
    urls = {"database_url": database_url, "broker_url": broker_url}
    context = open_context(load(home=home, **urls))
    first = classifier_bundle(context, SLUG)
    second = classifier_bundle(context, SLUG, promote=False)
    with context.database.begin() as session:
        key = keys.create(session, "test", ["admin"])
    processes, servers = Processes(context.settings), []
    outcome, ended = Outcome(), threading.Event()
    try:
        servers = [spawn(home, **urls, watch_s=0.0) for _ in range(replicas)]
        for server in servers:
            wait_until_up(server)
        for _ in range(2):
            processes.start("work", "batch", 2)
        processes.start("clock")
        threads = [threading.Thread(target=_ask, args=(servers, key, seed, ended, outcome)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            wait_for(lambda: len(outcome.answered) > 20, "traffic")
            for n in range(swaps):
                _swap(context, client, servers, n, (first, second), outcome, within_s)
        ended.set()
        for thread in threads:
            thread.join()
        _count(context, outcome)
    finally:
        ended.set()
        for server in servers:
            if server.process.poll() is None:
                server.kill()
        processes.close()
        context.database.close()
    return outcome


def _ask(servers: list[RunningServer], key: str, seed: int, ended: threading.Event, outcome: Outcome) -> None:
    data = coloured_png("red", seed=seed)
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for n in range(seed, 10_000_000):
            if ended.is_set():
                return
            try:
                reply = client.post(f"{servers[n % len(servers)].url}/v1/predict/{SLUG}", content=data)
            except httpx.HTTPError as error:
                outcome.failures.append(repr(error))
                continue
            if reply.status_code == 200:
                body = reply.json()
                outcome.answered.append((body["prediction_id"], body["version"]))
            else:
                outcome.failures.append(reply.text)


def _swap(
    context: Context,
    client: httpx.Client,
    servers: list[RunningServer],
    n: int,
    versions: tuple[int, int],
    outcome: Outcome,
    within_s: float,
) -> None:
    """Promote the second version, or roll back to the first; then wait until all say so, asking another server."""
    url, other = servers[n % len(servers)].url, servers[(n + 1) % len(servers)].url
    wanted = versions[(n + 1) % 2]
    with context.database.begin() as session:
        jobs.send(session, "retrain.preview", {"name": f"job-{n}"})
    outcome.jobs_sent += 1
    began = time.monotonic()
    action = f"/versions/{wanted}:promote" if n % 2 == 0 else ":rollback"
    moved = client.post(f"{url}/v1/models/{SLUG}{action}")
    assert moved.status_code == 200, moved.text

    def everywhere() -> bool:
        fleet = client.get(f"{other}/v1/models/{SLUG}/replicas").json()
        return bool(fleet["champion"] == wanted and fleet["ready"] == fleet["total"] == len(servers))

    wait_for(everywhere, f"version {wanted} on all servers", within_s=within_s)
    outcome.converged_s.append(time.monotonic() - began)
    seen = len(outcome.answered)
    wait_for(lambda: len(outcome.answered) > seen + 10, "traffic on it")
    assert {version for _, version in outcome.answered[seen + len(servers) * 4 :]} <= {wanted}


def _count(context: Context, outcome: Outcome) -> None:
    def done() -> int:
        with context.database.read() as session:
            states = (Job.kind == "retrain.preview", Job.state == "done")
            return session.exec(select(func.count()).select_from(Job).where(*states)).one()

    wait_for(lambda: done() == outcome.jobs_sent, "the jobs to be done")
    outcome.jobs_done = done()
    outcome.jobs_run = sum(step.name.startswith("job-") for step in steps(context.settings, "end"))
    ids = [prediction for prediction, _ in outcome.answered]
    with context.database.read() as session:
        for start in range(0, len(ids), 5000):
            some = col(PredictionRow.id).in_(ids[start : start + 5000])
            outcome.logged += session.exec(select(func.count()).select_from(PredictionRow).where(some)).one()
