"""Routes about samples: the picture, small or whole, and everything known about one.

    GET /v1/samples/{id}         known: prediction, scores, arm, task, label, revisions, data sets, by model
    GET /v1/samples/{id}/picture picture: the kept bytes, or a JPEG of at most `side` pixels

Every look-up goes by an index, however many predictions and versions there are.

Errors: NotFoundError for a sample that nobody has seen, or whose image was not kept; InputError for a side.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Response, Router, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter
from sqlmodel import Session, col, select

from serving import reads
from serving.auth import Keyring, needs
from sutdol import images
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError
from sutdol.settings import Settings
from sutdol.tables import (
    Annotation,
    DatasetItem,
    DatasetVersion,
    Feedback,
    LabelRow,
    LabelTask,
    Model,
    PredictionRow,
    Sample,
)

MOST = 50
"""Answers about one sample that are shown, the newest."""
SMALLEST_PX, LARGEST_PX = 16, 2048
T = TypeVar("T", bound=msgspec.Struct)


class Answered(msgspec.Struct):
    """One answer about the sample, with why it was picked."""

    id: str
    at: float
    version: int
    answer: dict[str, Any]
    confidence: float
    raw_confidence: float
    margin: float
    ood_score: float | None
    inclusion_probability: float
    """With which `drawn` would have picked it, whether it did or not."""
    arms: list[str]
    brightness: float | None
    sharpness: float | None
    colour: float | None


class Asked(msgspec.Struct):
    """Its label task, and where that is in Label Studio."""

    id: str
    state: str
    arm: str
    reason: str
    version: int
    inclusion_probability: float | None
    priority: float
    uncertainty: float
    ood_score: float | None
    scores: dict[str, float] | None
    answer: dict[str, Any]
    blind: bool
    overlap: int
    split: str | None
    project_id: int | None
    studio_task_id: int | None
    studio_url: str | None
    """The task itself; null while it is not in Label Studio."""
    merged_into: str | None
    created_at: float
    queued_at: float | None
    pushed_at: float | None
    answered_at: float | None


class Revision(msgspec.Struct):
    """One revision of one annotation."""

    annotation_id: int
    updated_at: str
    state: str
    value: dict[str, Any] | None
    problem: str | None
    annotator: int | None
    ground_truth: bool
    origins: list[str]
    lead_time_s: float | None


class Believed(msgspec.Struct):
    """The label that is believed now."""

    value: dict[str, Any]
    source: str
    arm: str | None
    weight: float
    split: str
    sample_group: str | None
    created_at: float
    updated_at: float


class Said(msgspec.Struct):
    """What a caller said the right answer was."""

    prediction_id: str
    value: dict[str, Any]
    at: float


class Frozen(msgspec.Struct):
    """A dataset version that it is in; `value` is the label there."""

    number: int
    name: str
    split: str
    source: str
    weight: float
    value: dict[str, Any]


class OfModel(msgspec.Struct):
    """What is known about the sample for one model."""

    model: str
    task: str
    predictions: list[Answered]
    label_task: Asked | None
    revisions: list[Revision]
    label: Believed | None
    feedback: list[Said]
    dataset_versions: list[Frozen]


class SampleInfo(msgspec.Struct):
    """One image by its content; sizes are null when the image was not kept."""

    id: str
    kept: bool
    width_px: int | None
    height_px: int | None
    media_type: str | None
    size_bytes: int | None
    created_at: float | None
    models: list[OfModel]


def build(context: Context, keyring: Keyring) -> Router:
    """The routes of this file."""
    labeler = needs(keyring, "label")

    @get(
        "/v1/samples/{sample_id:str}",
        guards=[labeler],
        sync_to_thread=True,
        summary="Everything known about one image",
        tags=["samples"],
        operation_id="get_sample",
    )
    def get_sample(sample_id: str) -> SampleInfo:
        return known(context, sample_id)

    @get(
        "/v1/samples/{sample_id:str}/picture",
        guards=[labeler],
        sync_to_thread=True,
        summary="The image of a sample",
        tags=["samples"],
        operation_id="get_sample_image",
        responses={200: ResponseSpec(bytes, media_type="image/*", generate_examples=False, description="The image.")},
    )
    def get_image(
        sample_id: str,
        side: Annotated[int | None, Parameter(description="Longer side in pixels of a JPEG made of it.")] = None,
    ) -> Response[bytes]:
        found = picture(context, sample_id, side)
        return Response(found.data, media_type=found.media_type)

    return Router("/", route_handlers=[get_sample, get_image])


def picture(context: Context, sample_id: str, side_px: int | None = None) -> reads.Kept:
    """The kept image, or a JPEG of at most `side_px` pixels made of it.

    Raises:
        NotFoundError: it was not kept. InputError: a side outside [SMALLEST_PX, LARGEST_PX].
    """
    if side_px is not None and not SMALLEST_PX <= side_px <= LARGEST_PX:
        raise InputError(f"side: expected {SMALLEST_PX} to {LARGEST_PX} pixels, found {side_px}")
    found = reads.sample(context, sample_id)
    if found is None:
        raise NotFoundError("this image was not kept", hint="images are kept when an arm picks them")
    return found if side_px is None else reads.Kept(images.shrink(found.data, side_px), "image/jpeg")


def known(context: Context, sample_id: str) -> SampleInfo:
    """Everything known about one image. Raises NotFoundError when nothing is."""
    with context.database.read() as session:
        row = session.get(Sample, sample_id)
        tasks = {m.slug: m.task for m in session.exec(select(Model).order_by(Model.slug))}
        about = [_of_model(session, context.settings, name, task, sample_id) for name, task in tasks.items()]
    of_models = [o for o in about if o.predictions or o.label_task or o.label or o.dataset_versions]
    if row is None and not of_models:
        raise NotFoundError(f"no sample {sample_id[:64]!r}", hint="its id is the sha256 of the upright image")
    if row is None:
        return SampleInfo(sample_id, False, None, None, None, None, None, of_models)
    size = (row.width_px, row.height_px, row.media_type, row.size_bytes, row.created_at)
    return SampleInfo(sample_id, True, *size, of_models)


def studio_url(settings: Settings, project_id: int, studio_task_id: int) -> str:
    """Where people open one task in Label Studio."""
    return f"{settings.studio_url}/projects/{project_id}/data?task={studio_task_id}"


def _of_model(session: Session, settings: Settings, model: str, task: str, sample_id: str) -> OfModel:
    predictions = session.exec(
        select(PredictionRow)
        .where(PredictionRow.model == model, PredictionRow.sample_id == sample_id)
        .order_by(col(PredictionRow.id).desc())
        .limit(MOST)
    ).all()
    asked = session.exec(select(LabelTask).where(LabelTask.model == model, LabelTask.sample_id == sample_id)).first()
    revisions = session.exec(
        select(Annotation)
        .where(Annotation.label_task_id == (asked.id if asked else ""))
        .order_by(col(Annotation.fetched_at).desc())
    ).all()
    label = session.get(LabelRow, (model, sample_id))
    said = session.exec(
        select(Feedback).where(col(Feedback.prediction_id).in_([p.id for p in predictions])).order_by(col(Feedback.at))
    ).all()
    versions = session.exec(
        select(DatasetVersion, DatasetItem)
        .join(DatasetItem, col(DatasetItem.dataset_version_id) == col(DatasetVersion.id))
        .where(DatasetVersion.model == model, DatasetItem.sample_id == sample_id)
        .order_by(col(DatasetVersion.number).desc())
    ).all()
    return OfModel(
        model,
        task,
        [_copy(p, Answered) for p in predictions],
        _asked(asked, settings) if asked is not None else None,
        [_copy(a, Revision) for a in revisions],
        _copy(label, Believed) if label is not None else None,
        [_copy(f, Said) for f in said],
        [Frozen(v.number, v.name, i.split, i.source, i.weight, i.value) for v, i in versions],
    )


def _asked(row: LabelTask, settings: Settings) -> Asked:
    there = row.project_id is not None and row.studio_task_id is not None
    url = studio_url(settings, row.project_id or 0, row.studio_task_id or 0) if there else None
    return _copy(row, Asked, studio_url=url)


def _copy(row: Any, kind: type[T], **more: Any) -> T:
    return kind(**{name: getattr(row, name) for name in kind.__struct_fields__ if name not in more}, **more)
