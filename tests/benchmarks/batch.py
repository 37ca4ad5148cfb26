"""`python -m tests.benchmarks.batch [PHOTOS]`: 10,000 photos and a two-minute video through batch prediction.

The work is done by a process of its own, as a worker does it. Beside it stand the in-process limit (`limit`, the best of its
configurations for cls224; it knows no scores and hashes nothing), and the predictor itself in a bare loop on all cores. The
limit takes turns with the batch, whose process is stopped meanwhile, so that whatever else the machine does falls on both.
For the video the bare loop has one reader. Then the same photos once more with `kill -9` in the middle.
Targets: throughput >= .9 of the limit, memory that does not grow, every image once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from serving.batch import results, runs
from serving.batch.sources import Options, Video
from sutdol.context import Context, open_context
from sutdol.predictor import Predictor
from sutdol.settings import child_environment, load
from tests.benchmarks import limit, models

COUNT = 10_000
VIDEO_S, FPS, EVERY_S = 120, 30, 0.1
WINDOW_S = 8.0
TURN_S = 3.0
"""Shorter than a lease: the stopped process must find its own when it goes on."""
WORKER = """
from serving.jobs import HANDLERS
from sutdol.context import open_context
from sutdol.jobs import worker
from sutdol.settings import load
worker.run_pending(open_context(load()), HANDLERS)
"""


class Watched:
    """A worker process and its resident memory, twice a second."""

    def __init__(self, context: Context) -> None:
        environment = child_environment(context.settings, PYTHONPATH=os.pathsep.join(sys.path))
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stdout=subprocess.DEVNULL)
        self.rss_mb: list[float] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            try:
                pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                return
            self.rss_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            time.sleep(0.5)


def start(context: Context, path: Path, kind: str, **options: Any) -> str:
    with context.database.begin() as session:
        order = runs.Order("cls224", **options)
        return runs.start(session, order, runs.source_of(path, kind), who="benchmark").id


def state(context: Context, run_id: str) -> runs.State:
    with context.database.read() as session:
        return runs.state(session, runs.get(session, run_id))


class Finished(NamedTuple):
    """A run that was watched to its end; rates from the first finished chunk to the last, `limit` of the turns between."""

    state: runs.State
    watched: Watched
    per_s: float
    cpu_ms: float
    limit_per_s: float
    limit_cpu_ms: float


def finished(context: Context, run_id: str, beside: limit.Limit | None = None) -> Finished:
    watched = Watched(context)
    process, first, ran_s, turns = watched.process, 0, 0.0, []
    while process.poll() is None and not (first := state(context, run_id).done):
        time.sleep(0.05)
    cpu = began_cpu = _cpu_s(process.pid)
    while process.poll() is None:
        began, turn = time.perf_counter(), time.perf_counter() + TURN_S
        while time.perf_counter() < turn and (now := state(context, run_id)).state != "done":
            time.sleep(0.05)
            cpu = _cpu_s(process.pid) or cpu
        ran_s += time.perf_counter() - began
        if now.state == "done":
            process.wait()
            done = now.done - first
            each = [sum(t[key] for t in turns) / max(len(turns), 1) for key in ("per_s", "cpu_ms")]
            return Finished(now, watched, done / ran_s, (cpu - began_cpu) * 1000 / done, *each)
        if beside is not None:
            process.send_signal(signal.SIGSTOP)
            turns.append(beside.run(TURN_S))
            process.send_signal(signal.SIGCONT)
    last = state(context, run_id)
    raise SystemExit(f"the worker ended early: {last.state} {last.error}")


def _cpu_s(pid: int) -> float:
    """Seconds of CPU that a process took; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(watched: Watched) -> str:
    """How it grows from the first third to the last."""
    third = len(watched.rss_mb) // 3
    early, late = max(watched.rss_mb[1 : third + 1], default=0.0), max(watched.rss_mb[-third:], default=0.0)
    return f"RSS {early:.0f} MB in the first third, {late:.0f} MB in the last"


