"""`python -m tests.benchmarks.serving`: the server against the same predictor in this process, paired in one run.

640 x 480 JPEGs, a tiny classifier, 8 clients in a process of their own, five rounds; each round measures both. The log, the
scores and the key check are on.

Known gap: the clients are httpx, which costs milliseconds of CPU a request on the cores that the server needs, so with so
small a model the ratio says more about them than about the server (measured: .14). A load client of about 0.1 ms a request
and the 224 px classifier are needed before the ratio can be held against its target of .85.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import simplejpeg

from sutdol import keys
from sutdol.context import open_context
from sutdol.predictor import Predictor
from sutdol.settings import load
from tests import tiny_models
from tests.running_server import running

ROUNDS, SECONDS, CLIENTS = 5, 4.0, 8
CLIENT = """
import asyncio, sys, time
from pathlib import Path
from sutdol.client import AsyncClient
url, key, folder, seconds, clients = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
images = [p.read_bytes() for p in sorted(folder.glob("*.jpg"))]
times, failed = [], 0
async def work(client, end, i):
    global failed
    while time.perf_counter() < end:
        began = time.perf_counter()
        try:
            await client.predict("tiny", images[i % len(images)])
            times.append(time.perf_counter() - began)
        except Exception:
            failed += 1
        i += 1
async def main():
    async with AsyncClient(url, key) as client:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(work(client, end, i) for i in range(clients)))
asyncio.run(main())
times.sort()
print(len(times) / seconds, times[len(times) // 2] * 1e3, times[int(len(times) * .99)] * 1e3, failed)
"""


def photos(folder: Path, *, count: int = 32) -> list[bytes]:
    """JPEGs with some structure, 640 x 480."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        small = rng.integers(0, 255, (30, 40, 3)).astype(np.uint8)
        image = np.ascontiguousarray(np.kron(small, np.ones((16, 16, 1), np.uint8)))
        data = simplejpeg.encode_jpeg(image, quality=85)
        (folder / f"{i}.jpg").write_bytes(data)
        found.append(data)
    return found


def limit(predictor: Predictor, images: list[bytes]) -> float:
    """Images a second with one thread per core, nothing else."""
    end, counts = time.perf_counter() + SECONDS, []

    def work() -> None:
        n = 0
        while time.perf_counter() < end:
            predictor.predict_bytes(images[n % len(images)])
            n += 1
        counts.append(n)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        context = open_context(load(home=home / "home"))
        images = photos(home)
        predictor = Predictor.open(context.store, "tiny", tiny_models.classifier_bundle(context))
        with context.database.begin() as session:
            key = keys.create(session, "bench", ["predict"])
        rows = []
        with running(context.settings.home) as server:
            for _ in range(ROUNDS):
                alone = limit(predictor, images)
                words = [sys.executable, "-c", CLIENT, server.url, key, str(home), str(SECONDS), str(CLIENTS)]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                served, p50, p99, failed = (float(v) for v in done.stdout.split())
                rows.append((alone, served, served / alone, p50, p99, failed))
        context.database.close()
    alone, served, ratio, p50, p99, _ = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"limit in process    {alone:8.0f} images/s   (decode, prepare, run, interpret; 2 threads)")
    print(f"served, {CLIENTS} clients   {served:8.0f} images/s   p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"ratio               {ratio:8.2f}            (rounds {', '.join(f'{r[2]:.2f}' for r in rows)})")
    print(f"failed              {sum(r[5] for r in rows):8.0f}            target 0")


if __name__ == "__main__":
    main()
