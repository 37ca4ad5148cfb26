"""`python -m tests.benchmarks.console`: the console over a big installation, what its ticks cost, and who feels them.

pages     every page over 1,000,000 predictions, 100,000 samples with labels and tasks, 500 versions, on SQLite and PostgreSQL:
          first answer and median of the following ones (target 200 ms), bytes without sample images (150 KB)
ticks     CPU of the server for one more reader of the moving part: a rendering (20 ms) and each further reader (0.2 ms)
paint     first paint in headless Chromium on this machine (0.5 s) and what crosses the wire for it without sample images
readers   p99 of predictions with 100 open consoles over p99 without, in windows that take turns (target 1.10)

    python -m tests.benchmarks.console                                five to ten minutes
    python -m tests.benchmarks.console --parts pages --predictions 50000 --databases sqlite

The load clients share the cores with the server. PostgreSQL is SUTDOL_TEST_POSTGRES, as in the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from playwright.sync_api import sync_playwright
from sqlmodel import SQLModel

from serving.web import assets
from sutdol import keys
from sutdol.context import Context, open_context
from sutdol.db import Database
from sutdol.settings import load
from sutdol.tables import (
    DatasetItem,
    DatasetVersion,
    Decision,
    Event,
    Job,
    LabelRow,
    LabelTask,
    ModelVersion,
    PredictionRow,
    RunCandidate,
    RunProgress,
    Sample,
    TrainingRun,
)
from tests.benchmarks.load import closed
from tests.job_processes import postgres
from tests.running_server import RunningServer, running
from tests.tiny_models import classifier_bundle, coloured_png

MODEL = "tiny"
CLASSES = ("red", "green", "blue")
TARGET_MS, TARGET_BYTES = 200.0, 150_000
REPEATS = 7
PAGES = (
    "",
    "/live",
    "/labels",
    "/training",
    "/training/run-250",
    "/training/run-250/part",
    "/models",
    f"/models/{MODEL}",
    f"/models/{MODEL}?before=250",
    f"/models/{MODEL}/versions/250",
    f"/models/{MODEL}/versions/250/compare",
    f"/models/{MODEL}/versions/250/promote",
    f"/models/{MODEL}/versions/499/delete",
    "/decisions",
    f"/decisions?model={MODEL}",
    "/try",
    "/settings",
)
CHUNK = 10_000


def fill(context: Context, *, predictions: int, samples: int, versions: int) -> None:
    """Rows of an installation that has worked for a month, written in bulk."""
    database = context.database
    end = time.time()
    ids = [f"{n:064x}" for n in range(samples)]
    month_s = 30 * 86_400.0
    arms: list[list[str]] = [[], [], [], [], [], [], ["drawn"], ["unfamiliar"]]

    def answer(n: int) -> dict[str, Any]:
        label = CLASSES[n % 3]
        return {"classes": [{"index": n % 3, "label": label, "confidence": 0.5 + n % 50 / 100}], "boxes": []}

    def logged() -> Iterator[dict[str, Any]]:
        for n in range(predictions):
            at = end - month_s * (1 - (n + 1) / predictions)
            yield {
                "id": uuid_at(at, n),
                "at": at,
                "model": MODEL if n % 50 else "rare",
                "version": 1 + n * versions // predictions,
                "sample_id": ids[n % samples] if n % 8 == 0 else f"{n + samples:064x}",
                "width_px": 640,
                "height_px": 480,
                "answer": answer(n),
                "confidence": 0.5 + n % 50 / 100,
                "raw_confidence": 0.5,
                "margin": 0.3,
                "ood_score": float(n % 97) / 100,
                "inclusion_probability": 0.05,
                "arms": arms[n % 8],
                "duration_ms": 2.0 + n % 10,
                "key_id": "12345678",
            }

    def tasks() -> Iterator[dict[str, Any]]:
        states = ("annotated", "annotated", "annotated", "in_studio", "candidate", "queued", "withdrawn", "conflict")
        for n, sample_id in enumerate(ids):
            at = end - month_s * (1 - (n + 1) / samples)
            yield {
                "id": uuid_at(at, n),
                "model": MODEL,
                "sample_id": sample_id,
                "prediction_id": uuid_at(at, n),
                "version": 1 + n * versions // samples,
                "arm": "drawn" if n % 2 else "unfamiliar",
                "reason": "drawn at random (1 in 21)",
                "inclusion_probability": 0.05 if n % 2 else None,
                "priority": 0.5,
                "uncertainty": 0.5,
                "ood_score": 0.5,
                "answer": answer(n),
                "scores": {"margin": 0.5},
                "features": bytes(256),
                "blind": n % 20 == 0,
                "overlap": 1,
                "state": states[n % 8],
                "project_id": 1,
                "studio_task_id": n,
                "attempts": 0,
                "not_before": 0.0,
                "created_at": at,
                "queued_at": at,
                "pushed_at": at,
                "answered_at": at + 60 if n % 8 < 3 else None,
                "studio_seen": "",
            }

    with database.read() as session:
        first = session.get_one(ModelVersion, (MODEL, 1)).model_dump()
    metrics = {"accuracy": 0.93, "ece": 0.02, "latency_ms_p50": 1.2, "n": 500}
    bulk(database, PredictionRow, logged())
    bulk(
        database,
        Sample,
        (
            {"id": i, "width_px": 24, "height_px": 24, "media_type": "image/png", "size_bytes": 900, "created_at": end}
            for i in ids
        ),
    )
    bulk(database, LabelTask, tasks())
    label = {"classes": ["red"], "boxes": []}
    bulk(
        database,
        LabelRow,
        (
            {
                "model": MODEL,
                "sample_id": i,
                "value": label,
                "source": "annotation",
                "arm": "drawn",
                "weight": 20.0,
                "split": ("train", "val", "test")[n % 3],
                "created_at": end,
                "updated_at": end,
            }
            for n, i in enumerate(ids)
        ),
    )
    bulk(
        database,
        DatasetVersion,
        (
            {
                "id": f"data-{n}",
                "model": MODEL,
                "number": n,
                "digest": f"{n:064x}",
                "test_digest": f"{n:064x}",
                "classes": list(CLASSES),
                "counts": {"items": samples, "train": samples // 3, "val": samples // 3, "test": samples // 3},
                "name": "",
                "tags": [],
                "memo": "",
                "created_at": end - month_s + n * 3600,
            }
            for n in range(1, versions + 1)
        ),
    )
    bulk(
        database,
        DatasetItem,
        (
            {
                "dataset_version_id": f"data-{versions}",
                "sample_id": i,
                "split": ("train", "val", "test")[n % 3],
                "value": {"classes": [CLASSES[n % 3]], "boxes": []},
                "source": "annotation",
                "arm": "drawn",
                "weight": 20.0,
            }
            for n, i in enumerate(ids)
        ),
    )
    bulk(
        database,
        ModelVersion,
        (
            first
            | {"version": n, "name": f"{MODEL} v{n}", "metrics": metrics, "parent_version": n - 1, "run_id": f"run-{n}"}
            | {"dataset_version_id": f"data-{n}", "created_at": end - month_s + n * 3600}
            for n in range(2, versions + 1)
        ),
    )
    record = {"slices": [{"name": f"class {n}", "n": 100, "difference": 0.01} for n in range(20)]}
    bulk(
        database,
        Decision,
        (
            {
                "id": uuid_at(end - month_s + n * 600, n),
                "model": MODEL,
                "kind": ("gate", "promote", "rollback")[n % 3],
                "verdict": ("promote", "done", "done")[n % 3],
                "candidate": 1 + n // 3,
                "champion": n // 3,
                "text": "Passed: better by 3.0 points.\n" + "overall: 93.0 % against 90.0 %\n" * 10,
                "record": record,
                "who": "gate",
                "at": end - month_s + n * 600,
            }
            for n in range(3 * versions)
        ),
    )
    bulk(
        database,
        Event,
        (
            {
                "id": uuid_at(end - month_s + n, n),
                "at": end - month_s + n,
                "kind": "run.queued" if n % 3 else "version.tagged",
                "model": MODEL if n % 100 else "rare",
                "text": f"what happened the {n}th time",
                "data": {"n": n},
            }
            for n in range(samples)
        ),
    )
    bulk(
        database,
        Job,
        (
            {
                "id": uuid_at(end - month_s + n, n),
                "kind": ("monitor", "bridge.read", "retrain.convert", "retrain.evaluate")[n % 4],
                "queue": "bridge",
                "payload": {"model": MODEL, "version": n % versions, "format": "onnx"},
                "state": "done",
                "attempt": 1,
                "max_attempts": 3,
                "not_before": 0.0,
                "lease_number": 1,
                "cancel_requested": False,
                "created_at": end - month_s + n,
                "rung_at": 0.0,
                "finished_at": end,
            }
            for n in range(samples)
        ),
    )
    bulk(
        database,
        TrainingRun,
        (
            {
                "id": f"run-{n}",
                "model": MODEL,
                "family": "timm",
                "params": {"epochs": 30},
                "cause": "100 new labels",
                "state": "done",
                "version": n,
                "epoch": 30,
                "epochs": 30,
                "created_at": end - month_s + n * 3600,
            }
            for n in range(1, versions + 1)
        ),
    )
    bulk(
        database,
        RunCandidate,
        (
            {"run_id": f"run-{n}", "number": 1, "family": "timm", "params": {}, "state": "chosen", "epoch": 30}
            | {"epochs": 30, "score": 0.9, "training_s": 60.0}
            for n in range(1, versions + 1)
        ),
    )
    numbers = {"train/loss": 0.5, "val/loss": 0.6, "val/accuracy": 0.9, "machine/images_per_s": 300.0}
    bulk(
        database,
        RunProgress,
        (
            {"run_id": f"run-{n}", "candidate": 1, "attempt": 1, "epoch": e, "metrics": numbers, "at": end}
            for n in range(1, versions + 1)
            for e in range(1, 31)
        ),
    )
    if not database.is_sqlite:  # PostgreSQL does it by itself; nobody does it to a SQLite file
        with database.engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE")
            connection.commit()


def uuid_at(at: float, n: int) -> str:
    """A UUIDv7 of that moment, like `tables.new_id`, the n-th."""
    return str(UUID(int=int(at * 1000) << 80 | 0x7 << 76 | 0x2 << 62 | n))


def bulk(database: Database, kind: type[SQLModel], rows: Iterable[dict[str, Any]]) -> None:
    """Insert rows of plain values as fast as the database takes them: executemany, or COPY on PostgreSQL."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    names = list(first)
    as_json = {c.name for c in kind.__table__.columns if str(c.type) == "JSON"}  # type: ignore[attr-defined]
    columns = ", ".join(f'"{n}"' for n in names)
    table = kind.__tablename__

    def values(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(json.dumps(row[n]) if n in as_json and row[n] is not None else row[n] for n in names)

    connection = database.engine.raw_connection()
    try:
        cursor = connection.cursor()
        if database.is_sqlite:
            marks = ", ".join("?" * len(names))
            statement = f'INSERT INTO "{table}" ({columns}) VALUES ({marks})'
            cursor.execute("PRAGMA synchronous=OFF")
            cursor.execute("BEGIN")
            chunk = [values(first)]
            for row in rows:
                chunk.append(values(row))
                if len(chunk) == CHUNK:
                    cursor.executemany(statement, chunk)
                    chunk = []
            cursor.executemany(statement, chunk)
            cursor.execute("COMMIT")
        else:
            with cursor.copy(f'COPY "{table}" ({columns}) FROM STDIN') as copy:  # type: ignore[attr-defined]
                copy.write_row(values(first))
                for row in rows:
                    copy.write_row(values(row))
            connection.commit()
    finally:
        connection.close()


@contextlib.contextmanager
def visitor(server: RunningServer, key: str) -> Iterator[httpx.Client]:
    """A client that has logged in to the console."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.post("/console/login", data={"key": key}).status_code == 303
        yield client


def pages(url: str, *, predictions: int, samples: int, versions: int, more: tuple[str, ...]) -> list[list[str]]:
    """The rows of the table for one database."""
    home = Path(tempfile.mkdtemp(prefix="sutdol-bench-"))
    settings: dict[str, Any] = {"database_url": url} if url else {}
    try:
        context = open_context(load(home=home, **settings))
        classifier_bundle(context)
        with context.database.begin() as session:
            key = keys.create(session, "bench", ["admin"])
        begun = time.perf_counter()
        fill(context, predictions=predictions, samples=samples, versions=versions)
        print(
            f"filled {'SQLite' if context.database.is_sqlite else 'PostgreSQL'} in {time.perf_counter() - begun:.0f} s"
        )
        context.database.close()
        gc.collect()
        with running(home, **settings) as server, visitor(server, key) as client:
            return [_page(client, page) for page in (*PAGES, *more)]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _page(client: httpx.Client, page: str) -> list[str]:
    times = []
    for _ in range(REPEATS):
        if page == "/live":
            time.sleep(2.0)  # the tick is made anew, not shared
        begun = time.perf_counter()
        answer = client.get(f"/console{page}")
        times.append((time.perf_counter() - begun) * 1000)
    middle, size = statistics.median(times[1:]), len(answer.content)
    good = answer.status_code == 200 and middle <= TARGET_MS and size <= TARGET_BYTES
    numbers = [f"{times[0]:.0f}", f"{middle:.0f}", f"{max(times[1:]):.0f}", f"{size / 1000:.0f}"]
    return [f"/console{page}", str(answer.status_code), *numbers, "ok" if good else "MISSED"]


@contextlib.contextmanager
def small(**settings: Any) -> Iterator[tuple[RunningServer, str]]:
    """A server with one model and a busy last minute."""
    home = Path(tempfile.mkdtemp(prefix="sutdol-bench-"))
    try:
        context = open_context(load(home=home))
        classifier_bundle(context)
        with context.database.begin() as session:
            key = keys.create(session, "bench", ["admin"])
        context.database.close()
        with running(home, **settings) as server:
            api = {"Authorization": f"Bearer {key}", "Content-Type": "image/png"}
            with httpx.Client(base_url=server.url, headers=api) as client:
                for seed in range(300):
                    client.post(f"/v1/predict/{MODEL}", content=coloured_png(seed=seed))
            yield server, key
    finally:
        shutil.rmtree(home, ignore_errors=True)


def cpu_s(server: RunningServer) -> float:
    """Seconds of CPU that the server has taken."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ticks(*, seconds: float = 20.0, readers: int = 100) -> list[list[str]]:
    """What a rendering costs, and what each further reader of the same tick costs."""
    with small() as (server, key), visitor(server, key) as client:
        consoles = [Console(server.url, cookie_of(client)) for _ in range(readers)]
        for console in consoles:
            console.look()

        def spent(count: int) -> float:
            """CPU-ms of one tick of 2 s with `count` readers, without what the server takes anyway."""
            begun, used, made = time.perf_counter(), cpu_s(server), 0
            while time.perf_counter() - begun < seconds:
                for console in consoles[:count]:
                    console.look()
                made += 1
                time.sleep(max(begun + made * 2.0 - time.perf_counter(), 0))
            return (cpu_s(server) - used) * 1000 / made

        idle, one, all_ = spent(0), spent(1), spent(readers)
        each = (all_ - one) / (readers - 1)
        return [
            ["two seconds without readers, CPU-ms", f"{idle:.1f}", "", ""],
            ["one tick with one reader, CPU-ms", f"{one - idle:.1f}", "20", "ok" if one - idle <= 20 else "MISSED"],
            [f"each further reader of {readers}, CPU-ms", f"{each:.3f}", "0.2", "ok" if each <= 0.2 else "MISSED"],
        ]


def crowd(*, readers: int = 100, rounds: int = 8, seconds: float = 6.0) -> list[list[str]]:
    """p99 of predictions in windows with and without open consoles, taking turns; the median of the paired ratios."""
    with small() as (server, key), visitor(server, key) as client:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/png"}
        url, photos = f"{server.url}/v1/predict/{MODEL}", [coloured_png(seed=n) for n in range(8)]
        found: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(2 * rounds):
            watched = turn % 4 in (1, 2)  # without, with, with, without, ...
            with watching(server.url, cookie_of(client), readers) if watched else contextlib.nullcontext():
                result = closed(url, photos, headers, clients=2, seconds=seconds)
            found[watched].append(result.summary()["p99"])
        ratios = [b / a for a, b in zip(found[False], found[True], strict=True)]
        ratio, spread = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        return [
            ["p99 alone, ms", f"{statistics.median(found[False]):.2f}", "", ""],
            [f"p99 with {readers} consoles, ms", f"{statistics.median(found[True]):.2f}", "", ""],
            [f"median ratio of {rounds} pairs ({spread})", f"{ratio:.2f}", "1.10", "ok" if ratio <= 1.1 else "MISSED"],
        ]


def paint(*, repeats: int = 5) -> list[list[str]]:
    """Per page: median time to the first contentful paint, and kilobytes of a first visit."""
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("Chromium is not installed: sudo apt-get install chromium")
    rows = []
    with small() as (server, key), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        with visitor(server, key) as client:
            session = [{"name": k, "value": v, "url": server.url} for k, v in client.cookies.items()]
        for page in ("", "/labels", "/training", "/models", f"/models/{MODEL}", "/decisions", "/try", "/settings"):
            times, sizes = [], []
            for _ in range(repeats):
                context = browser.new_context()  # nothing in the cache
                context.add_cookies(session)  # type: ignore[arg-type]
                opened = context.new_page()
                opened.goto(f"{server.url}/console{page}", wait_until="load")
                opened.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
                times.append(opened.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
                sizes.append(opened.evaluate(_WIRE))
                context.close()
            middle, size = statistics.median(times), max(sizes)
            good = middle <= 500 and size <= TARGET_BYTES
            rows.append([f"/console{page}", f"{middle:.0f}", f"{size / 1000:.0f}", "ok" if good else "MISSED"])
        browser.close()
    return rows


_WIRE = """[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
    .filter(e => !e.name.includes('/console/samples/')).reduce((sum, e) => sum + e.transferSize, 0)"""


class Console:
    """One open console: a connection that asks for the moving part of the live page."""

    def __init__(self, url: str, cookie: str) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
        self._headers = {"Cookie": cookie, "Accept-Language": "en", "HX-Request": "true"}

    def look(self) -> None:
        """Ask once and read the answer; a connection that was idle too long is opened again."""
        try:
            self._connection.request("GET", "/console/live", headers=self._headers)
            answer = self._connection.getresponse()
        except http.client.RemoteDisconnected:
            self._connection.close()
            self._connection.request("GET", "/console/live", headers=self._headers)
            answer = self._connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status


@contextlib.contextmanager
def watching(url: str, cookie: str, readers: int) -> Iterator[None]:
    """Consoles in a process of their own, each asking every two seconds, spread evenly."""
    command = [sys.executable, "-m", "tests.benchmarks.console", "--watch", url, cookie, str(readers)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield
    finally:
        child.kill()
        child.wait()


def watch(url: str, cookie: str, readers: int) -> None:
    """The child of `watching`."""
    consoles = [Console(url, cookie) for _ in range(readers)]
    for console in consoles:
        console.look()
    print("watching", flush=True)
    begun, n = time.perf_counter(), 0
    while True:
        consoles[n % readers].look()
        n += 1
        time.sleep(max(begun + n * 2.0 / readers - time.perf_counter(), 0))


def cookie_of(client: httpx.Client) -> str:
    """The session as one header."""
    return "; ".join(f"{name}={value}" for name, value in client.cookies.items())


def show(title: str, head: list[str], rows: list[list[str]]) -> None:
    """A table as plain text."""
    print(f"\n{title}")
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="pages,paint,ticks,readers")
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--versions", type=int, default=500)
    parser.add_argument("--page", action="append", default=[], help="one more page, /labels?...")
    parser.add_argument("--watch", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watch:
        watch(given.watch[0], given.watch[1], int(given.watch[2]))
    if not assets.built():
        assets.build()
    size: dict[str, Any] = {name: getattr(given, name) for name in ("predictions", "samples", "versions")}
    head = ["page", "status", "first ms", "median ms", "worst ms", "kB", f"<= {TARGET_MS:.0f} ms"]
    if "pages" in given.parts:
        for name in given.databases.split(","):
            where: Callable[[], Any] = postgres if name == "postgresql" else lambda: contextlib.nullcontext("")
            with where() as url:
                title = f"pages on {name}: {', '.join(f'{v:,} {k}' for k, v in size.items())}"
                show(title, head, pages(url, **size, more=tuple(given.page)))
    if "paint" in given.parts:
        show("first paint", ["page", "ms", "kB", "<= 500 ms, 150 kB"], paint())
    for part, measure in (("ticks", ticks), ("readers", crowd)):
        if part in given.parts:
            show(part, ["what", "found", "target", ""], measure())


if __name__ == "__main__":
    main()
