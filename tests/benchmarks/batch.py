"""`python -m tests.benchmarks.batch`: 10,000 photos and a two-minute video through batch prediction.

The work is done by a process of its own, as a worker does it. Beside it stand the in-process limit (`limit`, the best of its
configurations for cls224; it knows no scores and hashes nothing), measured before and after, and the predictor itself in a bare
loop on all cores. For the video that loop has one reader. Then the same photos once more with `kill -9` in the middle.
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
from typing import Any

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


def finished(context: Context, run_id: str) -> tuple[runs.State, Watched, float]:
    """(state, process, images per second from the first finished chunk to the last)."""
    watched = Watched(context)
    first: tuple[float, int] | None = None
    while watched.process.poll() is None:
        now = state(context, run_id)
        if first is None and now.done:
            first = time.perf_counter(), now.done
        if now.state == "done":
            ended = time.perf_counter()
            watched.process.wait()
            assert first is not None
            return now, watched, (now.done - first[1]) / max(ended - first[0], 1e-9)
        time.sleep(0.2)
    done = state(context, run_id)
    raise SystemExit(f"the worker ended early: {done.state} {done.error}")


def memory(watched: Watched) -> str:
    """How it grows from the first third to the last."""
    third = len(watched.rss_mb) // 3
    early, late = max(watched.rss_mb[1 : third + 1], default=0.0), max(watched.rss_mb[-third:], default=0.0)
    return f"RSS {early:.0f} MB in the first third, {late:.0f} MB in the last"


def photos(context: Context, folder: Path) -> None:
    originals = models.photos()
    for i in range(COUNT):
        path = folder / f"{i:05d}.jpg"
        if i < len(originals):
            path.write_bytes(originals[i])
        else:
            os.link(folder / f"{i % len(originals):05d}.jpg", path)
    onnx = models.onnx_of("cls224")
    name, in_process, _ = limit.best(onnx, folder_of(originals, folder.parent), detect=False)
    before = in_process.run(WINDOW_S)
    same = bare_photos(context, originals)
    run_id = start(context, folder, "folder")
    done, watched, rate = finished(context, run_id)
    same = (same + bare_photos(context, originals)) / 2
    after = in_process.run(WINDOW_S)
    in_process.close()
    most = (before["per_s"] + after["per_s"]) / 2
    print(f"{done.done} photos: {rate:.0f} images/s; limit ({name}) {most:.0f}; ratio {rate / most:.2f} (target .90)")
    print(f"    the same predictor, scores and all, in a bare loop {same:.0f}; ratio {rate / same:.2f}")
    print(f"    {memory(watched)}")
    run_id = start(context, folder, "folder")
    victim = Watched(context)
    while state(context, run_id).done < COUNT // 2:
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
        f"{COUNT - len(set(names))} lost (target 0 and 0)"
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
    done, watched, rate = finished(context, start(context, path, "video", every_s=EVERY_S))
    most = (before + bare()) / 2
    print(
        f"video, {done.done} frames of {VIDEO_S} s: {rate:.0f}/s; bare loop {most:.0f}; ratio {rate / most:.2f} (target .90)"
    )
    print(f"    {memory(watched)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        context = open_context(load(home=root / "home", lease_s=3.0, heartbeat_s=0.5))
        models.bundle(context, "cls224")
        (root / "photos").mkdir()
        photos(context, root / "photos")
        video(context, root / "film.mp4")


if __name__ == "__main__":
    main()
