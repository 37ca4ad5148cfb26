"""A load client of about 0.1 ms a request: one thread, raw sockets, `select`; closed and open loop against any URL.

    requests (ready-made bytes) -> connections -> replies: status, latency -> Result

In the closed loop each of n connections sends its next request when its reply is here. In the open loop requests are due at
fixed or Poisson moments, whatever the server does, and a latency counts from the moment it was due; a free connection is
used, or one more is opened. `python -m tests.benchmarks.load --help`; benchmarks start it as a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_S = 30.0
MAX_CONNECTIONS = 900


@dataclass
class Result:
    """What one run saw; times in ms, `moments` are the ends of the requests in `time.monotonic()` seconds."""

    seconds: float
    statuses: Counter[str]
    latencies_ms: list[float]
    moments: list[float]
    client_cpu_ms: float
    late_ms: float = 0.0
    """Largest delay of our own in sending what was due."""
    by_status: dict[str, list[float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Throughput and percentiles of the answers with 200, and what else came."""
        good = np.array(self.latencies_ms) if self.latencies_ms else np.array([float("nan")])
        p50, p90, p99, p999 = (float(np.percentile(good, q)) for q in (50, 90, 99, 99.9))
        n = len(self.latencies_ms)
        return {
            "per_s": n / self.seconds,
            "n": n,
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "p999": p999,
            "max": float(good.max()),
            "mean": float(good.mean()),
            "errors": sum(self.statuses.values()) - self.statuses["200"],
            "statuses": dict(self.statuses),
            "refused_p99": float(np.percentile(self.by_status["503"], 99)) if self.by_status.get("503") else None,
            "client_cpu_ms": self.client_cpu_ms / max(sum(self.statuses.values()), 1),
            "late_ms": self.late_ms,
        }


class Connection:
    """One keep-alive connection that waits for at most one reply."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.sent_at = 0.0
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._body_ends = -1

    def reconnect(self) -> None:
        self.socket.close()
        self._connect()

    def send(self, request: bytes, at: float) -> None:
        """`sendall` on a socket with room for it hardly ever waits, and a wait is the server's own slowness."""
        self.sent_at = at
        try:
            self.socket.sendall(request)
        except OSError:
            self.reconnect()
            self.socket.sendall(request)

    def receive(self) -> str | None:
        """The status when the whole reply is here, else None; "broken" when the connection ended."""
        try:
            part = self.socket.recv(262_144)
        except OSError:
            return "broken"
        if not part:
            return "broken"
        self._buffer = self._buffer + part if self._buffer else part
        if self._body_ends < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = self._buffer[:end].lower()
            found = head.find(b"content-length:")
            if found >= 0:
                self._body_ends = end + 4 + int(head[found + 15 :].split(b"\r\n", 1)[0])
            elif b"chunked" in head:
                if not self._buffer.endswith(b"0\r\n\r\n"):
                    return None
                self._body_ends = len(self._buffer)
            else:
                self._body_ends = end + 4
        if len(self._buffer) < self._body_ends:
            return None
        status = self._buffer[9:12].decode()
        self._buffer, self._body_ends = self._buffer[self._body_ends :], -1
        return status


