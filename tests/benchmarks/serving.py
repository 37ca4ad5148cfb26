"""`python -m tests.benchmarks.serving`: the server against the in-process limit and against peers, paired in one run.

640 x 480 JPEGs; log, scores and key check are on. Each round measures a window of the limit, one of the server and one of
every peer that `--peers PYTHON` can start, so that noise of the machine meets all of them. The load client is a process of
its own and shares the cores (about 0.1 ms a request). Printed: images/s, latency, CPU-ms per image, memory, errors, and the
ratios beside their targets.

    python -m tests.benchmarks.serving        six minutes: all models in the closed loop, the rest on the first of them
    python -m tests.benchmarks.serving --only cls224 --parts saturate
    python -m tests.benchmarks.load http://host:8000/v1/predict/flowers --images DIR --header "Authorization: Bearer sut_..."
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sutdol import keys
from sutdol.context import open_context
from sutdol.settings import load
from tests.benchmarks import limit, models, peers
from tests.running_server import PROGRAM, running

TARGETS = {"cls224": (0.90, 0.95), "det320": (0.95, 0.96), "tiny64": (0.85, 0.90)}
"""(images/s over the limit's, the limit's CPU-ms over the server's)."""
WITHOUT_LOG = (
    """
from serving import log
from serving.tickets import settle
log.LogWriter.submit = lambda self, entry: settle([(entry.ticket, entry.reply)])
"""
    + PROGRAM
)
"""The server with its log switched off, to measure what the log costs. There is no such setting."""


@dataclass
class Target:
    """A server to put load on: where, how to call it, and whose CPU and memory are its."""

    name: str
    url: str
    headers: dict[str, str]
    pid: int | None


class Bench:
    """The photos, the load client, and what `/proc` says about a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = folder / "photos"
        self.forms = folder / "forms"
        self.photos.mkdir()
        self.forms.mkdir()
        self.prepared_s = 0.0
        for i, data in enumerate(models.photos()):
            (self.photos / f"{i:03}.jpg").write_bytes(data)
            (self.forms / f"{i:03}").write_bytes(peers.in_a_form(data))

    def load(self, target: Target, **options: Any) -> dict[str, Any]:
        """One window; the client's summary with the server's `cpu_ms` per request."""
        bodies = self.forms if target.name in peers.FORMS else self.photos
        words = [sys.executable, "-m", "tests.benchmarks.load", target.url, "--images", str(bodies)]
        for name, value in target.headers.items():
            words += ["--header", f"{name}: {value}"]
        for name, value in options.items():
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        cpu = cpu_ms(target.pid) if target.pid else 0.0
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        used = cpu_ms(target.pid) - cpu if target.pid else float("nan")
        return found | {"cpu_ms": used / max(sum(found["statuses"].values()), 1)}

    @contextlib.contextmanager
    def ours(self, model: str, *, program: str = PROGRAM, **settings: Any) -> Iterator[Target]:
        """Our server with one benchmark model."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            context = open_context(load(home=Path(name)))
            models.bundle(context, model)
            with context.database.begin() as session:
                key = keys.create(session, "benchmark", ["predict", "admin"])
            context.database.close()
            self.prepared_s = time.monotonic() - began
            with running(Path(name), program=program, **settings) as server:
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg"}
                yield Target("sutdol", f"{server.url}/v1/predict/{model}", headers, server.process.pid)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                found += family(int(child))
    return found


def cpu_ms(pid: int) -> float:
    """CPU time of a process and its descendants."""
    ticks = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Memory of a process and its descendants, shared pages divided."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1000


def commit_ms(folder: Path, *, count: int = 200) -> float:
    """The p50 of a durable commit of one small row on this disk, in ms."""
    with contextlib.closing(sqlite3.connect(folder / "probe.db", isolation_level=None)) as connection:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE IF NOT EXISTS t (x TEXT)")
        times = []
        for _ in range(count):
            began = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t VALUES (?)", ("x" * 600,))
            connection.execute("COMMIT")
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def closed_loop(bench: Bench, model: str, given: argparse.Namespace) -> None:
    """Throughput and CPU against the limit and the peers, as many clients as the model's target says."""
    clients = models.NAMES[model].clients
    onnx = models.onnx_of(model)
    detect = models.NAMES[model].task == "detect"
    name, bare, configurations = limit.best(onnx, bench.photos, detect=detect)
    print(f"\n== {model}, {clients} clients, {given.rounds} rounds of {given.seconds:g} s")
    print(f"limit: {name} ({', '.join(f'{k}: {v:.0f}/s' for k, v in configurations.items())})")
    rows: dict[str, list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(bench.ours(model))]
        for peer in peers.available(given.peers):
            targets.append(Target(peer, *stack.enter_context(peers.started(given.peers, peer, onnx, detect=detect))))
        for target in targets:
            bench.load(target, clients=clients, seconds=1)
        for _ in range(given.rounds):
            alone = bare.run(given.seconds)
            for target in targets:
                found = bench.load(target, clients=clients, seconds=given.seconds)
                found["ratio"] = found["per_s"] / alone["per_s"]
                found["cpu_ratio"] = alone["cpu_ms"] / found["cpu_ms"]
                found["pss"] = pss_mb(target.pid or 0)
                rows.setdefault(target.name, []).append(found)
            rows.setdefault("limit", []).append(alone)
    bare.close()
    alone_s, alone_cpu = median(rows["limit"], "per_s"), median(rows["limit"], "cpu_ms")
    print(
        f"{'':14}{'images/s':>9}{'ratio':>7}{'CPU-ms':>8}{'ratio':>7}{'p50':>7}{'p99':>7}{'p99.9':>7}{'PSS MB':>8} errors"
    )
    print(f"{'limit':14}{alone_s:9.0f}{1:7.2f}{alone_cpu:8.2f}{1:7.2f}")
    for target in targets:
        r = rows[target.name]
        ratios = " ".join(f"{x['ratio']:.2f}" for x in r)
        print(
            f"{target.name:14}{median(r, 'per_s'):9.0f}{median(r, 'ratio'):7.3f}{median(r, 'cpu_ms'):8.2f}"
            f"{median(r, 'cpu_ratio'):7.3f}{median(r, 'p50'):7.1f}{median(r, 'p99'):7.1f}{median(r, 'p999'):7.1f}"
            f"{median(r, 'pss'):8.0f} {sum(x['errors'] for x in r)}  ({ratios})"
        )
    wanted = TARGETS[model]
    print(f"{'target':14}{'':9}{wanted[0]:7.2f}{'':8}{wanted[1]:7.2f}   client {median(r, 'client_cpu_ms'):.3f} CPU-ms")


def median(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def one_client(bench: Bench, model: str, given: argparse.Namespace) -> None:
    """What a single caller waits beyond the bare pipeline, with the log and without it, beside this disk's commit."""
    onnx, detect = models.onnx_of(model), models.NAMES[model].task == "detect"
    bare = limit.Limit(onnx, bench.photos, configuration="1 thread, batch 1", detect=detect)
    bare.run(0.5)
    with bench.ours(model) as logged, bench.ours(model, program=WITHOUT_LOG) as silent:
        rows = []
        for target in (logged, silent):
            bench.load(target, clients=1, seconds=1)
        for _ in range(given.rounds):
            alone = bare.run(given.seconds)["p50"]
            on, off = (bench.load(t, clients=1, seconds=given.seconds)["p50"] for t in (logged, silent))
            rows.append({"bare": alone, "on": on - alone, "off": off - alone, "commit": commit_ms(bench.folder)})
    bare.close()
    m = {name: median(rows, name) for name in rows[0]}
    print(f"\n== {model}, one client: bare pipeline p50 {m['bare']:.2f} ms")
    print(f"log off  +{m['off']:.2f} ms   target +0.8")
    print(
        f"log on   +{m['on']:.2f} ms   target +{0.8 + 1.3 * m['commit']:.2f} (0.8 + 1.3 x commit p50 {m['commit']:.2f})"
    )


def open_rate(bench: Bench, model: str, given: argparse.Namespace) -> None:
    """p99 at 80 % of the highest rate, evenly and as a Poisson process, also of the peers at their own 80 %."""
    onnx, detect = models.onnx_of(model), models.NAMES[model].task == "detect"
    print(f"\n== {model}, open loop at 80 % of each server's own rate")
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(bench.ours(model))]
        for peer in peers.available(given.peers):
            targets.append(Target(peer, *stack.enter_context(peers.started(given.peers, peer, onnx, detect=detect))))
        for target in targets:
            bench.load(target, clients=8, seconds=1)
            most = bench.load(target, clients=8, seconds=given.seconds)["per_s"]
            for poisson, name, wanted in ((False, "constant", 2.5), (True, "Poisson", 5.0)):
                rows = []
                for _ in range(2):
                    options = {"poisson": True} if poisson else {}
                    found = bench.load(target, rate=0.8 * most, seconds=given.seconds, **options)
                    rows.append(found | {"ratio": found["p99"] / found["p50"]})
                print(
                    f"{target.name:14}{name:10}{0.8 * most:6.0f}/s  p50 {median(rows, 'p50'):6.1f}  p99 "
                    f"{median(rows, 'p99'):6.1f}  p99/p50 {median(rows, 'ratio'):5.2f} (target {wanted})  "
                    f"errors {sum(r['errors'] for r in rows)}"
                )


def log_cost(bench: Bench, model: str, given: argparse.Namespace) -> None:
    """Throughput with the durable log over throughput without it, and what a reply waits for its commit."""
    rows = []
    with bench.ours(model) as logged, bench.ours(model, program=WITHOUT_LOG) as silent:
        for target in (logged, silent):
            bench.load(target, clients=8, seconds=1)
        for _ in range(given.rounds):
            on, off = (bench.load(t, clients=8, seconds=given.seconds) for t in (logged, silent))
            commit = commit_ms(bench.folder)
            rows.append({"loss": 1 - on["per_s"] / off["per_s"], "wait": on["p50"] - off["p50"], "commit": commit})
    m = {name: median(rows, name) for name in rows[0]}
    print(f"\n== {model}, 8 clients: the durable log costs {m['loss']:.1%} of the throughput   target <= 2 %")
    limit_ms = 2 * m["commit"] + 1
    print(
        f"p50 with the log - without {m['wait']:.2f} ms   target {limit_ms:.2f} (2 x commit p50 {m['commit']:.2f} + 1)"
    )


def saturate(bench: Bench, model: str, given: argparse.Namespace) -> None:
    """150 % of the highest rate for a minute: who is refused how fast, what the accepted wait, memory, recovery."""
    with bench.ours(model) as target:
        bench.load(target, clients=8, seconds=1)
        most = bench.load(target, clients=8, seconds=given.seconds)["per_s"]
        full = bench.load(target, clients=64, seconds=given.seconds)
        before = pss_mb(target.pid or 0)
        found = bench.load(target, rate=1.5 * most, seconds=given.minute)
        after = pss_mb(target.pid or 0)
        began = time.monotonic()
        while (calm := bench.load(target, rate=0.5 * most, seconds=0.5))["errors"]:
            pass
        recovered = time.monotonic() - began
    print(f"\n== {model}, {1.5 * most:.0f}/s (150 %) for {given.minute:g} s: {found['statuses']}")
    print(f"accepted {found['per_s']:.0f}/s, p50 {found['p50']:.0f}, p99 {found['p99']:.0f} ms")
    print(f"refused within p99 {found['refused_p99'] or float('nan'):.0f} ms; p99 with 64 clients {full['p99']:.0f} ms")
    print(f"PSS {before:.0f} -> {after:.0f} MB; answers without error again after {recovered:.1f} s (target 2)")
    print(f"p99 then {calm['p99']:.1f} ms")


def start_up(bench: Bench, model: str, given: argparse.Namespace) -> None:
    """From the start of the process to its first answer, and its memory after some load."""
    times, memory = [], []
    for _ in range(given.rounds):
        began = time.monotonic()
        with bench.ours(model) as target:
            bench.load(target, clients=1, seconds=0.01)
            times.append(time.monotonic() - began - bench.prepared_s)
            bench.load(target, clients=8, seconds=given.seconds)
            memory.append(pss_mb(target.pid or 0))
    size = models.onnx_of(model).stat().st_size / 1e6
    print(f"\n== {model}: first answer after {statistics.median(times):.2f} s (target 2; the client's start included)")
    print(f"PSS {statistics.median(memory):.0f} MB, target 120 + the model's file of {size:.0f} MB")


PARTS = {
    "closed": closed_loop,
    "one": one_client,
    "open": open_rate,
    "log": log_cost,
    "saturate": saturate,
    "start": start_up,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(models.NAMES), choices=list(models.NAMES))
    usual = [part for part in PARTS if part != "saturate"]
    parser.add_argument("--parts", nargs="+", default=usual, choices=list(PARTS), help="all but the first: one model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--minute", type=float, default=60.0, help="seconds of saturation")
    parser.add_argument("--peers", type=Path, help="a Python with FastAPI, LitServe, mosec or BentoML installed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        for part in given.parts:
            for model in given.only if part == "closed" else given.only[:1]:
                PARTS[part](bench, model, given)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