def photos(context: Context, folder: Path, count: int) -> None:
    originals = models.photos()
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if i < len(originals):
            path.write_bytes(originals[i])
        else:
            os.link(folder / f"{i % len(originals):05d}.jpg", path)
    onnx = models.onnx_of("cls224")
    name, in_process, every = limit.best(onnx, folder_of(originals, folder.parent), detect=False)
    print("limit: " + ", ".join(f"{k} {v:.0f}" for k, v in every.items()))
    same = bare_photos(context, originals)
    run_id = start(context, folder, "folder")
    done = finished(context, run_id, in_process)
    same = (same + bare_photos(context, originals)) / 2
    in_process.close()
    print(
        f"{done.state.done} photos: {done.per_s:.0f} images/s, limit ({name}) {done.limit_per_s:.0f}: "
        f"{done.per_s / done.limit_per_s:.2f} (target .90); CPU {done.cpu_ms:.2f} and {done.limit_cpu_ms:.2f} ms an image: "
        f"{done.limit_cpu_ms / done.cpu_ms:.2f}"
    )
    print(f"    the same predictor, one image at a time, in a bare loop {same:.0f}")
    print(f"    {memory(done.watched)}")
    run_id = start(context, folder, "folder")
    victim = Watched(context)
    while state(context, run_id).done < count // 2:
        time.sleep(0.05)
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    cut = state(context, run_id).done
    time.sleep(context.settings.lease_s + 0.5)
    from sutdol.jobs import rows

    rows.sweep(context.database)
    finished(context, run_id)
    with context.database.read() as session:
        run = runs.get(session, run_id)
    lines = [json.loads(x) for part in results.as_jsonl(context.store, run, []) for x in part.splitlines()]
    names = [line["name"] for line in lines]
    print(
        f"kill -9 after {cut}: {len(names)} results, {len(names) - len(set(names))} repeated, "
        f"{count - len(set(names))} lost (target 0 and 0)"
    )


def bare_photos(context: Context, originals: list[bytes]) -> float:
    """Images a second of the predictor itself on all cores, nothing read and nothing written."""
    predictor = Predictor.open(context.store, "cls224", 1, threads=1)
    threads, end = len(os.sched_getaffinity(0)), time.perf_counter() + WINDOW_S

    def work(offset: int) -> int:
        count = 0
        while time.perf_counter() < end:
            predictor.predict_bytes(originals[(offset + count) % len(originals)])
            count += 1
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(0, 8 * threads, 8)))
    return done / (time.perf_counter() - began)


def folder_of(originals: list[bytes], parent: Path) -> Path:
    folder = parent / "originals"
    folder.mkdir()
    for i, data in enumerate(originals):
        (folder / f"{i}.jpg").write_bytes(data)
    return folder


def video(context: Context, path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (640, 480))  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (12, 16, 3), np.uint8)
    for i in range(VIDEO_S * FPS):
        if i % (FPS * 10) == 0:
            scene = rng.integers(0, 255, (12, 16, 3), np.uint8)
        writer.write(np.roll(cv2.resize(scene, (640, 480), interpolation=cv2.INTER_CUBIC), i * 2, axis=1))
    writer.release()
    predictor = Predictor.open(context.store, "cls224", 1, threads=1)
    threads = len(os.sched_getaffinity(0))

    def bare() -> float:
        began, frames = time.perf_counter(), 0
        with ThreadPoolExecutor(threads) as pool:
            waiting = []
            for item in Video(path, Options(every_s=EVERY_S)).items(0):
                assert item.rgb is not None
                waiting.append(pool.submit(predictor.predict_rgb, item.rgb))
                frames += 1
                if len(waiting) >= 4 * threads:
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        return frames / (time.perf_counter() - began)

    before = bare()
    done = finished(context, start(context, path, "video", every_s=EVERY_S))
    most = (before + bare()) / 2
    print(
        f"video, {done.state.done} frames of {VIDEO_S} s: {done.per_s:.0f}/s; bare loop {most:.0f}; "
        f"ratio {done.per_s / most:.2f} (target .90)"
    )
    print(f"    {memory(done.watched)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        context = open_context(load(home=root / "home", lease_s=9.0, heartbeat_s=0.5))
        models.bundle(context, "cls224")
        (root / "photos").mkdir()
        photos(context, root / "photos", int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
        video(context, root / "film.mp4")


if __name__ == "__main__":
    main()
