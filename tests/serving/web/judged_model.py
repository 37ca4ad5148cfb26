"""A model with everything that an evaluation and a sample can show: labels, versions, reports, a task, revisions."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from shared_server import Served
from sqlmodel import select

from retrain import datasets
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol import jobs, thresholds
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.tables import Annotation, DatasetVersion, LabelRow, LabelTask, PredictionRow, new_id, now
from sutdol.types import Label
from tests.tiny_models import CLASSES, classifier_bundle, classifier_onnx

SLUG = "web-judged"
IMAGES = 40
WRONG = 10
"""Labels that say another class than the picture."""

PAGES = {
    "/console/evaluation": "label",
    "/console/evaluation/EVALUATION": "label",
    "/console/evaluation/EVALUATION/part": "label",
    "/console/evaluation/EVALUATION/items": "label",
    "/console/evaluation/EVALUATION/sweep": "label",
    "/console/sample/SAMPLE": "label",
    "/console/datasets": "label",
    f"/console/labels/{SLUG}/unfamiliar": "label",
    f"/console/datasets/{SLUG}": "label",
    f"/console/datasets/{SLUG}/jobs": "label",
    f"/console/datasets/{SLUG}/images": "label",
    f"/console/datasets/{SLUG}/versions/1": "label",
    f"/console/datasets/{SLUG}/versions/1/statistics": "label",
    f"/console/datasets/{SLUG}/versions/1/diff": "label",
    "/console/samples/SAMPLE/small": "label",
}
"""Every page of these screens and the least scope that sees it."""
PATTERNS = {
    "EVALUATION": "{evaluation_id:str}",
    "SAMPLE": "{sample_id:str}",
    f"/{SLUG}": "/{model:str}",
    "versions/1": "versions/{number:int}",
}
"""What stands in an address -> what stands for it in its route."""


@dataclass(frozen=True)
class Judged:
    """Ids of what was made."""

    evaluation_id: str
    sample_id: str
    """Of an image with a label, a prediction, a task in Label Studio and two revisions."""


def picture(i: int) -> bytes:
    """A noisy image of class i % 3."""
    rgb = np.random.default_rng(i).integers(0, 40, (48, 64, 3), np.uint8)
    rgb[:, :, i % 3] += 150
    return encode_png(rgb)


def judge(served: Served) -> Judged:
    """Make it all; the evaluation is the worker's own."""
    context = served.context
    logits = np.random.default_rng(0).normal(0, 2, (300, 3))
    study = thresholds.study("classify", logits, logits.argmax(axis=1) % 3, temperature=1.0, split="val")
    classifier_bundle(context, SLUG, more={thresholds.FILE: msgspec.json.encode(study)})
    classifier_bundle(context, SLUG, onnx_bytes=classifier_onnx(shifted=True), promote=False)
    records = [
        Record(f"{i}.png", Label(classes=[CLASSES[(i + (i % 4 == 0)) % 3]]), data=picture(i)) for i in range(IMAGES)
    ]
    datasets.import_records(context, SLUG, records, ratios=(0.1, 0.1, 0.8), name="first")
    with context.database.begin() as session:
        datasets.freeze(session, SLUG)
        job_id = str(jobs.send(session, "retrain.evaluate", {"model": SLUG, "version": 1, "against": 2}))
    worker.run_pending(context, {"retrain.evaluate": HANDLERS["retrain.evaluate"]})
    with context.database.begin() as session:
        label = session.exec(select(LabelRow).where(LabelRow.model == SLUG, LabelRow.split == "train")).first()
        assert label is not None
        answer = {"classes": [{"label": "red", "index": 0, "confidence": 0.7}], "boxes": []}
        row = PredictionRow(
            id=new_id(),
            at=now(),
            model=SLUG,
            version=1,
            sample_id=label.sample_id,
            width_px=64,
            height_px=48,
            answer=answer,
            confidence=0.7,
            raw_confidence=0.8,
            margin=0.4,
            ood_score=1.5,
            inclusion_probability=0.25,
            arms=["drawn"],
            duration_ms=3.0,
        )
        task = LabelTask(
            model=SLUG,
            sample_id=label.sample_id,
            prediction_id=row.id,
            version=1,
            arm="drawn",
            reason="drawn by chance",
            inclusion_probability=0.25,
            priority=0.6,
            uncertainty=0.6,
            ood_score=1.5,
            answer=answer,
            scores={"margin": 0.6},
            state="annotated",
            project_id=7,
            studio_task_id=42,
        )
        session.add(row)
        session.add(task)
        for number, name in enumerate(("green", "red")):
            session.add(
                Annotation(
                    project_id=7,
                    annotation_id=3,
                    updated_at=f"2026-01-01T00:0{number}:00.000000Z",
                    label_task_id=task.id,
                    studio_task_id=42,
                    value={"classes": [name], "boxes": []},
                    state="valid",
                    annotator=1,
                    origins=["manual"],
                    lead_time_s=4.5,
                )
            )
        data = session.exec(select(DatasetVersion).where(DatasetVersion.model == SLUG)).one()
        assert data.number == 1
        return Judged(job_id, label.sample_id)


def routes() -> set[str]:
    """The routes of PAGES, as the handlers write them, and of the file that needs a job."""
    found = {"/console/datasets/{model:str}/jobs/{job_id:str}/file"}
    for page in PAGES:
        for shown, pattern in PATTERNS.items():
            page = page.replace(shown, pattern)
        found.add(page)
    return found
