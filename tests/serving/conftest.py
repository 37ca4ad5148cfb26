"""One real server for most tests of this folder; each test brings a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from shared_server import MAX_BODY, ORIGIN, Served

from serving.web import assets
from sutdol import keys
from sutdol.context import open_context
from sutdol.settings import load
from tests.running_server import running
from tests.tiny_models import classifier_bundle


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the model `tiny`, a small body limit, one browser origin, and everything picked for labelling."""
    if not assets.built():  # `make setup` does it; a fresh work tree has not
        assets.build()
    home: Path = tmp_path_factory.mktemp("served")
    context = open_context(load(home=home))
    classifier_bundle(context)
    with context.database.begin() as session:
        by_scope = {scope: keys.create(session, scope, [scope]) for scope in keys.SCOPES}
        by_scope["expired"] = keys.create(session, "expired", ["admin"], expires_at=1.0)
    with running(home, max_body_bytes=MAX_BODY, cors_origins=ORIGIN, label_rate=1.0, max_open_tasks=100_000) as server:
        yield Served(server, context, by_scope)
    context.database.close()


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    """With the admin key."""
    with served.client() as opened:
        yield opened
