"""Routes about copies of versions: a faster one that must pass the gate, and other forms to carry away.

    POST /v1/models/{model}/copies -> job `retrain.compress` -> a version and a decision record
    POST /v1/models/{model}/versions/{version}/exports/{format} -> job `retrain.convert` -> GET the same path: a zip
    GET  /v1/models/{model}/versions/{version}/exports -> how far each form is, and why one cannot be had

The work is done by the package that trains; here it is ordered and handed out. What cannot be had is told by the job, with
the reason, and by the GET after it.

Errors: NotFoundError (no such model, version, format, or not made yet), ConflictError (no champion, deleted, not available).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType
from sqlmodel import col, select

from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from sutdol import jobs, registry
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, NotFoundError, unknown
from sutdol.tables import Job

HttpRequest = Request[Any, Any, Any]
HOW = ("int8", "fp16", "prune")
FORMATS = ("onnx", "openvino", "tensorflow", "torchscript")
MAX_BYTES = 100_000
_LATELY = 300
"""Jobs that are looked through for the state of a form."""


class CopyOrder(msgspec.Struct, forbid_unknown_fields=True):
    """Which way, and how much faster the copy must be to be worth a swap."""

    how: Literal["int8", "fp16", "prune"]
    min_speed_up: float = 1.1


class Ordered(msgspec.Struct):
    """A job of the queue `batch`."""

    job_id: str
    state: str


class ExportInfo(msgspec.Struct):
    """One form of one version; `state` is none, queued, running, ready, failed or cancelled, `reason` why it cannot be had."""

    format: str
    state: str
    reason: str | None


@dataclass
class _CopyOperation(Operation):
    def __post_init__(self) -> None:
        properties: dict[str, Any] = {
            "how": Schema(type=OpenAPIType.STRING, enum=list(HOW)),
            "min_speed_up": Schema(type=OpenAPIType.NUMBER, minimum=1, maximum=10),
        }
        body = Schema(type=OpenAPIType.OBJECT, properties=properties, required=["how"])
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(schema=body)}, required=True)


def build(context: Context, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""
    reader, admin = needs(keyring, "predict"), needs(keyring, "admin")

    @post(
        "/v1/models/{model:str}/copies",
        guards=[admin],
        operation_class=_CopyOperation,
        status_code=202,
        summary="Make a faster copy of the champion and let the gate judge it",
        tags=["models"],
        operation_id="compress_model",
    )
    async def compress(request: HttpRequest, model: str) -> Ordered:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            order = read_json(body, CopyOrder)
        return await asyncio.to_thread(ordered, context, model, order)

    @post(
        "/v1/models/{model:str}/versions/{version:int}/exports/{format:str}",
        guards=[admin],
        sync_to_thread=True,
        status_code=202,
        summary="Make a version in another form: onnx, openvino, torchscript, tensorflow",
        tags=["models"],
        operation_id="export_version",
    )
    def export(model: str, version: int, format: str) -> Ordered:
        return order_export(context, model, version, format)

    @get(
        "/v1/models/{model:str}/versions/{version:int}/exports",
        guards=[reader],
        sync_to_thread=True,
        summary="Every form that a version can be had in, and how far it is",
        tags=["models"],
        operation_id="list_exports",
    )
    def listed(model: str, version: int) -> list[ExportInfo]:
        return exports(context, model, version)

    @get(
        "/v1/models/{model:str}/versions/{version:int}/exports/{format:str}",
        guards=[reader],
        sync_to_thread=True,
        summary="The zip, once it is made; else how far it is or why it cannot be",
        tags=["models"],
        operation_id="get_export",
    )
    def fetch(model: str, version: int, format: str) -> Response[bytes]:
        return export_file(context, model, version, format)

    return Router("/", route_handlers=[compress, export, listed, fetch])


def exports(context: Context, model: str, version: int) -> list[ExportInfo]:
    """How far every form of a version is. Raises NotFoundError."""
    newest = _newest_jobs(context, model, version)
    found = []
    for format in FORMATS:
        job = newest.get(format)
        made = context.store.has(_zip_key(model, version, format))
        state = "ready" if made else job.state if job is not None and job.state != "done" else "none"
        found.append(ExportInfo(format, state, job.error if job is not None and state == "failed" else None))
    return found


def order_export(context: Context, model: str, version: int, format: str) -> Ordered:
    """Queue the job that makes one form.

    Raises:
        NotFoundError: no such version or form. ConflictError: deleted.
    """
    if format not in FORMATS:
        raise unknown("export format", format, list(FORMATS))
    with context.database.begin() as session:
        if registry.get_version(session, model, version).state == "deleted":
            raise ConflictError(f"version {version} of {model} is deleted")
        job_id = jobs.send(session, "retrain.convert", {"model": model, "version": version, "format": format})
    return Ordered(str(job_id), "queued")


def export_file(context: Context, model: str, version: int, format: str) -> Response[bytes]:
    """The zip of one form.

    Raises:
        NotFoundError: not made yet; says how far it is. ConflictError: it cannot be had, with the reason.
    """
    if format not in FORMATS:
        raise unknown("export format", format, list(FORMATS))
    job = _newest_jobs(context, model, version).get(format)
    try:
        data = context.store.get(_zip_key(model, version, format))
    except NotFoundError:
        if job is not None and job.state == "failed":
            raise ConflictError(str(job.error)) from None
        told = f"it is {job.state}" if job is not None else "POST here first"
        raise NotFoundError(f"{format} of {model} version {version} is not there yet", hint=told) from None
    headers = {
        "content-type": "application/zip",
        "content-disposition": f'attachment; filename="{model}-v{version}-{format}.zip"',
    }
    return Response(data, headers=headers)


def _zip_key(model: str, version: int, format: str) -> str:
    return f"exports/{model}/{version}/{format}.zip"


def _newest_jobs(context: Context, model: str, version: int) -> dict[str, Job]:
    """The last job for each form of a version that somebody asked for lately."""
    newest = select(Job).where(Job.kind == "retrain.convert").order_by(col(Job.created_at).desc()).limit(_LATELY)
    found: dict[str, Job] = {}
    with context.database.read() as session:
        registry.get_version(session, model, version)
        for job in session.exec(newest):
            payload = job.payload
            if payload["model"] == model and payload["version"] == version:
                found.setdefault(str(payload["format"]), job)
    return found


def order_of(how: str, min_speed_up: str) -> CopyOrder:
    """An order as people typed it. Raises InputError."""
    try:
        return CopyOrder(msgspec.convert(how, Literal["int8", "fp16"]), float(min_speed_up))
    except (msgspec.ValidationError, ValueError):
        raise InputError(
            f"copy: expected int8 or fp16 and a number, found {how[:20]!r}, {min_speed_up[:20]!r}"
        ) from None


def ordered(context: Context, model: str, order: CopyOrder) -> Ordered:
    """Queue a faster copy of the champion. Errors as at the top of this file."""
    if not 1 <= order.min_speed_up <= 10:
        raise InputError(f"min_speed_up: expected 1 to 10, found {order.min_speed_up}")
    with context.database.begin() as session:
        registry.get_model(session, model)
        version = registry.alias(session, model, "champion")
        if version is None:
            raise ConflictError(f"{model} has no champion to make a faster copy of")
        payload = {"model": model, "version": version, **msgspec.to_builtins(order)}
        job_id = jobs.send(session, "retrain.compress", payload, unique_key=f"compress:{model}:{order.how}")
        if job_id is None:
            raise ConflictError(f"{model} is being compressed ({order.how}) already")
    return Ordered(job_id, "queued")
