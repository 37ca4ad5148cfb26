"""The job `retrain.evaluate`: judge any version on any frozen dataset version, alone or beside another one.

    payload {model, version, against?, split, dataset_version_id?} -> evaluate -> reports.write -> rows of `evaluation`

The evaluation has the job's own id, so whoever asked knows where the report will be. A training writes the same reports for
its candidate by itself (see `train`).

Errors: NotFoundError (no such version or dataset version), InputError (no items in the split), ModelError, Cancelled.
"""

from __future__ import annotations

import time
from typing import Any

from sqlmodel import Session

from retrain import datasets, reports
from retrain.evaluate import Evaluated, evaluate
from sutdol import jobs, registry
from sutdol.db import upsert
from sutdol.errors import ConflictError, InputError, unknown
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.tables import DatasetItem, DatasetVersion, Evaluation

SPLITS = ("test", "val", "train")
REPORT_EVERY_S = 1.0


def start(
    session: Session,
    model: str,
    version: int,
    *,
    against: int | None = None,
    split: str = "test",
    dataset_version_id: str | None = None,
) -> str:
    """Queue an evaluation in the caller's transaction; its id, which is the job's too.

    Raises:
        NotFoundError, InputError, ConflictError (a deleted version).
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    for wanted in (version, against):
        if wanted is not None and registry.get_version(session, model, wanted).state == "deleted":
            raise ConflictError(f"version {wanted} of {model} is deleted")
    if dataset_version_id is not None:
        _dataset(session, model, dataset_version_id)
    payload = {
        "model": model,
        "version": version,
        "against": against,
        "split": split,
        "dataset_version_id": dataset_version_id,
    }
    job_id = jobs.send(session, "retrain.evaluate", payload)
    assert job_id is not None
    return job_id


def handle(running: Running) -> dict[str, Any]:
    """Job handler of `retrain.evaluate`."""
    payload, context = running.payload, running.context
    model, version, against = str(payload["model"]), int(payload["version"]), payload.get("against")
    split = str(payload.get("split", "test"))
    with running.commit() as session:
        frozen = payload.get("dataset_version_id")
        dataset = _dataset(session, model, str(frozen)) if frozen else datasets.freeze(session, model)
        items = [item for item in datasets.items(session, dataset.id) if item.split == split]
    if not items:
        raise InputError(f"{model}: dataset version {dataset.number} has no items in {split}")
    ours = _judged(running, model, version, items, f"version {version}")
    theirs = _judged(running, model, int(against), items, f"version {against}") if against is not None else None
    running.report(step="reporting")
    for key in context.store.keys(f"evaluations/{running.job_id}"):  # of an attempt that died half-way
        context.store.delete(key)
    reports.write(
        context.store,
        running.job_id,
        ours,
        items,
        title=f"{model} version {version} on {split} of data {dataset.number}",
        against=(f"version {against}", theirs) if theirs else None,
    )
    row = Evaluation(
        id=running.job_id,
        model=model,
        version=version,
        dataset_version_id=dataset.id,
        split=split,
        metrics=ours.metrics,
        items_key=f"evaluations/{running.job_id}.jsonl",
        against=int(against) if against is not None else None,
        report=True,
    )
    context.store.delete(str(row.items_key))
    context.store.put(str(row.items_key), ours.to_bytes())
    with running.commit() as session:
        upsert(session, row, keys=["id"], update=["metrics", "report"])
        tell(session, "evaluation.done", f"{model} version {version}: judged on {len(items)} items", model=model)
    return {"evaluation_id": running.job_id, "items": len(items)}


def _judged(running: Running, model: str, version: int, items: list[DatasetItem], name: str) -> Evaluated:
    context = running.context
    predictor = Predictor.open(context.store, model, version, providers=context.settings.provider_names or None)
    told = 0.0

    def progress(done: int, whole: int) -> None:
        nonlocal told
        if time.monotonic() - told >= REPORT_EVERY_S:
            told = time.monotonic()
            running.check_cancelled()
            running.report(step=f"judging {name}", done=done, of=whole)

    return evaluate(predictor, items, lambda sample: context.store.get(f"samples/{sample}"), progress=progress)


def _dataset(session: Session, model: str, dataset_version_id: str) -> DatasetVersion:
    row = session.get(DatasetVersion, dataset_version_id)
    if row is None or row.model != model:
        raise unknown(f"dataset version of {model}", dataset_version_id, [])
    return row
