"""`python -m tests.benchmarks.swap`: 200 swaps under load; who noticed, and what stayed in memory.

Three versions of a benchmark model take turns, so that each swap reads, checks and warms its version anew (the one before is
kept in memory, the one before that is not). The load is an open loop at 60 % of the highest rate, for the first part without
swaps. The p99 of requests that end within a second of a swap is held against the p99 of the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from sutdol import keys
from sutdol.context import open_context
from sutdol.settings import load
from tests.benchmarks import models
from tests.benchmarks.serving import Bench, Target, pss_mb
from tests.running_server import running

AROUND_S = 1.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny64", choices=list(models.NAMES))
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--requests", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        context = open_context(load(home=Path(name) / "home"))
        versions = [models.bundle(context, given.model, promote=i == 0) for i in range(3)]
        with context.database.begin() as session:
            key = keys.create(session, "benchmark", ["predict", "admin"])
        context.database.close()
        with running(Path(name) / "home") as server:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg"}
            target = Target("sutdol", f"{server.url}/v1/predict/{given.model}", headers, server.process.pid)
            _measure(bench, target, server.url, versions, given)


def _measure(bench: Bench, target: Target, url: str, versions: list[int], given: argparse.Namespace) -> None:
    bench.load(target, clients=8, seconds=2)
    rate = 0.6 * bench.load(target, clients=8, seconds=4)["per_s"]
    seconds = given.requests / rate
    samples = bench.folder / "samples.npy"
    words = [sys.executable, "-m", "tests.benchmarks.load", target.url, "--images", str(bench.photos)]
    words += ["--rate", str(rate), "--seconds", str(seconds), "--samples", str(samples)]
    for header, value in target.headers.items():
        words += ["--header", f"{header}: {value}"]
    before = pss_mb(target.pid or 0)
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    moments, times, memory = [], [], []
    calm_s = seconds * 0.2
    time.sleep(calm_s)
    pause = (seconds * 0.75) / given.swaps
    with httpx.Client(base_url=url, headers=target.headers, timeout=60) as client:
        for i in range(given.swaps):
            due = time.monotonic() + pause
            version = versions[(i + 1) % len(versions)]
            reply = client.post(f"/v1/models/{given.model}/versions/{version}:promote")
            reply.raise_for_status()
            moments.append(time.monotonic())
            times.append(reply.json()["swap_ms"])
            if i in (9, given.swaps - 1):
                memory.append(pss_mb(target.pid or 0))
            time.sleep(max(due - time.monotonic(), 0))
    said, _ = child.communicate()
    found = json.loads(said)
    ends, latencies = np.load(samples)
    near = np.zeros(len(ends), bool)
    for moment in moments:
        near |= (ends > moment - AROUND_S) & (ends < moment + AROUND_S)
    calm = latencies[ends < moments[0] - AROUND_S]
    during = latencies[near] if pause > 2 * AROUND_S else latencies[ends > moments[0] - AROUND_S]
    ratio = float(np.percentile(during, 99) / np.percentile(calm, 99))
    print(
        f"{given.model}: {given.swaps} swaps, {found['n']} answers at {rate:.0f}/s, failed {found['errors']} (target 0)"
    )
    print(f"p99 without swaps {np.percentile(calm, 99):.1f} ms, around swaps {np.percentile(during, 99):.1f} ms")
    print(
        f"ratio {ratio:.2f} (target 1.2); p99.9 {np.percentile(calm, 99.9):.1f}, {np.percentile(during, 99.9):.1f} ms"
    )
    print(f"a swap takes {statistics.median(times):.0f} ms from request to publication")
    growth = memory[-1] / memory[0] - 1
    print(
        f"PSS {before:.0f} MB before, {memory[0]:.0f} after 10 swaps, {memory[-1]:.0f} at the end: {growth:+.1%} (5 %)"
    )


if __name__ == "__main__":
    main()