def requests_for(url: str, bodies: list[bytes], headers: dict[str, str]) -> tuple[tuple[str, int], list[bytes]]:
    """(address, ready-made requests)."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    made = [("\r\n".join([*lines, f"Content-Length: {len(b)}"]) + "\r\n\r\n").encode() + b for b in bodies]
    return (parts.hostname or "127.0.0.1", parts.port or 80), made


def closed(url: str, bodies: list[bytes], headers: dict[str, str], *, clients: int, seconds: float) -> Result:
    """`clients` connections, each with one request in flight."""
    address, requests = requests_for(url, bodies, headers)
    connections = [Connection(address) for _ in range(clients)]
    poll = select.epoll()
    by_fd = {}
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    moments: list[float] = []
    others: dict[str, list[float]] = {}
    cpu = time.process_time()
    began = time.monotonic()
    end, n = began + seconds, 0
    for connection in connections:
        by_fd[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
        connection.send(requests[n % len(requests)], time.monotonic())
        n += 1
    flying = len(connections)
    while flying:
        events = poll.poll(TIMEOUT_S)
        if not events:
            statuses["timeout"] += flying
            break
        for fd, _ in events:
            connection = by_fd[fd]
            status = connection.receive()
            if status is None:
                continue
            at = time.monotonic()
            took = (at - connection.sent_at) * 1000
            statuses[status] += 1
            if status == "200":
                latencies.append(took)
                moments.append(at)
            else:
                others.setdefault(status, []).append(took)
            if status == "broken":
                poll.unregister(fd)
                del by_fd[fd]
                connection.reconnect()
                by_fd[connection.socket.fileno()] = connection
                poll.register(connection.socket, select.EPOLLIN)
            if at < end:
                connection.send(requests[n % len(requests)], at)
                n += 1
            else:
                flying -= 1
    took_s = time.monotonic() - began
    cpu_ms = (time.process_time() - cpu) * 1000
    for connection in connections:
        connection.socket.close()
    return Result(took_s, statuses, latencies, moments, cpu_ms, by_status=others)


def open_loop(
    url: str,
    bodies: list[bytes],
    headers: dict[str, str],
    *,
    rate: float,
    seconds: float,
    poisson: bool,
    seed: int = 0,
) -> Result:
    """`rate` requests a second for `seconds`, evenly or as a Poisson process."""
    address, requests = requests_for(url, bodies, headers)
    rng = np.random.default_rng(seed)
    count = int(rate * seconds)
    gaps = rng.exponential(1 / rate, count) if poisson else np.full(count, 1 / rate)
    free = [Connection(address) for _ in range(16)]
    busy: dict[int, Connection] = {}
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    moments: list[float] = []
    others: dict[str, list[float]] = {}
    waiting: deque[float] = deque()
    cpu = time.process_time()
    began = time.monotonic()
    due_at = (began + 0.05 + np.cumsum(gaps)).tolist()
    n, late = 0, 0.0
    opened = len(free)
    while n < count or busy or waiting:
        now = time.monotonic()
        while n < count and due_at[n] <= now:
            waiting.append(due_at[n])
            late = max(late, now - due_at[n])
            n += 1
        while waiting and (free or opened < MAX_CONNECTIONS):
            if free:
                connection = free.pop()
            else:
                connection = Connection(address)
                opened += 1
            due = waiting.popleft()
            connection.send(requests[len(moments) % len(requests)], due)
            busy[connection.socket.fileno()] = connection
        pause = max(due_at[n] - time.monotonic(), 0.0) if n < count else TIMEOUT_S
        ready, _, _ = select.select(list(busy), [], [], pause)
        if not ready and n >= count:
            statuses["timeout"] += len(busy)
            break
        for fd in ready:
            connection = busy[fd]
            status = connection.receive()
            if status is None:
                continue
            at = time.monotonic()
            took = (at - connection.sent_at) * 1000
            statuses[status] += 1
            if status == "200":
                latencies.append(took)
                moments.append(at)
            else:
                others.setdefault(status, []).append(took)
            del busy[fd]
            if status == "broken":
                connection.reconnect()
            free.append(connection)
    took_s = time.monotonic() - began
    return Result(
        took_s, statuses, latencies, moments, (time.process_time() - cpu) * 1000, late * 1000, by_status=others
    )


def main() -> None:
    """Run from the command line; prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--images", type=Path, required=True, help="folder of bodies to send")
    parser.add_argument("--header", action="append", default=[], help="Name: value")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second: open loop")
    parser.add_argument("--poisson", action="store_true")
    parser.add_argument("--samples", type=Path, help="write (end, latency in ms) of every answer here, .npy")
    given = parser.parse_args()
    bodies = [path.read_bytes() for path in sorted(given.images.iterdir())]
    headers = dict(line.split(": ", 1) for line in given.header)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if given.rate:
        found = open_loop(given.url, bodies, headers, rate=given.rate, seconds=given.seconds, poisson=given.poisson)
    else:
        found = closed(given.url, bodies, headers, clients=given.clients, seconds=given.seconds)
    if given.samples:
        np.save(given.samples, np.array([found.moments, found.latencies_ms]))
    json.dump(found.summary(), sys.stdout)
    print(flush=True)


if __name__ == "__main__":
    main()
