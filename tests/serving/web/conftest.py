"""Visitors of the console: one with cookies for each kind of key."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from shared_server import Served
from visits import Visit


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
