"""The live feed and the video stream over a real port: order, pressure, slow and silent clients, and the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from shared_server import MAX_BODY, Served, logged
from sqlmodel import select
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from serving import frames, live
from sutdol import keys
from sutdol.context import Context
from sutdol.tables import ApiKey, PredictionRow, now
from tests.running_server import PROGRAM, running, wait_for
from tests.tiny_models import CLASSES, classifier_bundle, classifier_onnx, coloured_png

PATH = "/v1/predict/tiny/stream"


def headers_of(served: Served, scope: str = "admin") -> dict[str, str]:
    return {"Authorization": f"Bearer {served.keys[scope]}"}


def camera(served: Served, path: str = PATH, scope: str = "predict", **options: Any) -> ClientConnection:
    url = served.server.url.replace("http", "ws") + path
    return connect(url, additional_headers=headers_of(served, scope), **options)


class Reader:
    """Reads the live feed in a thread."""

    def __init__(self, url: str, headers: dict[str, str], **params: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self.open = threading.Event()
        self._request = {"url": f"{url}/v1/live", "headers": headers, "params": params}
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        assert self.open.wait(10)

    def _read(self) -> None:
        try:
            with httpx.stream("GET", **self._request, timeout=60) as reply:
                assert reply.headers["content-type"] == "text/event-stream"
                for line in reply.iter_lines():
                    self.open.set()
                    if line.startswith("data: "):
                        self.events.append(json.loads(line[6:]))
        except httpx.TransportError:
            pass
        finally:
            self.ended.set()

    @property
    def ids(self) -> list[str]:
        return [event["prediction_id"] for event in self.events]


def test_the_feed_shows_what_the_log_holds(served: Served, client: httpx.Client) -> None:
    """Also when the reader came late, when it wants one model, and when several read."""
    everything, other = (
        Reader(served.server.url, headers_of(served)),
        Reader(served.server.url, headers_of(served), model="nope"),
    )
    replies = [client.post("/v1/predict/tiny", content=coloured_png(name)).json() for name in CLASSES]
    ids = [reply["prediction_id"] for reply in replies]
    wait_for(lambda: set(ids) <= set(everything.ids), "the events")
    event = next(e for e in everything.events if e["prediction_id"] == ids[0])
    with served.context.database.read() as session:
        row = session.get_one(PredictionRow, ids[0])
    assert (event["confidence"], event["answer"], event["sample_id"]) == (row.confidence, row.answer, row.sample_id)
    assert other.events == []


@pytest.mark.parametrize(("scope", "status"), [("predict", 403), ("expired", 401)])
def test_the_feed_is_not_for_everyone(served: Served, scope: str, status: int) -> None:
    """It shows what other callers asked."""
    assert httpx.get(f"{served.server.url}/v1/live", headers=headers_of(served, scope)).status_code == status


def test_a_reader_whose_key_is_revoked_is_cut_off(served: Served) -> None:
    """A stream may last for days; a revoked key must not."""
    with served.context.database.begin() as session:
        key = keys.create(session, "dashboard", ["label"])
    reader = Reader(served.server.url, {"Authorization": f"Bearer {key}"})
    with served.context.database.begin() as session:
        session.get_one(ApiKey, key.split("_")[1]).revoked_at = now()
    assert reader.ended.wait(10)


LOUD = (
    """
from dataclasses import replace
from serving import live
told = live.Feed.told

def loud(self, group):  # events of 20 kB fill the buffers between two processes soon
    rows = lambda entry: tuple((kind, values | {"answer": {"classes": ["x" * 20_000]}}) for kind, values in entry.rows)
    told(self, [replace(entry, rows=rows(entry)) for entry in group])

