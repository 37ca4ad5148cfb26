"""Kinds of networks that can be trained: FAMILIES maps a name to its `Family`; the code is imported only when it is used.

    Spec (items, params, warm start) -> fit -> weights.safetensors -> to_onnx -> Export (one self-contained ONNX file)

A family is one module in this folder with these names, none of which may import torch before it is called:

    defaults(task, classes) -> dict       every parameter with its default; unknown names are refused by `Family.params`
    PRESETS                               fast | balanced | accurate -> parameters instead of the defaults
    native_size(params, task) -> int      the input size that an architecture was made for
    environment(run_dir, params) -> dict  variables that the training child must be started with
    fit(spec, hooks) -> Path              trains, checkpoints and resumes; calls hooks.check() at least once per batch
    to_onnx(spec, weights) -> Export      the contract of `sutdol.types.Manifest`, compared with torch
    examples(spec, hooks, count)          for each item: the image, then `count` augmented ones, boxes drawn

Weights travel as safetensors (no pickle); the class list only grows, so row i of an old head is row i of the new one.

Errors: NotFoundError for an unknown family; InputError for a task, parameter or value that a family does not know;
SetupError when its libraries are not installed; TrainingError when the training itself fails; Cancelled.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import msgspec

from sutdol.errors import InputError, SetupError, unknown
from sutdol.types import InputSpec, Label, Split, Task


class Item(msgspec.Struct, frozen=True):
    """One labelled image of a frozen dataset version; `path` is a readable file holding the sample's bytes."""

    sample_id: str
    split: Split
    value: Label
    source: str
    path: str
    arm: str | None = None
    weight: float = 1.0


class Spec(msgspec.Struct, frozen=True):
    """Everything a training child needs, written as RUN_DIR/spec.json by the job.

    Attributes:
        items: `train` and `val` only; a child never sees the test split.
        params: complete, checked by `Family.params`.
        warm_start: weights.safetensors of an earlier version of the same model, or None to start from scratch.
        locks_dir: folder of `device-<n>.lock`, one training per device at a time.
        weights_dir: folder of pretrained weights, `ARCHITECTURE.safetensors`.
        stop_after: pause after this epoch, with its checkpoint on disk, if others are to be compared with it; 0: never.
        prune: share of the warm start's channels that are taken away before training (see `_prune`); 0: none.
    """

    run_id: str
    run_dir: str
    family: str
    task: Task
    classes: list[str]
    params: dict[str, Any]
    items: list[Item]
    locks_dir: str
    warm_start: str | None = None
    attempt: int = 1
    weights_dir: str = ""
    stop_after: int = 0
    prune: float = 0.0

    def of(self, split: Split) -> list[Item]:
        return [item for item in self.items if item.split == split]


