"""A version's own network, built again from its weights: for TorchScript and for pruning.

manifest -> why there is none, or: its run's spec.json, else the rows of the run -> Spec, for `families.NAME.build`
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
from sqlmodel import select

from retrain.families import FAMILIES, Spec, get_family
from sutdol.jobs import Running
from sutdol.tables import DatasetVersion, Model, ModelVersion, RunCandidate, TrainingRun
from sutdol.types import Manifest


def without_network(manifest: Manifest) -> str | None:
    """Why the network of a version cannot be built here; None when it can."""
    if "weights.safetensors" not in manifest.files:
        how = "was adopted from ONNX" if "adopted" in manifest.provenance else "is a compressed copy"
        return f"not available because this version {how}: there are no PyTorch weights of it"
    if manifest.family not in FAMILIES:
        return f"not available because the family {manifest.family!r} is not known here"
    missing = [name for name in FAMILIES[manifest.family].libraries if find_spec(name) is None]
    return f"not available because {', '.join(missing)} is not installed here" if missing else None


def specs_of(running: Running, manifest: Manifest, folder: Path) -> Iterator[Spec]:
    """What the family needs to build the network of the job's version again, for a run in `folder` without items.

    As its run wrote it down, else from the rows of the run. A run may have trained several networks; whoever asks finds out
    which of them the weights belong to.
    """
    model, version = str(running.payload["model"]), int(running.payload["version"])
    with running.context.database.read() as session:
        row = session.get_one(ModelVersion, (model, version))
        run = session.get(TrainingRun, row.run_id) if row.run_id else None
        known = session.get_one(Model, model)
        data = session.get(DatasetVersion, row.dataset_version_id) if row.dataset_version_id else None
        tried = session.exec(select(RunCandidate).where(RunCandidate.run_id == row.run_id)).all()
    for kept in sorted((running.context.settings.home / "runs" / str(row.run_id)).glob("**/spec.json")):
        spec = msgspec.json.decode(kept.read_bytes(), type=Spec)
        if spec.family == manifest.family:
            yield msgspec.structs.replace(spec, run_dir=str(folder), items=[], warm_start=None, stop_after=0)
    classes = list(data.classes) if data else manifest.classes
    own = known.params if known.family == manifest.family else {}
    for params in [c.params for c in tried if c.family == manifest.family] or [run.params if run else {}]:
        yield Spec(
            run_id=str(row.run_id),
            run_dir=str(folder),
            family=manifest.family,
            task=manifest.task,
            classes=classes,
            params=get_family(manifest.family).params(manifest.task, classes, own, params),
            items=[],
            locks_dir=str(folder),
        )
