"""Routes about evaluations: ask for one, list them, read the report, look at what was right and wrong.

    POST /v1/models/{model}/evaluations -> a job on the queue `batch` -> files in the store -> these routes hand them out
    ordered | listed | state | report | items -> the handlers here, and the console

The files are made by the package that trains (see `retrain.reports`); here they are only read. Pages are sent with a policy
that lets them load nothing. Of the items a page is decoded whole, the others only as far as the filters look.

Errors: NotFoundError (no such evaluation, or its report is not ready), InputError, ConflictError.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter
from sqlmodel import col, select

from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from sutdol import jobs, registry
from sutdol.context import Context
from sutdol.db import Database
from sutdol.errors import ConflictError, InputError, NotFoundError, unknown
from sutdol.tables import DatasetVersion, Evaluation, Job

HttpRequest = Request[Any, Any, Any]
SPLITS = ("test", "val", "train")
MAX_BYTES = 100_000
FILES = {
    "report.json": "application/json",
    "report.html": "text/html; charset=utf-8",
    "report.zip": "application/zip",
    "items.jsonl": "application/jsonl",
    "comparison.jsonl": "application/jsonl",
}
_SEALED = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


class EvaluationOrder(msgspec.Struct, forbid_unknown_fields=True):
    """What to judge: a version, perhaps beside another one, on a split of a dataset version (the newest if none)."""

    version: int
    against: int | None = None
    split: str = "test"
    dataset_version_id: str | None = None


class Ordered(msgspec.Struct):
    """It will be at `/v1/evaluations/{evaluation_id}`."""

    evaluation_id: str


class EvaluationInfo(msgspec.Struct):
    """One version judged on one split of one dataset version."""

    id: str
    model: str
    version: int
    against: int | None
    dataset_version_id: str
    dataset_version: int | None
    """Its number; null when it is gone."""
    split: str
    metrics: dict[str, Any]
    report: bool
    at: float


class EvaluationState(msgspec.Struct):
    """`state` is queued, running, done, failed or cancelled; `info` once it is done."""

    id: str
    state: str
    progress: dict[str, Any] | None
    error: str | None
    info: EvaluationInfo | None


class Wanted(msgspec.Struct, frozen=True):
    """Which items of an evaluation, and in which order; see the route `list_evaluation_items`."""

    correct: bool | None = None
    truth: str | None = None
    predicted: str | None = None
    cell: bool = False
    order: str = "item"
    offset: int = 0
    limit: int = 100


class _Row(msgspec.Struct):
    """What the filters look at."""

    correct: bool
    truth: list[str]
    predicted: list[str]
    confidence: float
    pairs: list[tuple[str, str]] = []


@dataclass
class _OrderOperation(Operation):
    def __post_init__(self) -> None:
        number, text = Schema(type=OpenAPIType.INTEGER), Schema(type=OpenAPIType.STRING)
        properties: dict[str, Any] = {"version": number, "against": number, "split": text, "dataset_version_id": text}
        body = Schema(type=OpenAPIType.OBJECT, properties=properties, required=["version"])
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(schema=body)}, required=True)


def build(context: Context, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""
    database = context.database
    reader, admin = needs(keyring, "predict"), needs(keyring, "admin")

    @post(
        "/v1/models/{model:str}/evaluations",
        guards=[admin],
        operation_class=_OrderOperation,
        status_code=202,
        summary="Judge a version on frozen labelled images",
        tags=["evaluations"],
        operation_id="order_evaluation",
    )
    async def order(request: HttpRequest, model: str) -> Ordered:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            wanted = read_json(body, EvaluationOrder)
        return await asyncio.to_thread(ordered, context, model, wanted)

    @get(
        "/v1/models/{model:str}/evaluations",
        guards=[reader],
        sync_to_thread=True,
        summary="The evaluations of a model, newest first",
        tags=["evaluations"],
        operation_id="list_evaluations",
    )
    def list_evaluations(
        model: str, version: int | None = None, limit: Annotated[int, Parameter(ge=1, le=1000)] = 100
    ) -> list[EvaluationInfo]:
        return listed(database, model, version=version, limit=limit)

    @get(
        "/v1/evaluations/{evaluation_id:str}",
        guards=[reader],
        sync_to_thread=True,
        summary="One evaluation, or how far it is",
        tags=["evaluations"],
        operation_id="get_evaluation",
    )
    def get_evaluation(evaluation_id: str) -> EvaluationState:
        return state(database, evaluation_id)

    @get(
        "/v1/evaluations/{evaluation_id:str}/{file:str}",
        guards=[reader],
        sync_to_thread=True,
        summary="A file of the report: report.json, report.html, report.zip, items.jsonl, comparison.jsonl",
        tags=["evaluations"],
        operation_id="get_evaluation_file",
    )
    def file_of(evaluation_id: str, file: str) -> Response[bytes]:
        if file not in FILES:
            raise unknown("file of an evaluation", file, sorted(FILES))
        headers = {"content-type": FILES[file], "content-security-policy": _SEALED}
        if file.endswith((".zip", ".jsonl")):
            headers["content-disposition"] = f'attachment; filename="{file}"'
        return Response(evaluation_file(context, evaluation_id, file), headers=headers)

    @get(
        "/v1/evaluations/{evaluation_id:str}/items",
        guards=[reader],
        sync_to_thread=True,
        summary="Items for a viewer of right and wrong answers",
        tags=["evaluations"],
        operation_id="list_evaluation_items",
    )
    def list_items(
        evaluation_id: str,
        correct: bool | None = None,
        truth: Annotated[str | None, Parameter(description="Only items with this class in truth.")] = None,
        predicted: Annotated[str | None, Parameter(description="Only items answered with this class.")] = None,
        cell: Annotated[
            bool,
            Parameter(
                description="Truth and answer are the two sides of one object: a cell of the confusion matrix. "
                "An empty text is the background: nothing there, or missed."
            ),
        ] = False,
        order: Annotated[str, Parameter(description="`confidence`, `-confidence` or `item`.")] = "item",
        offset: Annotated[int, Parameter(ge=0)] = 0,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        wanted = Wanted(correct, truth, predicted, cell, order, offset, limit)
        count, rows = items(context, evaluation_id, wanted)
        return {"count": count, "items": rows}

    return Router("/", route_handlers=[order, list_evaluations, get_evaluation, file_of, list_items])


def listed(
    database: Database, model: str | None = None, *, version: int | None = None, limit: int = 100
) -> list[EvaluationInfo]:
    """The evaluations of a model, or of all, newest first. Raises NotFoundError for an unknown model."""
    query = select(Evaluation, DatasetVersion.number).join(
        DatasetVersion, col(DatasetVersion.id) == col(Evaluation.dataset_version_id), isouter=True
    )
    if model is not None:
        query = query.where(Evaluation.model == model)
    if version is not None:
        query = query.where(Evaluation.version == version)
    with database.read() as session:
        if model is not None:
            registry.get_model(session, model)
        rows = session.exec(query.order_by(col(Evaluation.at).desc()).limit(limit)).all()
    return [_info(row, number) for row, number in rows]


def state(database: Database, evaluation_id: str) -> EvaluationState:
    """One evaluation, or how far its job is. Raises NotFoundError."""
    with database.read() as session:
        row = session.get(Evaluation, evaluation_id)
        data = session.get(DatasetVersion, row.dataset_version_id) if row is not None else None
        job = session.get(Job, evaluation_id)
    if row is not None:
        return EvaluationState(row.id, "done", None, None, _info(row, data.number if data else None))
    if job is None or job.kind != "retrain.evaluate":
        raise unknown("evaluation", evaluation_id, [])
    return EvaluationState(job.id, job.state, job.progress, job.error, None)


def report(context: Context, evaluation_id: str) -> dict[str, Any]:
    """report.json: {"title", "made_at", "analysis", and "against", "comparison" where there are two}.

    Raises:
        NotFoundError: no such evaluation, or it has no report.
    """
    found: dict[str, Any] = msgspec.json.decode(evaluation_file(context, evaluation_id, "report.json"))
    return found


def items(context: Context, evaluation_id: str, wanted: Wanted) -> tuple[int, list[dict[str, Any]]]:
    """(how many items fit, those of the page as dictionaries of `retrain.metrics.Outcome`).

    Raises:
        NotFoundError: as `report`. InputError: an unknown order.
    """
    if wanted.order not in ("item", "confidence", "-confidence"):
        raise InputError(f"order {wanted.order!r}: expected item, confidence or -confidence")
    decoder = msgspec.json.Decoder(_Row)
    found = []
    for line in evaluation_file(context, evaluation_id, "items.jsonl").splitlines():
        row = decoder.decode(line)
        if _fits(row, wanted):
            found.append((row.confidence, line))
    if wanted.order != "item":
        found.sort(key=lambda pair: pair[0], reverse=wanted.order[0] == "-")
    page = found[wanted.offset : wanted.offset + wanted.limit]
    return len(found), [msgspec.json.decode(line) for _, line in page]


def _fits(row: _Row, wanted: Wanted) -> bool:
    if wanted.correct is not None and row.correct != wanted.correct:
        return False
    if wanted.cell:
        pairs = row.pairs or list(zip(row.truth, row.predicted, strict=False))
        return any(wanted.truth in (None, t) and wanted.predicted in (None, p) for t, p in pairs)
    fits_truth = wanted.truth is None or wanted.truth in row.truth
    return fits_truth and (wanted.predicted is None or wanted.predicted in row.predicted)


def ordered(context: Context, model: str, wanted: EvaluationOrder) -> Ordered:
    """Queue an evaluation. Raises NotFoundError, InputError, ConflictError (a deleted version)."""
    if wanted.split not in SPLITS:
        raise InputError(f"split {wanted.split!r}: expected one of {', '.join(SPLITS)}")
    with context.database.begin() as session:
        for version in (wanted.version, wanted.against):
            if version is not None and registry.get_version(session, model, version).state == "deleted":
                raise ConflictError(f"version {version} of {model} is deleted")
        if wanted.dataset_version_id is not None:
            data = session.get(DatasetVersion, wanted.dataset_version_id)
            if data is None or data.model != model:
                raise unknown(f"dataset version of {model}", wanted.dataset_version_id, [])
        payload = {"model": model} | msgspec.to_builtins(wanted)
        job_id = jobs.send(session, "retrain.evaluate", payload)
    return Ordered(str(job_id))


def evaluation_file(context: Context, evaluation_id: str, file: str) -> bytes:
    """A file of a report. Raises NotFoundError."""
    with context.database.read() as session:
        row = session.get(Evaluation, evaluation_id)
    if row is None:
        raise unknown("evaluation", evaluation_id, [])
    try:
        return context.store.get(f"evaluations/{row.id}/{file}")
    except NotFoundError:
        raise NotFoundError(f"evaluation {evaluation_id} has no {file}") from None


def _info(row: Evaluation, number: int | None) -> EvaluationInfo:
    return EvaluationInfo(
        row.id,
        row.model,
        row.version,
        row.against,
        row.dataset_version_id,
        number,
        row.split,
        row.metrics,
        row.report,
        row.at,
    )
