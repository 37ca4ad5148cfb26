"""A model that nobody knows is tried in a child process first: little memory, little time, no way to take us along.

    onnx bytes, feeds -> child: structure checked -> loaded -> run per feed -> Trial (signature, outputs, times)

A file of 145 bytes can ask for gigabytes when it runs, a loop can run for ever, and a crash inside the runtime would take
the server with it. In here the kernel refuses the memory (RLIMIT_AS above what the empty child takes), a clock ends the
child, and whatever happens comes back as one ModelError in words.

`try_model` runs a file as it came, whatever its inputs; `check_contract` is for files that claim to keep the contract of
`types.Manifest`: right shapes, finite, the same answer twice, and the same answer alone as in a batch.

Errors: ModelError with the reason.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sutdol.errors import ModelError, SutdolError
from sutdol.process import die_with_parent
from sutdol.types import Manifest

MEMORY_BYTES = 2_000_000_000
"""What a model may take above the child's own needs: weights, activations of a small batch, and what loading costs."""
TIMEOUT_S = 60.0
MAX_OUTPUT_BYTES = 256_000_000
PROBES = 3
_TOLERANCE = 2e-3
_CODE = "import sys; from sutdol.selftest import main; sys.exit(main())"

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Port:
    """An input or output as the file declares it; open sizes are names or None."""

    name: str
    dtype: str
    shape: list[int | str | None]


@dataclass(frozen=True)
class Trial:
    """What the child found.

    Attributes:
        outputs: per feed, output name to array.
        run_ms: per feed.
        peak_bytes: most resident memory of the child.
    """

    inputs: list[Port]
    results: list[Port]
    outputs: list[dict[str, NDArray[Any]]]
    load_ms: float
    run_ms: list[float]
    peak_bytes: int


class _Array(msgspec.Struct):
    dtype: str
    shape: list[int]
    data: bytes


class _Request(msgspec.Struct):
    onnx: bytes
    feeds: list[dict[str, _Array]]
    memory_bytes: int


class _Answer(msgspec.Struct):
    error: str | None = None
    inputs: list[tuple[str, str, list[int | str | None]]] = []
    results: list[tuple[str, str, list[int | str | None]]] = []
    outputs: list[dict[str, _Array]] = []
    load_ms: float = 0.0
    run_ms: list[float] = []
    peak_bytes: int = 0


