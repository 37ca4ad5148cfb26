"""Visitors of the console: one with cookies for each kind of key."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from shared_server import Served
from visits import Visit

from sutdol import rollouts
from sutdol.tables import RunCandidate, RunProgress, TrainingRun
from tests.tiny_models import classifier_bundle


@pytest.fixture(scope="session", autouse=True)
def _run(served: Served) -> None:
    """A finished training with two epochs, `a-run`."""
    with served.context.database.begin() as session:
        hints = ["over-fitting: stop earlier"]
        run = TrainingRun(
            id="a-run", model="tiny", family="timm", params={}, cause="by hand", state="done", hints=hints
        )
        session.add(run)
        session.add(RunCandidate(run_id="a-run", number=1, family="timm", params={}, state="chosen", epochs=2))
        for epoch in (1, 2):
            metrics = {"train/loss": 1 / epoch, "val/loss": 1.0 * epoch, "val/accuracy": 0.5 + epoch / 10}
            session.add(RunProgress(run_id="a-run", candidate=1, attempt=1, epoch=epoch, metrics=metrics))


@pytest.fixture(scope="session", autouse=True)
def _trial(served: Served) -> None:
    """A model `on-trial`: version 1 is the champion, 2 the challenger, 3 stands by."""
    for promote in (True, False, False):
        classifier_bundle(served.context, "on-trial", promote=promote)
    with served.context.database.begin() as session:
        rollouts.start(session, "on-trial", 2, mode="shadow", share=0.5, max_disagreement=0.0, who="test")


@pytest.fixture
def visit(served: Served) -> Iterator[Visit]:
    """`visit("admin")` is a client that has logged in with a key of that scope."""
    opened: list[httpx.Client] = []

    def log_in(scope: str) -> httpx.Client:
        client = httpx.Client(base_url=served.server.url, timeout=30)
        opened.append(client)
        done = client.post("/console/login", data={"key": served.keys[scope]})
        assert (done.status_code, done.headers["location"]) == (303, "/console")
        return client

    yield log_in
    for client in opened:
        client.close()
