"""Keys at the door: who is let in, who is not, and how fast a revoked key stops working."""

from __future__ import annotations

import httpx
import pytest
from shared_server import Served, assert_problem, logged

from sutdol import keys
from sutdol.context import Context
from sutdol.tables import ApiKey, now
from tests.running_server import running, wait_for
from tests.tiny_models import classifier_bundle, coloured_png

WRONG = {
    "none": None,
    "no scheme": "sut_abc_def",
    "basic": "Basic c3V0OnN1dA==",
    "not ours": "Bearer abcdef",
    "unknown": "Bearer sut_00000000_0123456789abcdef",
}


@pytest.mark.parametrize("name", WRONG)
def test_without_a_valid_key_nothing_is_answered(served: Served, name: str) -> None:
    """401 with the scheme that is expected, and nothing in the log."""
    header = WRONG[name]
    before = logged(served)
    headers = {} if header is None else {"Authorization": header}
    response = httpx.post(f"{served.server.url}/v1/predict/tiny", content=coloured_png(), headers=headers)
    assert_problem(response, 401, "API key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert logged(served) == before


def test_a_right_id_with_a_wrong_secret_is_refused(served: Served) -> None:
    """The id is no secret: it stands in logs."""
    key_id = served.keys["admin"].split("_")[1]
    headers = {"Authorization": f"Bearer sut_{key_id}_wrong"}
    assert_problem(httpx.get(f"{served.server.url}/v1/models", headers=headers), 401, "unknown")


def test_an_expired_key_is_refused(served: Served) -> None:
    """An expiry that is not enforced is worse than none."""
    with served.client("expired") as client:
        assert_problem(client.post("/v1/predict/tiny", content=coloured_png()), 401, "expired")


@pytest.mark.parametrize(
    ("scope", "method", "path"),
    [
        ("predict", "POST", "/v1/models/tiny:rollback"),
        ("predict", "POST", "/v1/models/tiny/versions/1:promote"),
        ("label", "POST", "/v1/predict/tiny"),
        ("predict", "GET", "/v1/events"),
        ("predict", "GET", "/v1/label-tasks"),
    ],
)
def test_a_key_without_the_scope_is_forbidden(served: Served, scope: str, method: str, path: str) -> None:
    """A key on a camera must not be able to swap the model."""
    with served.client(scope) as client:
        assert_problem(client.request(method, path), 403, scope)


def test_the_operators_routes_need_no_key(served: Served) -> None:
    """Kubernetes and Prometheus come without one."""
    for path in ("/livez", "/readyz", "/metrics"):
        assert httpx.get(served.server.url + path).status_code == 200


def test_a_new_key_works_at_once_and_a_revoked_one_stops(served: Served) -> None:
    """Whoever just made a key tries it; whoever revokes one has a reason."""
    url = f"{served.server.url}/v1/models"
    for _ in range(5):  # right after a look for an unknown one, too
        assert httpx.get(url, headers={"Authorization": f"Bearer sut_{'0' * 8}_nobody"}).status_code == 401
        with served.context.database.begin() as session:
            key = keys.create(session, "short-lived", ["predict"])
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(url, headers=headers).status_code == 200
    with served.context.database.begin() as session:
        session.get_one(ApiKey, key.split("_")[1]).revoked_at = now()
    wait_for(lambda: httpx.get(url, headers=headers).status_code == 401, "the revoked key to be refused", within_s=5)


def test_events_and_task_counts_are_there_for_labelers(served: Served) -> None:
    """The label scope reads what the console shows."""
    with served.client("label") as client:
        assert any(event["kind"] == "swap.done" for event in client.get("/v1/events?model=tiny").json())
        assert isinstance(client.get("/v1/label-tasks").json(), list)
        assert_problem(client.get("/v1/events?limit=0"), 400, "limit")


def test_a_key_that_asks_too_often_is_told_when_to_come_back(context: Context) -> None:
    """One camera in a loop must not take the server from all others; another key is not affected."""
    classifier_bundle(context)
    with context.database.begin() as session:
        busy, calm = (keys.create(session, name, ["predict"]) for name in ("busy", "calm"))
    with running(context.settings.home, key_rate=0.5) as server:
        url, data = f"{server.url}/v1/predict/tiny", coloured_png()
        replies = [httpx.post(url, content=data, headers={"Authorization": f"Bearer {busy}"}) for _ in range(30)]
        refused = [reply for reply in replies if reply.status_code != 200]
        assert len(replies) - len(refused) >= 5  # ten seconds' worth at once
        assert refused
        for reply in refused:
            assert_problem(reply, 429, "asks too often")
            assert int(reply.headers["retry-after"]) >= 1
        assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {calm}"}).status_code == 200