live.Feed.told = loud
"""
    + PROGRAM
)


def test_a_reader_that_does_not_keep_up_is_dropped(fresh: tuple[Context, str]) -> None:
    """It must cost neither memory nor anybody else's time; the others go on."""
    context, key = fresh
    headers = {"Authorization": f"Bearer {key}"}
    form = [("file", (f"{i}.png", coloured_png(CLASSES[i % 3]))) for i in range(64)]
    with running(context.settings.home, program=LOUD) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow, httpx.Client(headers=headers, timeout=60) as client:
            slow.sendall(f"GET /v1/live HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
            fast = Reader(server.url, headers)
            for _ in range(20):
                assert client.post(f"{server.url}/v1/predict/tiny/batch", files=form).status_code == 200
            wait_for(lambda: len(fast.events) == 20 * 64, "all events")
            assert not fast.ended.is_set()
            slow.settimeout(20)
            received = bytearray()
            with contextlib.suppress(ConnectionError):
                while part := slow.recv(1 << 16):
                    received += part
            assert received.count(b"event: prediction") < 20 * 64


def test_every_frame_gets_its_answer_in_order(served: Served) -> None:
    """Broken frames happen in every video; the next one is answered all the same."""
    before = logged(served)
    with camera(served) as stream:
        for i in range(30):
            stream.send(b"noise" if i % 10 == 9 else coloured_png(CLASSES[i % 3]))
        replies = [json.loads(stream.recv(timeout=20)) for _ in range(30)]
    assert [reply["frame"] for reply in replies] == list(range(30))
    for i, reply in enumerate(replies):
        if i % 10 == 9:
            assert reply["status"] == 415
            assert "JPEG" in reply["problem"]["detail"]
        else:
            assert reply["answer"]["predictions"][0]["name"] == CLASSES[i % 3]
    assert logged(served) == before + 27


def test_frames_may_ask_like_any_request(served: Served) -> None:
    """Accepted risk and foreign formats are the caller's choice here too; text is no frame, and too large is too large."""
    with camera(served, f"{PATH}?max_risk=0&format=roboflow") as stream:
        stream.send(coloured_png("red"))
        answer = json.loads(stream.recv(timeout=20))["answer"]
        assert answer["unsure"] is True
        assert answer["top"] == ""
        stream.send("hello")
        assert "binary" in json.loads(stream.recv(timeout=20))["problem"]["detail"]
        stream.send(bytes(MAX_BODY + 1))
        assert json.loads(stream.recv(timeout=20))["status"] == 413


def test_a_camera_faster_than_the_model_is_held_back(served: Served) -> None:
    """Its frames wait on its own side; here only a handful may, and other callers do not notice."""
    served.model("heavy", onnx_bytes=classifier_onnx(burden=3))

    async def film() -> int:
        url = served.server.url.replace("http", "ws") + "/v1/predict/heavy/stream"
        async with connect_async(url, additional_headers=headers_of(served), max_queue=1) as stream:
            sent = 0
            noise = coloured_png("red", side_px=300, seed=1)

            async def send() -> None:
                nonlocal sent
                while True:
                    await stream.send(noise)
                    sent += 1

            task = asyncio.create_task(send())
            for _ in range(10):
                await stream.recv()
            await asyncio.sleep(0)
            task.cancel()
            return sent

    sent = asyncio.run(film())
    assert sent < 200
    with served.client() as client:
        assert client.get("/readyz").json()["queue_length"] <= frames.IN_FLIGHT


@pytest.mark.parametrize("scope", ["expired", "label"])
def test_a_stream_without_the_right_key_is_refused_at_the_door(served: Served, scope: str) -> None:
    """Nothing is accepted, nothing is read."""
    with pytest.raises(InvalidStatus) as error:
        camera(served, scope=scope)
    assert error.value.response.status_code == 403


def test_a_browser_presents_its_key_as_a_subprotocol(served: Served) -> None:
    """`new WebSocket(url, [...])` is all a page can do."""
    url = served.server.url.replace("http", "ws") + PATH
    with connect(url, subprotocols=["sutdol.v1", f"bearer.{served.keys['predict']}"]) as stream:  # type: ignore[list-item]
        assert stream.subprotocol == "sutdol.v1"
        stream.send(coloured_png("blue"))
        assert json.loads(stream.recv(timeout=20))["status"] == 200


def test_an_unknown_model_is_told_before_the_end(served: Served) -> None:
    """A closed socket without a word helps nobody."""
    with camera(served, "/v1/predict/nope/stream") as stream:
        assert "unknown model" in json.loads(stream.recv(timeout=20))["problem"]["detail"]
        with pytest.raises(ConnectionClosed):
            stream.recv(timeout=20)


def test_a_stream_ends_with_its_key(served: Served) -> None:
    """Revocation holds for what is open already."""
    with served.context.database.begin() as session:
        key = keys.create(session, "camera", ["predict"])
    url = served.server.url.replace("http", "ws") + PATH
    with connect(url, additional_headers={"Authorization": f"Bearer {key}"}) as stream:
        stream.send(coloured_png())
        assert json.loads(stream.recv(timeout=20))["status"] == 200
        with served.context.database.begin() as session:
            session.get_one(ApiKey, key.split("_")[1]).revoked_at = now()

        def refused() -> bool:
            try:
                stream.send(coloured_png())
                return bool(json.loads(stream.recv(timeout=20))["status"] == 401)
            except ConnectionClosed:
                return True

        wait_for(refused, "the stream to end")


@pytest.fixture
def fresh(context: Context) -> tuple[Context, str]:
    classifier_bundle(context)
    with context.database.begin() as session:
        key = keys.create(session, "test", ["admin"])
    return context, key


def test_open_streams_do_not_hold_up_the_end(fresh: tuple[Context, str]) -> None:
    """A deployment that waits for every dashboard and camera to leave never ends; and what was answered is in the log."""
    context, key = fresh
    headers = {"Authorization": f"Bearer {key}"}
    with running(context.settings.home) as server:
        reader = Reader(server.url, headers)
        with connect(server.url.replace("http", "ws") + PATH, additional_headers=headers) as stream:
            stream.send(coloured_png())
            reply = json.loads(stream.recv(timeout=20))
            began = time.monotonic()
            assert server.terminate() == 0
            took = time.monotonic() - began
        assert reader.ended.wait(5)
        assert "streams were cut" not in server.text
    assert took < 5
    with context.database.read() as session:
        assert reply["answer"]["prediction_id"] in session.exec(select(PredictionRow.id)).all()


async def test_the_number_of_readers_is_bounded() -> None:
    """Each costs memory as long as it likes to stay."""
    feed = live.Feed()
    for _ in range(live.MAX_READERS):
        feed.join(None)
    with pytest.raises(live.BusyError, match=str(live.MAX_READERS)):
        feed.join(None)
