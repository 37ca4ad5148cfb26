"""Clients that misbehave on purpose, on bare sockets, and a server with short patience to meet them."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from tests.running_server import PROGRAM

PATIENCE_S = 1.0
IMPATIENT = (
    f"""
from serving import bodies, main
bodies.BODY_TIMEOUT_S = {PATIENCE_S}
main._HEADER_TIMEOUT_MS = {int(PATIENCE_S * 1000)}
"""
    + PROGRAM
)
"""The server, but it waits a second where it otherwise waits half a minute."""


@dataclass(frozen=True)
class Heard:
    """What came back on one connection until it was closed, or nothing more came."""

    data: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """Of every reply."""
        return [int(part[:3]) for part in self.data.split(b"HTTP/1.1 ")[1:]]


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def say(url: str, data: bytes, *, within_s: float = 10.0) -> Heard:
    """Send bytes and listen until the server closes."""
    with socket.create_connection(address(url)) as connection:
        connection.settimeout(within_s)
        heard = bytearray()
        try:
            connection.sendall(data)
            while part := connection.recv(1 << 16):
                heard += part
        except TimeoutError:
            return Heard(bytes(heard), closed=False)
        except ConnectionError:
            pass
        return Heard(bytes(heard), closed=True)


def opened(url: str, count: int, data: bytes = b"") -> list[socket.socket]:
    """So many connections that have said `data` and nothing more."""
    found = []
    for _ in range(count):
        connection = socket.create_connection(address(url), timeout=20)
        if data:
            connection.sendall(data)
        found.append(connection)
    return found


def drip(connections: list[socket.socket], data: bytes, *, every_s: float, within_s: float) -> int:
    """One byte of `data` on each connection, again and again, until the server has closed them all; how many it has."""
    alive, began = set(connections), time.monotonic()
    for i in range(10_000):
        time.sleep(every_s)
        for connection in list(alive):
            try:
                connection.sendall(data[i % len(data)].to_bytes())
            except OSError:
                alive.discard(connection)
        if not alive or time.monotonic() - began > within_s:
            break
    return len(connections) - len(alive)
