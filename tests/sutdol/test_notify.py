"""People are told where they are: a real apprise sends to a real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from sutdol import notify
from sutdol.context import Context, open_context
from sutdol.jobs import worker
from sutdol.settings import load
from sutdol.tables import Job

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
"""One of apprise's hundred plugins imports it, and all of them are looked at."""


@pytest.fixture
def received() -> Iterator[tuple[int, list[dict[str, Any]], list[int]]]:
    """A web hook: its port, what came, and the statuses it will answer (then 200)."""
    came: list[dict[str, Any]] = []
    statuses: list[int] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, came, statuses
    server.shutdown()
    server.server_close()
    thread.join()


def opened(home: Path, **settings: Any) -> Context:
    return open_context(load(home=home, **settings))


def tell(context: Context, kind: str) -> None:
    with context.database.begin() as session:
        notify.queue(session, context.settings, kind, "cells version 3 waits for your approval", "better by 4 points")


def jobs_of(context: Context) -> list[Job]:
    with context.database.read() as session:
        return list(session.exec(select(Job)).all())


def test_a_message_reaches_the_hook_once_it_is_up(tmp_path: Path, received: Any) -> None:
    """Chat services have bad minutes; the message is tried again and not lost."""
    port, came, statuses = received
    statuses.append(503)
    context = opened(tmp_path, notify_urls=f"json://127.0.0.1:{port}/hook")
    tell(context, "approval")
    worker.run_pending(context, notify.HANDLERS)
    [job] = jobs_of(context)
    assert (job.state, job.attempt) == ("queued", 1)
    with context.database.begin() as session:
        row = session.get_one(Job, job.id)
        row.not_before = 0.0
        session.add(row)
    worker.run_pending(context, notify.HANDLERS)
    assert jobs_of(context)[0].state == "done"
    assert [(m["title"], m["message"], m["type"]) for m in came] == [
        ("sutdol: cells version 3 waits for your approval", "better by 4 points", "warning")
    ] * 2
    context.database.close()


def test_nothing_is_sent_where_nobody_asked_for_it(tmp_path: Path) -> None:
    """No outbound connection by default, and only the kinds that were wanted."""
    context = opened(tmp_path / "a")
    tell(context, "failed")
    assert jobs_of(context) == []
    context.database.close()
    context = opened(tmp_path / "b", notify_urls="json://127.0.0.1:1/", notify_on="failed, drift")
    tell(context, "approval")
    assert jobs_of(context) == []
    tell(context, "failed")
    assert len(jobs_of(context)) == 1
    context.database.close()


def test_a_url_that_is_none_is_told_without_its_password(tmp_path: Path) -> None:
    """Setting up a mail server is where people paste secrets into wrong places."""
    context = opened(tmp_path, notify_urls="nonsense-hunter2")
    tell(context, "done")
    worker.run_pending(context, notify.HANDLERS)
    [job] = jobs_of(context)
    assert "the URL number 1" in str(job.error)
    assert "hunter2" not in str(job.error)
    context.database.close()
