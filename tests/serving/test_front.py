"""The short road of a plain prediction and the road through the framework answer alike."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from shared_server import MAX_BODY, Served

from tests.tiny_models import coloured_png

THROUGH_LITESTAR = {"format": "sutdol"}
"""A query says what is usual anyway, and makes the request too special for the short road."""

CASES: dict[str, tuple[str, dict[str, str], bytes]] = {
    "an answer": ("/v1/predict/tiny", {}, coloured_png("red")),
    "a content type that does not matter": ("/v1/predict/tiny", {"Content-Type": "image/jpeg"}, coloured_png("green")),
    "an empty body": ("/v1/predict/tiny", {}, b""),
    "no image": ("/v1/predict/tiny", {}, b"hello"),
    "a truncated image": ("/v1/predict/tiny", {}, coloured_png("red", side_px=100, seed=1)[:500]),
    "too large": ("/v1/predict/tiny", {}, b"\x89PNG\r\n\x1a\n" + bytes(MAX_BODY)),
    "an unknown model": ("/v1/predict/nobody", {}, coloured_png()),
    "a broken reference": ("/v1/predict/tiny@@", {}, coloured_png()),
    "MLflow's way to name it": ("/v1/predict/models:/tiny@champion", {}, coloured_png("blue")),
    "no key": ("/v1/predict/tiny", {"Authorization": ""}, coloured_png()),
    "another scheme": ("/v1/predict/tiny", {"Authorization": "Basic abc"}, coloured_png()),
    "an unknown key": ("/v1/predict/tiny", {"Authorization": "Bearer sut_00000000_x"}, coloured_png()),
    "the id of the request": ("/v1/predict/tiny", {"X-Request-Id": "mine-1"}, b"hello"),
}
CHANGING = {"prediction_id", "duration_ms", "queued", "incident"}


def seen(reply: httpx.Response) -> tuple[int, dict[str, Any], dict[str, str]]:
    headers = {name: reply.headers.get(name, "-") for name in ("content-type", "www-authenticate", "retry-after")}
    headers["nosniff"] = reply.headers["x-content-type-options"]
    if "-" in reply.request.headers.get("x-request-id", ""):
        headers["id"] = reply.headers["x-request-id"]
    body = {name: value for name, value in reply.json().items() if name not in CHANGING}
    return reply.status_code, body, headers


@pytest.mark.parametrize("name", CASES)
def test_both_roads_say_the_same(served: Served, name: str) -> None:
    """What a client gets must not depend on how we save time."""
    path, headers, body = CASES[name]
    with served.client() as client:
        quick = client.post(path, content=body, headers=headers)
    with served.client() as client:  # the server ends a connection whose body it did not read
        careful = client.post(path, content=body, headers=headers, params=THROUGH_LITESTAR)
    assert seen(quick) == seen(careful)


def test_both_roads_are_counted_under_one_name(served: Served, client: httpx.Client) -> None:
    """A dashboard shows one route, however its requests came in."""

    def counted() -> float:
        line = 'sutdol_requests_total{method="POST",route="/v1/predict/{model}",status="200"} '
        found = [float(t.rsplit(" ", 1)[1]) for t in client.get("/metrics").text.splitlines() if t.startswith(line)]
        return sum(found)

    before = counted()
    client.post("/v1/predict/tiny", content=coloured_png())
    client.post("/v1/predict/tiny", content=coloured_png(), params=THROUGH_LITESTAR)
    assert counted() == before + 2


def test_a_browser_takes_the_road_that_knows_origins(client: httpx.Client) -> None:
    """CORS headers come from the framework; a request with an Origin must not miss them."""
    reply = client.post("/v1/predict/tiny", content=coloured_png(), headers={"Origin": "http://shop.example"})
    assert reply.headers["access-control-allow-origin"] == "http://shop.example"