def try_model(
    onnx: bytes,
    feeds: list[Feeds] | None = None,
    *,
    memory_bytes: int = MEMORY_BYTES,
    timeout_s: float = TIMEOUT_S,
) -> Trial:
    """Check, load and run a file in a limited child; without `feeds` it is only checked and loaded.

    Raises:
        ModelError: not self-contained, broken, not loadable, too hungry, too slow, crashed, or failed on a feed.
    """
    request = _Request(onnx, [{k: _packed(v) for k, v in feed.items()} for feed in feeds or []], memory_bytes)
    environment = {k: v for k, v in child_variables().items() if not k.startswith("SUTDOL_")}
    child = subprocess.Popen(
        [sys.executable, "-c", _CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        preexec_fn=die_with_parent if os.name == "posix" else None,
    )
    try:
        said, _ = child.communicate(msgspec.msgpack.encode(request), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"self-test: the model was not done after {timeout_s:g} s", hint="smaller, or without endless loops"
        ) from None
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    if child.returncode != 0:
        raise ModelError(f"self-test: {_how_it_died(child.returncode, memory_bytes)}")
    answer = msgspec.msgpack.decode(said, type=_Answer)
    if answer.error is not None:
        raise ModelError(answer.error)
    return Trial(
        [Port(*p) for p in answer.inputs],
        [Port(*p) for p in answer.results],
        [{k: _unpacked(v) for k, v in out.items()} for out in answer.outputs],
        answer.load_ms,
        answer.run_ms,
        answer.peak_bytes,
    )


def check_contract(
    onnx: bytes, manifest: Manifest, *, memory_bytes: int = MEMORY_BYTES, timeout_s: float = TIMEOUT_S
) -> Trial:
    """Whether a file keeps the contract of its manifest, tried in a limited child.

    Raises:
        ModelError: says which promise it breaks.
    """
    height, width = manifest.input.size_hw
    images = np.random.default_rng(0).normal(0, 1, (PROBES, 3, height, width)).astype(np.float32)
    feeds: list[Feeds] = [{"images": images}, {"images": images}, {"images": images[:1]}]
    trial = try_model(onnx, feeds, memory_bytes=memory_bytes, timeout_s=timeout_s)
    names = {port.name for port in trial.results}
    if [p.name for p in trial.inputs] != ["images"] or not {"scores", "features"} <= names:
        raise ModelError(
            f"model.onnx: expected one input `images` and outputs `scores` and `features`, "
            f"found {[p.name for p in trial.inputs]} and {sorted(names)}"
        )
    for name in ("scores", "features"):
        whole, again, alone = (out[name] for out in trial.outputs)
        _check_shape(name, whole.shape, manifest)
        if not all(np.isfinite(a).all() for a in (whole, again, alone)):
            raise ModelError(f"self-test: {name} are not finite")
        allowed = _TOLERANCE * max(float(np.abs(whole).max(initial=0.0)), 1.0)
        if float(np.abs(whole - again).max(initial=0.0)) > allowed:
            raise ModelError(f"self-test: the same images gave other {name} the second time")
        if whole[:1].shape != alone.shape or float(np.abs(whole[:1] - alone).max(initial=0.0)) > allowed:
            raise ModelError(f"self-test: an image gave other {name} alone than in a batch of {PROBES}")
    if manifest.task == "detect":
        chances = trial.outputs[0]["scores"][:, 4:]
        if float(chances.min(initial=0.0)) < -1e-3 or float(chances.max(initial=0.0)) > 1 + 1e-3:
            raise ModelError("self-test: expected class probabilities in [0, 1], found others", hint="raw logits?")
    return trial


def child_variables() -> dict[str, str]:
    """The child's environment: enough to find Python and us, and nothing else (no keys, no database)."""
    paths = os.pathsep.join(p for p in sys.path if p)
    return {"PYTHONPATH": paths, "PATH": os.defpath, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


def main() -> int:
    """The child: a request on standard input, an answer on standard output."""
    from sutdol import runtime

    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Request)
    _limit(request.memory_bytes)
    try:
        answer = _tried(runtime, request)
    except SutdolError as error:
        answer = _Answer(error=error.message + (f" ({error.hint})" if error.hint else ""))
    except MemoryError:
        answer = _Answer(error=f"self-test: it needs more than {request.memory_bytes / 1e9:g} GB of memory")
    except RecursionError:
        answer = _Answer(error="model.onnx: graphs nested too deeply")
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))
    sys.stdout.buffer.flush()
    return 0


def _tried(runtime: Any, request: _Request) -> _Answer:
    runtime.check_self_contained(request.onnx)
    began = time.perf_counter()
    model = runtime.Foreign(request.onnx)
    load_ms = (time.perf_counter() - began) * 1000
    outputs, run_ms, size = [], [], 0
    for feed in request.feeds:
        began = time.perf_counter()
        found = model.run({name: _unpacked(array) for name, array in feed.items()})
        run_ms.append((time.perf_counter() - began) * 1000)
        size += sum(array.nbytes for array in found.values())
        if size > MAX_OUTPUT_BYTES:
            raise ModelError(
                f"self-test: answers of {size / 1e6:.0f} MB, at most {MAX_OUTPUT_BYTES / 1e6:.0f} are read"
            )
        outputs.append({name: _packed(array) for name, array in found.items()})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _Answer(None, model.inputs, model.outputs, outputs, load_ms, run_ms, peak)


def _limit(memory_bytes: int) -> None:
    """From here on the kernel refuses memory beyond `memory_bytes` more than now, files, and a dump of the core."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _check_shape(name: str, shape: tuple[int, ...], manifest: Manifest) -> None:
    classes = len(manifest.classes)
    if name == "features":
        good, expected = len(shape) == 2 and shape[1] > 0, "(n, d)"
    elif manifest.task == "detect":
        good, expected = len(shape) == 3 and shape[1] == 4 + classes, f"(n, 4 + {classes}, anchors)"
    else:
        good, expected = len(shape) == 2 and shape[1] == classes, f"(n, {classes})"
    if not good or shape[0] != PROBES:
        raise ModelError(f"self-test: expected {name} of shape {expected} for {PROBES} images, found {shape}")


def _packed(array: NDArray[Any]) -> _Array:
    return _Array(array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes())


def _unpacked(array: _Array) -> NDArray[Any]:
    return np.frombuffer(array.data, array.dtype).reshape(array.shape)


def _how_it_died(status: int, memory_bytes: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"the model crashed its process ({name}), perhaps by asking for more than {memory_bytes / 1e9:g} GB"
    return f"the process ended with status {status}"
