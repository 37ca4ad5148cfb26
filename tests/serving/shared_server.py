"""What the tests of this folder know about the server they share (see conftest.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
from sqlmodel import func, select

from sutdol.context import Context
from sutdol.tables import PredictionRow
from tests.running_server import RunningServer, wait_for
from tests.tiny_models import classifier_bundle

ORIGIN = "http://shop.example"
MAX_BODY = 1_000_000


@dataclass
class Served:
    """The shared server, the ground under it, and keys by scope."""

    server: RunningServer
    context: Context
    keys: dict[str, str]

    def client(self, scope: str = "admin") -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.keys[scope]}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=30)

    def model(self, slug: str, **bundle: object) -> int:
        """A new promoted version of a model of that name, and wait until it answers."""
        version = classifier_bundle(self.context, slug, **bundle)  # type: ignore[arg-type]
        with self.client() as client:
            wait_for(lambda: version_of(client, slug) == version, f"{slug} version {version} to answer")
        return version


def version_of(client: httpx.Client, slug: str) -> int | None:
    """Which version answers on this replica."""
    serving = client.get(f"/v1/models/{slug}").json()["serving"]
    version: int | None = serving.get("version")
    return version


def logged(served: Served) -> int:
    """Rows in the prediction log."""
    with served.context.database.read() as session:
        return session.exec(select(func.count()).select_from(PredictionRow)).one()


def assert_problem(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """It is an RFC 9457 problem with that status, whose text holds all words."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:sutdol:problem:")
    for word in words:
        assert word in f"{problem['detail']} {problem.get('hint', '')}"
    return problem
