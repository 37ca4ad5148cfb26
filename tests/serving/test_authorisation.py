"""Who may do what: one row for each route of the whole server, tried with each kind of key. A new route without a row fails."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from serving.app import create_app
from sutdol import keys
from sutdol.cli import ROUTERS
from sutdol.context import open_context
from sutdol.settings import load

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OPEN = """
GET /livez
GET /readyz
GET /metrics
GET /schema
GET /schema/openapi.json
GET /schema/{path:str}
GET /v2
GET /v2/health/live
GET /v2/health/ready
GET /label-studio
GET /label-studio/health
POST /label-studio/webhook
GET /
GET /console/login
POST /console/login
POST /console/logout
POST /console/language
GET /console/static/{file_path:path}
HEAD /console/static/{file_path:path}
"""
"""No key: for balancers, scrapers and browsers. They tell of no image, no label and no secret."""
OTHERWISE = """
GET /v1/samples/{sample_id:str}/image
HEAD /v1/samples/{sample_id:str}/image
POST /v1/label-studio/webhook
POST /label-studio/setup
POST /label-studio/predict
GET /label-studio/versions
"""
"""Refused without a proof of their own: a signature in the URL, the webhook's secret, the ML backend's password."""
PREDICT = """
GET /v1/batches
GET /v1/batches/{run_id:str}
GET /v1/batches/{run_id:str}/results
GET /v1/decisions
GET /v1/evaluations/{evaluation_id:str}
GET /v1/evaluations/{evaluation_id:str}/comparison
GET /v1/evaluations/{evaluation_id:str}/items
GET /v1/evaluations/{evaluation_id:str}/{file:str}
GET /v1/jobs/{job_id:str}
GET /v1/models
GET /v1/models/{model:str}
GET /v1/models/{model:str}/accuracy
GET /v1/models/{model:str}/dataset-versions
GET /v1/models/{model:str}/dataset-versions/{number:int}/diff
GET /v1/models/{model:str}/dataset-versions/{number:int}/statistics
GET /v1/models/{model:str}/drift
GET /v1/models/{model:str}/evaluations
GET /v1/models/{model:str}/families
GET /v1/models/{model:str}/imports
GET /v1/models/{model:str}/replicas
GET /v1/models/{model:str}/rollout
GET /v1/models/{model:str}/versions
GET /v1/models/{model:str}/versions/{version:int}
GET /v1/models/{model:str}/versions/{version:int}/exports
GET /v1/models/{model:str}/versions/{version:int}/exports/{format:str}
GET /v1/models/{model:str}/versions/{version:int}/thresholds
GET /v1/runs
GET /v1/runs/{run_id:str}
GET /v2/cudasharedmemory/region/{region:str}/status
GET /v2/cudasharedmemory/status
GET /v2/logging
GET /v2/models/stats
GET /v2/models/{model:str}
GET /v2/models/{model:str}/config
GET /v2/models/{model:str}/ready
GET /v2/models/{model:str}/stats
GET /v2/models/{model:str}/trace/setting
GET /v2/models/{model:str}/versions/{version:str}
GET /v2/models/{model:str}/versions/{version:str}/config
GET /v2/models/{model:str}/versions/{version:str}/ready
GET /v2/models/{model:str}/versions/{version:str}/stats
GET /v2/systemsharedmemory/region/{region:str}/status
GET /v2/systemsharedmemory/status
GET /v2/trace/setting
POST /v1/batches/upload
POST /v1/batches/{run_id:str}/cancel
POST /v1/batches/{run_id:str}/resume
POST /v1/predict/{model:str}
POST /v1/predict/{model:str}/batch
POST /v1/predictions/{prediction_id:str}/feedback
POST /v2/models/{model:str}/infer
POST /v2/models/{model:str}/versions/{version:str}/infer
POST /v2/repository/index
"""
LABEL = """
GET /v1/models/{model:str}/samples
GET /v1/models/{model:str}/unfamiliar
POST /v1/models/{model:str}/unfamiliar/ask
DELETE /v1/models/{model:str}/collections/{collection_id:str}
GET /v1/events
GET /v1/label-tasks
GET /v1/live
GET /v1/models/{model:str}/auto-labels
GET /v1/models/{model:str}/collections
GET /v1/models/{model:str}/label-budget
GET /v1/models/{model:str}/labeling
GET /v1/notifications
GET /v1/traffic
GET /v1/samples/{sample_id:str}
GET /v1/samples/{sample_id:str}/picture
POST /v1/models/{model:str}/collections
"""
ADMIN = """
GET /v1/doctor
POST /v1/models
POST /v1/models/{model:str}/dataset-versions
POST /v1/models/{model:str}/unfamiliar/name
DELETE /v1/models/{model:str}/aliases/{alias:str}
DELETE /v1/models/{model:str}/rollout
DELETE /v1/models/{model:str}/versions/{version:int}
GET /v1/jobs/{job_id:str}/file
PATCH /v1/models/{model:str}/dataset-versions/{number:int}
PATCH /v1/models/{model:str}/versions/{version:int}
POST /v1/batches
POST /v1/models/{model:str}
POST /v1/models/{model:str}/adoptions
POST /v1/models/{model:str}/auto-labels
POST /v1/models/{model:str}/auto-labels/pause
POST /v1/models/{model:str}/auto-labels/resume
POST /v1/models/{model:str}/copies
POST /v1/models/{model:str}/evaluations
POST /v1/models/{model:str}/exports
POST /v1/models/{model:str}/imports
POST /v1/models/{model:str}/previews
POST /v1/models/{model:str}/versions/{version:int}/exports/{format:str}
POST /v1/models/{model:str}/versions/{version:int}/rejection
POST /v1/models/{model:str}/versions/{version:str}
POST /v1/runs
POST /v1/runs/{run_id:str}/cancel
POST /v2/cudasharedmemory/region/{region:str}/register
POST /v2/cudasharedmemory/region/{region:str}/unregister
POST /v2/cudasharedmemory/unregister
POST /v2/logging
POST /v2/models/{model:str}/trace/setting
POST /v2/repository/models/{model:str}/load
POST /v2/repository/models/{model:str}/unload
POST /v2/systemsharedmemory/region/{region:str}/register
POST /v2/systemsharedmemory/region/{region:str}/unregister
POST /v2/systemsharedmemory/unregister
POST /v2/trace/setting
PUT /v1/models/{model:str}/aliases/{alias:str}
PUT /v1/models/{model:str}/rollout
"""
SOCKETS = {"/v1/predict/{model:str}/stream"}
"""WebSockets; tests/serving/test_streams.py refuses them without a key."""
ENDLESS = {"GET /v1/live"}
MATRIX = {
    row: who
    for who, rows in (
        ("open", OPEN),
        ("otherwise", OTHERWISE),
        ("predict", PREDICT),
        ("label", LABEL),
        ("admin", ADMIN),
    )
    for row in rows.split("\n")
    if row
}


class Door:
    """The whole server in this process, and a key of each scope."""

    def __init__(self, app: Litestar, client: TestClient[Litestar], keys_by_scope: dict[str, str]) -> None:
        self.app, self.client, self.keys = app, client, keys_by_scope

    def routes(self) -> set[str]:
        """`METHOD /path` of every route but OPTIONS and WebSockets."""
        found = set()
        for route in self.app.routes:
            for handler in getattr(route, "route_handlers", []):
                found |= {f"{method} {route.path}" for method in handler.http_methods if method != "OPTIONS"}
        return found

    def status(self, row: str, scope: str | None) -> int:
        """What a request without a sensible body gets with a key of that scope."""
        method, path = row.split(" ")
        path = re.sub(r"\{\w+:int\}", "1", path)
        path = re.sub(r"\{\w+:\w+\}", "x", path)
        headers = {"Authorization": f"Bearer {self.keys[scope]}"} if scope else {}
        return self.client.request(method, path, headers=headers, follow_redirects=False).status_code


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    context = open_context(load(home=tmp_path_factory.mktemp("door"), ml_backend=True))
    with context.database.begin() as session:
        made = {scope: keys.create(session, scope, [scope]) for scope in keys.SCOPES}
    app = create_app(context, [importlib.import_module(name).build(context) for name in ROUTERS]).litestar
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Door(app, client, made)
    context.database.close()


def test_every_route_has_a_row(door: Door) -> None:
    """Whoever adds a route says who may use it, here, or the build fails."""
    console = {row for row in door.routes() if re.match(r"\w+ /console", row)}
    assert door.routes() - console == {row for row in MATRIX if "/console" not in row}
    assert {row for row in MATRIX if "/console" in row} <= console
    sockets = {route.path for route in door.app.routes if not hasattr(route, "route_handlers")}
    assert {path for path in sockets if "static" not in path} == SOCKETS


@pytest.mark.parametrize("who", ["predict", "label", "admin"])
def test_a_scope_opens_its_routes_and_no_others(door: Door, who: str) -> None:
    """Tried, not read: 401 without a key, 403 with a lesser one, anything else with the right one or an admin's."""
    for row in (row for row, scope in MATRIX.items() if scope == who):
        assert door.status(row, None) == 401, row
        for scope in keys.SCOPES:
            if scope in (who, "admin"):
                assert row in ENDLESS or door.status(row, scope) not in (401, 403, 500), (row, scope)
            else:
                assert door.status(row, scope) == 403, (row, scope)


def test_what_needs_no_key_answers_without_one(door: Door) -> None:
    """And what has a proof of its own is refused without it, whatever key comes along."""
    for row in (row for row, who in MATRIX.items() if who == "open"):
        wrong_key = {401} if row == "POST /console/login" else set()  # it is where one is handed in
        assert door.status(row, None) not in {401, 403, 500} - wrong_key, row
    for row in (row for row, who in MATRIX.items() if who == "otherwise"):
        assert door.status(row, None) in (400, 401, 403), row
        assert door.status(row, "predict") in (400, 401, 403), row


def test_the_console_sends_strangers_to_its_door(door: Door) -> None:
    """No page and no button works without a session, and a key in a header is none; 400: it lacks a parameter."""
    for row in door.routes():
        if re.match(r"\w+ /console", row) and row not in MATRIX:
            assert door.status(row, None) in (302, 303, 307, 400, 401, 403), row
            assert door.status(row, "predict") in (302, 303, 307, 400, 401, 403), row