class Hooks(Protocol):
    """What the family tells its child while it trains."""

    def step(self, **numbers: float) -> None:
        """Progress inside an epoch, sent on at most a few times a second; `images` counts those of this step."""

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Epoch `epoch` (1-based) of `epochs` is finished and its checkpoint is on disk."""

    def check(self) -> None:
        """Raise Cancelled when somebody asked for it. Call at least once per batch."""


@dataclass(frozen=True)
class Export:
    """One ONNX file as bytes and how to feed it; `parity` is the largest |ONNX - torch| over outputs and a test batch.

    The last `low_level` features describe the picture itself (`_export.picture`), whatever the net makes of it.
    """

    onnx: bytes
    input: InputSpec
    opset: int
    parity: float
    low_level: int = 0


PARITY_MAX = 1e-3
"""Largest |ONNX - torch| that is taken for rounding; relative to the largest magnitude of an output when that exceeds 1."""


@dataclass(frozen=True)
class Family:
    """A line of FAMILIES: what can be known about a family without importing its libraries."""

    module: str
    tasks: tuple[Task, ...]
    extra: str
    libraries: tuple[str, ...]

    def load(self) -> ModuleType:
        """The family's module, after a look that its libraries are there.

        Raises:
            SetupError: a library is missing; names the extra to install.
        """
        missing = [name for name in self.libraries if find_spec(name) is None]
        if missing:
            raise SetupError(
                f"training needs {', '.join(missing)}, not installed here", hint=f"pip install 'sutdol[{self.extra}]'"
            )
        return importlib.import_module(self.module)

    def environment(self, run_dir: Path, params: dict[str, Any] | None = None) -> dict[str, str]:
        """Variables for the training child: the family's own and those that hold for all.

        Threads that wait must sleep: on a machine that also serves, OpenMP's default (spin) makes a training five times
        slower than one thread alone, measured with two cores and four busy processes; asleep it is as fast as ever.
        """
        own: dict[str, str] = self.load().environment(run_dir, params or {})
        return {"OMP_WAIT_POLICY": "PASSIVE"} | own

    def params(self, task: Task, classes: list[str], *overrides: dict[str, Any]) -> dict[str, Any]:
        """The family's defaults, overridden by each of `overrides` in turn (a model's own, then a run's).

        Raises:
            InputError: a task the family cannot do, an unknown parameter or preset (lists the known ones).
        """
        if task not in self.tasks:
            raise InputError(f"task {task!r}: this family can do {', '.join(self.tasks)}")
        module = importlib.import_module(self.module)
        known: dict[str, Any] = module.defaults(task, classes) | {"preset": None}
        chosen = next((given["preset"] for given in reversed(overrides) if given.get("preset") is not None), None)
        if chosen is not None and chosen not in module.PRESETS:
            raise InputError(f"preset {chosen!r} is unknown (known: {', '.join(module.PRESETS)})")
        preset = {k: v for k, v in module.PRESETS[chosen].items() if k in known} if chosen is not None else {}
        merged = known | preset
        for given in overrides:
            for name, value in given.items():
                if name not in known:
                    raise InputError(f"training parameter {name!r} is unknown (known: {', '.join(sorted(known))})")
                default = known[name]
                if default is not None and value is not None and not _same_kind(default, value):
                    raise InputError(
                        f"training parameter {name!r}: expected {type(default).__name__} like {default!r}, found {value!r}"
                    )
                merged[name] = value
        if not any("image_size" in given for given in (preset, *overrides)):
            merged["image_size"] = module.native_size(merged, task)
        return merged


FAMILIES: dict[str, Family] = {
    "timm": Family("retrain.families.timm", ("classify", "multilabel"), "train", ("torch", "timm", "safetensors")),
    "yolo": Family(
        "retrain.families.yolo", ("detect", "classify", "multilabel"), "yolo", ("torch", "ultralytics", "safetensors")
    ),
    "efficientdet": Family("retrain.families.efficientdet", ("detect",), "train", ("torch", "effdet", "safetensors")),
}


def get_family(name: str) -> Family:
    """The family of that name.

    Raises:
        NotFoundError: there is none; lists the known ones.
    """
    if name not in FAMILIES:
        raise unknown("family", name, sorted(FAMILIES))
    return FAMILIES[name]


def described(task: Task, classes: list[str], own: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    """The families that can do `task`, for a form: name, missing libraries, presets, and every parameter as it would be.

    Args:
        own, params: the model's family and its own parameters, which override that family's defaults.
    """
    found = []
    for name, family in FAMILIES.items():
        if task in family.tasks:
            module = importlib.import_module(family.module)
            found.append(
                {
                    "name": name,
                    "missing": [library for library in family.libraries if find_spec(library) is None],
                    "presets": module.PRESETS,
                    "params": family.params(task, classes, params if name == own else {}),
                }
            )
    return sorted(found, key=lambda one: one["name"] != own)


def _same_kind(default: Any, value: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))


class Checkpoint(msgspec.Struct, frozen=True):
    """RUN_DIR/last.json: the files of the last finished epoch with their sha256; written after them, replaced atomically."""

    epoch: int
    files: dict[str, str]


def save_checkpoint(run_dir: Path, epoch: int, files: dict[str, bytes]) -> None:
    """Keep `files` as the state after `epoch`. A crash at any point leaves the former or the new checkpoint, whole.

    Names get the epoch in front; files of older epochs are removed once the sidecar points to the new ones.
    """
    named = {f"epoch{epoch:05d}-{name}": data for name, data in files.items()}
    for name, data in named.items():
        write_atomically(run_dir / name, data)
    sidecar = Checkpoint(epoch, {name: hashlib.sha256(data).hexdigest() for name, data in named.items()})
    write_atomically(run_dir / "last.json", msgspec.json.encode(sidecar))
    for old in run_dir.glob("epoch?????-*"):
        if old.name not in named:
            old.unlink()


def load_checkpoint(run_dir: Path) -> tuple[int, dict[str, Path]] | None:
    """(epoch, {name: path}) of the last checkpoint, or None when there is none whose hashes match its sidecar."""
    sidecar = run_dir / "last.json"
    if not sidecar.is_file():
        return None
    try:
        checkpoint = msgspec.json.decode(sidecar.read_bytes(), type=Checkpoint)
    except msgspec.DecodeError:
        return None
    for name, digest in checkpoint.files.items():
        path = run_dir / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return None
    return checkpoint.epoch, {name.split("-", 1)[1]: run_dir / name for name in checkpoint.files}


def write_atomically(path: Path, data: bytes) -> None:
    """`path` holds all of `data` or what it held before, whenever the process or the machine dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
