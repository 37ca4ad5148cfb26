"""Clients that are slow, half-hearted, confused or wicked: each is answered or let go, and the others notice nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from hostile_clients import IMPATIENT, PATIENCE_S, drip, opened, say

from sutdol import keys
from sutdol.context import open_context
from sutdol.settings import load
from tests.running_server import running, wait_for
from tests.tiny_models import classifier_bundle, coloured_png

PNG = coloured_png()


class Target:
    """A server with short patience, and the beginning of a good request to it."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {key}"}
        self.head = f"POST /v1/predict/tiny HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()

    def predicts(self) -> bool:
        reply = httpx.post(f"{self.url}/v1/predict/tiny", content=PNG, headers=self.headers, timeout=10)
        return reply.status_code == 200

    def whole(self) -> bytes:
        return self.head + f"Content-Length: {len(PNG)}\r\n\r\n".encode() + PNG


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    home = tmp_path_factory.mktemp("impatient")
    context = open_context(load(home=home))
    classifier_bundle(context)
    with context.database.begin() as session:
        key = keys.create(session, "test", ["predict"])
    with running(home, program=IMPATIENT, max_body_bytes=1_000_000) as server:
        yield Target(server.url, key)
    context.database.close()


@pytest.mark.parametrize("beginning", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\n"])
def test_who_says_nothing_or_half_a_header_is_let_go(target: Target, beginning: bytes) -> None:
    """Each open connection costs a file and some memory."""
    heard = say(target.url, beginning)
    assert heard.closed
    assert heard.data == b""


def test_a_connection_that_has_been_answered_does_not_stay_for_ever(target: Target) -> None:
    """Keep-alive is for the next request, not for the next week."""
    heard = say(target.url, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert heard.statuses == [200]
    assert heard.closed


def test_headers_that_drip_are_cut_and_others_are_served(target: Target) -> None:
    """The slow-loris attack: many connections, a byte now and then, never an end."""
    connections = opened(target.url, 300, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ")
    ended: list[int] = []
    dripping = threading.Thread(
        target=lambda: ended.append(drip(connections, b"a", every_s=PATIENCE_S / 5, within_s=20 * PATIENCE_S))
    )
    dripping.start()
    while dripping.is_alive():
        assert target.predicts()
    assert ended == [300]
    for connection in connections:
        connection.close()


def test_a_body_that_drips_or_stops_half_way_is_a_408(target: Target) -> None:
    """The header was good, so there is somebody to answer."""
    announced = target.head + b"Content-Length: 5000\r\n\r\nabc"
    assert say(target.url, announced).statuses == [408]
    with closing(opened(target.url, 1, announced)[0]) as slow:
        assert drip([slow], b"x", every_s=PATIENCE_S / 5, within_s=20 * PATIENCE_S) == 1


def test_half_sent_bodies_leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What unfinished uploads hold together is bounded, refused with a 503 beyond, and free again when they end."""
    home = tmp_path_factory.mktemp("small")
    context = open_context(load(home=home))
    classifier_bundle(context)
    with context.database.begin() as session:
        key = keys.create(session, "test", ["predict"])
    program = (
        "from serving import bodies, app\napp.Bodies = lambda n: bodies.Bodies(n, held_bytes=2_000_000)\n" + IMPATIENT
    )
    with running(home, program=program, max_body_bytes=1_000_000) as server:
        small = Target(server.url, key)
        half = small.head + b"Content-Length: 900000\r\n\r\n" + bytes(890_000)
        connections = opened(server.url, 2, half)
        big = bytes(400_000)

        def refused() -> bool:
            reply = httpx.post(f"{server.url}/v1/predict/tiny", content=big, headers=small.headers)
            return reply.status_code == 503 and "uploads" in reply.json()["detail"] and "retry-after" in reply.headers

        wait_for(refused, "a refusal while others hold the memory", within_s=PATIENCE_S * 5)
        connections[0].close()
        wait_for(lambda: not refused() and small.predicts(), "room after they have gone")
        connections[1].close()
        for _ in range(20):
            opened(server.url, 1, half)[0].close()
        wait_for(lambda: not refused() and small.predicts(), "room after twenty more have gone")
    context.database.close()


CONFUSED: dict[str, tuple[bytes, list[int]]] = {
    "two lengths": (b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", [400]),
    "a negative length": (b"Content-Length: -4\r\n\r\nabcd", [400]),
    "an endless length": (b"Content-Length: 99999999999999999999999\r\n\r\nabcd", [400]),
    "a length too large": (b"Content-Length: 1000001\r\n\r\nabcd", [413]),
    "a length that is no number": (b"Content-Length: many\r\n\r\nabcd", [400]),
    "chunks of no length": (b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", [400]),
    "an endless chunk": (b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc", [400, 408]),
    "an unknown coding": (b"Transfer-Encoding: magic\r\n\r\nabc", [400]),
    "no length at all": (b"\r\n", [400]),
}


@pytest.mark.parametrize("name", CONFUSED)
def test_a_length_that_lies_is_refused(target: Target, name: str) -> None:
    """And the connection is closed, because nobody knows where the next request would begin."""
    rest, statuses = CONFUSED[name]
    heard = say(target.url, target.head + rest)
    assert heard.closed
    assert len(heard.statuses) == 1
    assert heard.statuses[0] in statuses


def test_a_request_hidden_in_another_is_not_run(target: Target) -> None:
    """Request smuggling: a proxy in front that believes the other length would let it through."""
    hidden = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    both = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    heard = say(target.url, target.head + both + hidden)
    assert heard.statuses == [400]
    assert heard.closed


def test_a_body_longer_than_said_does_not_disturb_its_own_answer(target: Target) -> None:
    """The rest is taken for the next request, and is none."""
    heard = say(target.url, target.whole() + b"and some bytes more")
    assert heard.statuses[0] == 200
    assert heard.statuses[1:] in ([], [400])


def test_requests_in_one_go_are_answered_in_their_order(target: Target) -> None:
    """HTTP/1.1 pipelining: old, rare, allowed."""
    heard = say(target.url, target.whole() + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + target.whole())
    assert heard.statuses == [200, 200, 200]
    first, second, third = heard.data.split(b"HTTP/1.1 ")[1:]
    assert b"prediction_id" in first
    assert b"alive" in second
    assert b"prediction_id" in third


LARGE: dict[str, tuple[bytes, int]] = {
    "one header": (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-A: 1\r\n" * 5000 + b"\r\n", 431),
    "an address": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
}


@pytest.mark.parametrize("name", LARGE)
def test_headers_are_bounded(target: Target, name: str) -> None:
    """They are read before anybody is authenticated."""
    data, status = LARGE[name]
    heard = say(target.url, data)
    assert heard.statuses == [status]
    assert heard.closed


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(128, 256)) * 16,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200),
    ],
    ids=["noise", "HTTP/2", "TLS"],
)
def test_what_is_no_http_is_shown_the_door(target: Target, data: bytes) -> None:
    """Port scanners and misconfigured clients come by every hour."""
    heard = say(target.url, data)
    assert heard.closed
    assert heard.statuses in ([400], [405], [505], [])


def test_idle_connections_do_not_keep_others_out(target: Target) -> None:
    """A thousand here; `tests.benchmarks.hostile` opens ten thousand."""
    connections = opened(target.url, 1000)
    assert target.predicts()
    for connection in connections:
        connection.settimeout(20 * PATIENCE_S)
        assert connection.recv(10) == b""
        connection.close()


def test_clients_that_vanish_leave_the_server_whole(target: Target) -> None:
    """Phones lose their network in the middle of everything."""
    whole = target.whole()
    for i in range(200):
        with closing(opened(target.url, 1)[0]) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close with a reset
            connection.sendall(whole[: len(whole) * (i % 10 + 1) // 10])
    assert target.predicts()
