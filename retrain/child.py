"""The training process: `python -m retrain.child RUN_DIR [PARENT_PID]`, started by the training job.

    RUN_DIR/spec.json -> lock of the device -> fit -> ONNX -> RUN_DIR/{model.onnx, weights.safetensors, result.json}

Standard output carries JSON lines and nothing else (whatever libraries print goes to RUN_DIR/child.log):

    {"event": "waiting", "device": 0}                     another training holds the device
    {"event": "step", ...}                                a few times a second
    {"event": "epoch", "epoch", "epochs", "metrics", "eta_s"}     its checkpoint is on disk
    {"event": "exporting"}
    {"event": "done"} | {"event": "paused"} | {"event": "cancelled"} | {"event": "error", "code", "text"}

Ends with 0, 1 (error) or 3 (RUN_DIR/cancel appeared; looked for at every batch). A finished run that is started again says
`done` at once; an interrupted one goes on after its last whole checkpoint, and so does one that paused after the epoch
`stop_after` of its spec. The process dies with its parent (Linux), so an
orphan never holds a device.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import msgspec

from retrain.families import Spec, get_family, write_atomically
from sutdol.errors import Cancelled, SutdolError
from sutdol.process import die_with_parent
from sutdol.types import InputSpec

EXIT_CANCELLED = 3
STEP_EVERY_S = 0.25
LOCK_POLL_S = 0.1
REPORTED_LIBRARIES = ("torch", "timm", "effdet", "ultralytics", "onnx", "numpy")


class Result(msgspec.Struct, frozen=True):
    """RUN_DIR/result.json: written last, so a folder that has one is finished.

    Attributes:
        sha256: of `model.onnx` and `weights.safetensors`.
        parity: largest |ONNX - torch| found at export.
        versions: of the libraries that took part.
        low_level: the last so many features describe the picture itself (see `families.Export`).
    """

    input: InputSpec
    opset: int
    parity: float
    sha256: dict[str, str]
    versions: dict[str, str]
    low_level: int = 0


def read_result(run_dir: Path) -> Result | None:
    """The result of a finished run whose files are whole, or None."""
    path = run_dir / "result.json"
    if not path.is_file():
        return None
    result = msgspec.json.decode(path.read_bytes(), type=Result)
    for name, digest in result.sha256.items():
        file = run_dir / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            return None
    return result


class Paused(Exception):
    """The epoch at which this candidate waits for the others is finished; not an error."""


class Reporter:
    """The `Hooks` of a real run: JSON lines out, the cancel file in.

    To every epoch's metrics it adds images/s, the cores that were busy, and the process's memory in MB.
    """

    def __init__(self, out: TextIO, run_dir: Path) -> None:
        self.stop_after = 0
        self._images = 0.0
        self._cpu_s = _cpu_s()
        self._out = out
        self._cancel = run_dir / "cancel"
        self._step_at = 0.0
        self._epoch_at: float | None = None
        self._epoch_s: list[float] = []

    def say(self, event: str, **fields: Any) -> None:
        self._out.write(msgspec.json.encode({"event": event, **fields}).decode() + "\n")
        self._out.flush()

    def step(self, **numbers: float) -> None:
        at = time.monotonic()
        if self._epoch_at is None:  # the first epoch begins here, not with the imports
            self._epoch_at, self._cpu_s = at, _cpu_s()
        else:
            self._images += numbers.get("images", 0.0)
        if at - self._step_at >= STEP_EVERY_S:
            self._step_at = at
            self.say("step", **numbers)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        at, cpu_s = time.monotonic(), _cpu_s()
        took_s = at - (self._epoch_at or at)
        self._epoch_s = [*self._epoch_s[-4:], took_s]
        eta_s = (epochs - epoch) * sum(self._epoch_s) / len(self._epoch_s)
        machine = _memory_mb()
        if took_s > 0:
            machine |= {"machine/images_per_s": self._images / took_s, "machine/cores": (cpu_s - self._cpu_s) / took_s}
        self._epoch_at, self._cpu_s, self._images = at, cpu_s, 0.0
        self.say("epoch", epoch=epoch, epochs=epochs, metrics=metrics | machine, eta_s=eta_s)
        if self.stop_after and self.stop_after <= epoch < epochs:
            raise Paused

    def check(self) -> None:
        if self._cancel.exists():
            raise Cancelled("the training was cancelled")


def run(spec: Spec, reporter: Reporter) -> None:
    """Train and export; returns when `result.json` is written."""
    run_dir = Path(spec.run_dir)
    if read_result(run_dir) is not None:
        return
    family = get_family(spec.family).load()
    with _device_lock(Path(spec.locks_dir), reporter):
        _use_all_cores()
        weights: Path = family.fit(spec, reporter)
        reporter.check()
        reporter.say("exporting")
        exported = family.to_onnx(spec, weights)
    write_atomically(run_dir / "model.onnx", exported.onnx)
    digests = {
        "model.onnx": hashlib.sha256(exported.onnx).hexdigest(),
        "weights.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    result = Result(exported.input, exported.opset, exported.parity, digests, _versions(), exported.low_level)
    write_atomically(run_dir / "result.json", msgspec.json.encode(result))


def main(arguments: list[str]) -> int:
    """Exit status of one training; see the top of this file."""
    die_with_parent()
    if len(arguments) > 1 and os.getppid() != int(arguments[1]):
        return 1  # it was gone before we could ask
    run_dir = Path(arguments[0])
    reporter = Reporter(_take_stdout(run_dir / "child.log"), run_dir)
    try:
        spec = msgspec.json.decode((run_dir / "spec.json").read_bytes(), type=Spec)
        reporter.stop_after = spec.stop_after
        run(spec, reporter)
    except Paused:
        reporter.say("paused")
        return 0
    except Cancelled:
        reporter.say("cancelled")
        return EXIT_CANCELLED
    except SutdolError as error:
        traceback.print_exc()
        reporter.say("error", code=error.code, text=str(error))
        return 1
    except Exception as error:  # the outermost handler of this process: its last words go to the job
        traceback.print_exc()
        reporter.say("error", code="training", text=f"{type(error).__name__}: {error}")
        return 1
    reporter.say("done")
    return 0


def _cpu_s() -> float:
    """Seconds of CPU that this process and its ended children took."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _memory_mb() -> dict[str, float]:
    """Resident memory now, and the GPU's as far as torch holds it."""
    found = {}
    status = Path("/proc/self/status")
    if status.is_file():
        line = next((x for x in status.read_text().splitlines() if x.startswith("VmRSS")), "VmRSS: 0 kB")
        found["machine/memory_mb"] = float(line.split()[1]) / 1024
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["machine/gpu_memory_mb"] = torch.cuda.max_memory_reserved() / 1e6
    return found


def _take_stdout(log: Path) -> TextIO:
    """The real standard output for events; everything that is printed from now on goes to the log."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return events


@contextmanager
def _device_lock(folder: Path, reporter: Reporter, *, device: int = 0) -> Iterator[None]:
    """One training per device. The kernel frees the lock when its holder dies, however it dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"device-{device}.lock").open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    reporter.say("waiting", device=device)
                    told = True
                reporter.check()
                time.sleep(LOCK_POLL_S)
        yield


def _use_all_cores() -> None:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)


def _versions() -> dict[str, str]:
    found = {}
    for name in REPORTED_LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
