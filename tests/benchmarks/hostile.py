"""`python -m tests.benchmarks.hostile`: what hostile and odd images, idle and dripping clients cost the server.

    images    every file of the zoo and the largest that must be read, one by one: slowest, most memory, wrong answers
    idle      10,000 connections that say nothing: memory, and whether predictions are answered meanwhile
    dripping  2,000 connections that send a byte of a header now and then: when the last is let go, the same question
    api       a large run of Schemathesis (`--examples`)

Memory is the growth of the server's peak (VmHWM) while it answers one request; targets: <= 1 s, <= 200 MB, no 5xx.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import simplejpeg

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))  # as pytest does for the files beside these
from hostile_clients import drip, opened
from test_hostile_images import forget_peak, memory
from test_schema_conformance import try_everything

from sutdol import keys
from sutdol.context import open_context
from sutdol.settings import load
from tests.image_zoo import Animal, giants, zoo
from tests.running_server import RunningServer, running
from tests.tiny_models import classifier_bundle, coloured_png

PARTS = ("images", "idle", "dripping", "api")
MOST_S, MOST_MB = 1.0, 200.0


@contextlib.contextmanager
def server_with_key() -> Iterator[tuple[RunningServer, str]]:
    """The server as it is, with the tiny classifier."""
    with tempfile.TemporaryDirectory() as name:
        context = open_context(load(home=Path(name)))
        classifier_bundle(context)
        with context.database.begin() as session:
            key = keys.create(session, "benchmark", ["admin"])
        context.database.close()
        with running(Path(name)) as server:
            yield server, key


def noise() -> dict[str, bytes]:
    """Large files, not only large pictures: nearly 20 MB of pixels that do not compress."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (3000, 4000, 3)).astype(np.uint8)
    return {"jpeg of noise": simplejpeg.encode_jpeg(rgb, quality=90, colorsubsampling="420")}


def images(server: RunningServer, client: httpx.Client, *, rounds: int = 3) -> None:
    """Each file by itself; the best time of some rounds, because the machine has other things to do as well."""
    animals = zoo() | {f"giant {n}": Animal(data, (200,)) for n, data in (giants() | noise()).items()}
    pid = server.process.pid
    rows: list[tuple[float, float, str]] = []
    wrong = []
    for name, animal in animals.items():
        times, most = [], 0
        for _ in range(rounds):
            start = forget_peak(pid)
            began = time.perf_counter()
            reply = client.post("/v1/predict/tiny", content=animal.data)
            times.append(time.perf_counter() - began)
            most = max(most, memory(pid, "VmHWM") - start)
        if reply.status_code not in animal.statuses:
            wrong.append(f"{name}: {reply.status_code}, expected {animal.statuses}")
        rows.append((min(times), most / 1e6, f"{name} ({len(animal.data) / 1e6:.2f} MB, {reply.status_code})"))
    print(f"\n== images: {len(rows)} files, {len(wrong)} wrong answers (target 0) {wrong or ''}")
    slowest, hungriest = max(rows), max(rows, key=lambda row: row[1])
    print(f"slowest   {slowest[0]:6.2f} s  (target <= {MOST_S:g})   {slowest[2]}")
    print(f"hungriest {hungriest[1]:6.0f} MB (target <= {MOST_MB:g}) {hungriest[2]}")
    for seconds, megabytes, name in sorted(rows, reverse=True)[:15]:
        print(f"  {seconds:6.3f} s  +{megabytes:5.0f} MB  {name}")


def idle(server: RunningServer, client: httpx.Client, *, count: int) -> None:
    """Connections that say nothing."""
    before = memory(server.process.pid, "VmRSS")
    connections = opened(server.url, count)
    after = memory(server.process.pid, "VmRSS")
    times = answered(client, seconds=3)
    print(
        f"\n== idle: {count} connections cost {(after - before) / 1e6:.0f} MB, {(after - before) / count / 1e3:.1f} kB each"
    )
    tell(times)
    began = time.perf_counter()
    connections[-1].settimeout(60)
    with contextlib.suppress(OSError):
        connections[-1].recv(1)
    print(f"the last one was let go after {time.perf_counter() - began:.0f} s more")
    for connection in connections:
        connection.close()


def dripping(server: RunningServer, client: httpx.Client, *, count: int) -> None:
    """The slow-loris attack."""
    connections = opened(server.url, count, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ")
    times = answered(client, seconds=3)
    began = time.perf_counter()
    ended = drip(connections, b"a", every_s=0.5, within_s=60)
    print(f"\n== dripping: {ended} of {count} connections were cut within {time.perf_counter() - began:.0f} s")
    tell(times)
    for connection in connections:
        connection.close()


def answered(client: httpx.Client, *, seconds: float) -> list[float]:
    """Milliseconds of predictions, one after the other."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        assert client.post("/v1/predict/tiny", content=coloured_png()).status_code == 200
        times.append((time.perf_counter() - began) * 1000)
    return times


def tell(times: list[float]) -> None:
    print(
        f"meanwhile {len(times)} predictions, p50 {statistics.median(times):.1f} ms, slowest {max(times):.1f} ms, 0 failed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=30, help="of each operation")
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with server_with_key() as (server, key):
        client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        if "images" in given.parts:
            images(server, client)
        if "idle" in given.parts:
            idle(server, client, count=given.connections)
        if "dripping" in given.parts:
            dripping(server, client, count=given.connections // 5)
        if "api" in given.parts:
            with tempfile.TemporaryDirectory() as folder:
                found = try_everything(server.url, key, Path(folder), examples=given.examples)
            print(f"\n== api: {'nothing found' if not found else found[-6000:]}")


if __name__ == "__main__":
    main()
