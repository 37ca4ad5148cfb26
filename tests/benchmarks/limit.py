"""The in-process limit: decode, fit, normalise, ONNX Runtime (and suppression for boxes), and nothing else.

The same decoder and the same scaling as the server, no log, no scores, no hash, no header check. CONFIGURATIONS are tried
and the best one is the limit. `Limit` keeps its processes between the windows of a paired run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

CONFIGURATIONS = {
    "2 processes, batch 1": (2, 1, 1),
    "2 processes, batch 4": (2, 1, 4),
    "2 processes, batch 8": (2, 1, 8),
    "2 threads, one session, batch 1": (1, 2, 1),
    "2 threads, one session, batch 4": (1, 2, 4),
    "1 thread, batch 1": (1, 1, 1),
}
"""(processes, threads in each, batch); the last one is the bare pipeline of one caller."""


class Limit:
    """The processes of one configuration, ready to run."""

    def __init__(self, onnx: Path, photos: Path, *, configuration: str, detect: bool) -> None:
        processes, threads, batch = CONFIGURATIONS[configuration]
        words = [sys.executable, "-m", "tests.benchmarks.limit", str(onnx), str(photos), str(threads), str(batch)]
        words.append("detect" if detect else "classify")
        self._children = [
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
        ]
        for child in self._children:
            assert child.stdout is not None
            child.stdout.readline()

    def run(self, seconds: float) -> dict[str, float]:
        """{"per_s", "cpu_ms" per image, "p50" in ms} of one window."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(f"{seconds}\n")
            child.stdin.flush()
        found = [json.loads(child.stdout.readline()) for child in self._children]  # type: ignore[union-attr]
        images = sum(f["n"] for f in found)
        return {
            "per_s": images / seconds,
            "cpu_ms": sum(f["cpu_ms"] for f in found) / images,
            "p50": float(np.median([f["p50"] for f in found])),
        }

    def close(self) -> None:
        for child in self._children:
            child.stdin.close()  # type: ignore[union-attr]
            child.wait()


def best(onnx: Path, photos: Path, *, detect: bool, seconds: float = 2.0) -> tuple[str, Limit, dict[str, float]]:
    """The fastest configuration, its processes, and images/s of all."""
    found: dict[str, float] = {}
    for name in CONFIGURATIONS:
        limit = Limit(onnx, photos, configuration=name, detect=detect)
        limit.run(0.5)
        found[name] = limit.run(seconds)["per_s"]
        limit.close()
    name = max(found, key=lambda n: found[n])
    return name, Limit(onnx, photos, configuration=name, detect=detect), found


def loop(onnx: bytes, photos: list[bytes], *, threads: int, batch: int, detect: bool, seconds: float) -> dict[str, Any]:
    """Images of one window on `threads` threads."""
    session = _session(onnx)
    return _window(session, photos, threads=threads, batch=batch, detect=detect, seconds=seconds)


def _session(onnx: bytes) -> Any:
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def _window(
    session: Any, photos: list[bytes], *, threads: int, batch: int, detect: bool, seconds: float
) -> dict[str, Any]:
    side = session.get_inputs()[0].shape[2]
    name = session.get_inputs()[0].name
    counts: list[int] = []
    times: list[float] = []

    def work() -> None:
        n = 0
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            tensors = [_tensor(photos[(n + k) % len(photos)], side, detect=detect) for k in range(batch)]
            stacked = tensors[0][None] if batch == 1 else np.stack(tensors)
            (scores,) = session.run(["scores"], {name: stacked})
            for row in scores:
                if detect:
                    _boxes(row)
                else:
                    row.argmax()
            n += batch
            times.append((time.perf_counter() - began) * 1000)
        counts.append(n)

    cpu = time.process_time()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"n": sum(counts), "cpu_ms": (time.process_time() - cpu) * 1000, "p50": float(np.median(times))}


def _tensor(data: bytes, side: int, *, detect: bool) -> Any:
    """What `sutdol.images.decode` and `sutdol.predictor` do, without their checks."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    fit = min(side / height, side / width) if detect else 0.0
    need = (round(height * fit), round(width * fit)) if detect else (side, side)
    rgb = None
    for scale in (8, 4, 2):
        if -(-height // scale) >= need[0] and -(-width // scale) >= need[1]:
            rgb = simplejpeg.decode_jpeg(data, "RGB", min_height=-(-height // scale), min_width=-(-width // scale))
            break
    if rgb is None:
        rgb = simplejpeg.decode_jpeg(data, "RGB")
    if detect:
        canvas = np.full((side, side, 3), 114, np.uint8)
        top, left = (side - need[0]) // 2, (side - need[1]) // 2
        if rgb.shape[:2] != need:
            rgb = cv2.resize(rgb, (need[1], need[0]), interpolation=cv2.INTER_LINEAR)
        canvas[top : top + need[0], left : left + need[1]] = rgb
        rgb = canvas
    else:
        rgb = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_LINEAR)
    tensor = np.empty((3, side, side), np.float32)
    for channel, plane in zip(tensor, cv2.split(rgb), strict=True):
        np.multiply(plane, np.float32(1 / 255), out=channel, dtype=np.float32)
    return tensor


def _boxes(row: Any) -> Any:
    best = row[4:].max(axis=0)
    keep = np.flatnonzero(best >= 0.25)
    corners = np.concatenate([row[:2, keep].T - row[2:4, keep].T / 2, row[2:4, keep].T], axis=1)
    classes = row[4:, keep].argmax(axis=0)
    if not len(keep):
        return []
    return cv2.dnn.NMSBoxesBatched(
        corners.astype(np.float64).tolist(), best[keep].astype(float).tolist(), classes.tolist(), 0.0, 0.6
    )


def main() -> None:
    """A child: loads, says ready, and runs one window for each line it reads."""
    onnx, folder, threads, batch, task = sys.argv[1:6]
    cv2.setNumThreads(1)
    session = _session(Path(onnx).read_bytes())
    photos = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    print("ready", flush=True)
    for line in sys.stdin:
        found = _window(
            session,
            photos,
            threads=int(threads),
            batch=int(batch),
            detect=task == "detect",
            seconds=float(line),
        )
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
