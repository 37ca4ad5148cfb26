"""Pruned copies of a champion: fewer channels, then a short training that mends what was torn.

    champion's weights + its spec -> child: build, load, take SHARES of the channels away, train -> ONNX, one per share

The training is the family's own, warm, on the train and val split of the frozen data, for half of the epochs of a warm
training. Each share starts from the champion itself. A child that was killed goes on after its last epoch.

Errors: TrainingError with the child's last words; Cancelled; ConflictError when the lease was lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from retrain import datasets, supervise
from retrain.child import read_result
from retrain.families import Item, Spec, get_family, write_atomically
from retrain.fitting import sample_file
from retrain.networks import specs_of, without_network
from sutdol import registry
from sutdol.errors import ConflictError, TrainingError
from sutdol.jobs import Running
from sutdol.settings import child_environment
from sutdol.tables import DatasetItem
from sutdol.types import Manifest

SHARES = (0.25, 0.5)
"""Of the channels of every layer that may lose some."""
EPOCHS = 0.5
"""Of a warm training's."""


def unavailable(manifest: Manifest) -> str | None:
    """Why a version cannot be pruned; None when it can."""
    if reason := without_network(manifest):
        return reason
    if find_spec("torch_pruning") is None:
        return "not available because torch-pruning is not installed here: pip install 'sutdol[prune]'"
    return None


def pruned(running: Running, manifest: Manifest, items: Sequence[DatasetItem]) -> Iterator[tuple[str, bytes]]:
    """(name, ONNX file) of each share, made one after the other.

    Args:
        items: of the frozen dataset version, all of them known to the champion's classes; the test split is left out here.
    """
    folder = (running.context.settings.home / "prunings" / running.job_id).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known = [
            Item(
                i.sample_id,
                i.split,  # type: ignore[arg-type]
                datasets.label_of(i),
                i.source,
                str(sample_file(running.context, folder, i.sample_id)),
                i.arm,
                i.weight,
            )
            for i in items
            if i.split != "test"
        ]
        model, version = str(running.payload["model"]), int(running.payload["version"])
        weights = registry.read_file(running.context.store, model, version, manifest, "weights.safetensors")
        write_atomically(folder / "champion.safetensors", weights)
        for share in SHARES:
            yield f"{share:.0%} of the channels", _one(running, manifest, folder / f"{share:.2f}", known, share)
    except ConflictError:
        raise  # the lease is gone: another attempt works in this folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _one(running: Running, manifest: Manifest, folder: Path, items: list[Item], share: float) -> bytes:
    folder.mkdir(exist_ok=True)
    first: TrainingError | None = None
    for spec in specs_of(running, manifest, folder):
        wanted = msgspec.structs.replace(
            spec,
            items=items,
            classes=list(manifest.classes),
            params=_short(spec),
            locks_dir=str((running.context.settings.home / "locks").absolute()),
            warm_start=str(folder.parent / "champion.safetensors"),
            prune=share,
        )
        try:
            _train(running, wanted, folder, share)
        except TrainingError as error:  # perhaps the spec of another network of the same run
            first = first or error
            continue
        return (folder / "model.onnx").read_bytes()
    raise first or TrainingError("how this version was trained is not known any more")


def _short(spec: Spec) -> dict[str, object]:
    epochs = max(1, round(EPOCHS * int(spec.params["warm_epochs"])))
    return spec.params | {"warm_start": True, "pretrained": False, "head_only": False, "warm_epochs": epochs}


def _train(running: Running, spec: Spec, folder: Path, share: float) -> None:
    if read_result(folder) is not None:
        return
    write_atomically(folder / "spec.json", msgspec.json.encode(spec))
    extra = get_family(spec.family).environment(folder, spec.params)

    def heard(event: dict[str, object]) -> None:
        if event.get("event") == "epoch":
            running.report(step="training", variant=f"{share:.0%}", epoch=event["epoch"], epochs=event["epochs"])

    environment = child_environment(running.context.settings, **extra)
    supervise.train(folder, environment, on_event=heard, check=running.check_cancelled)
    if read_result(folder) is None:
        raise TrainingError("the training process ended without a whole result")
