"""Routes about batches: start from an upload or a folder of the server, follow, cancel, resume, fetch the results.

    POST /v1/batches/upload (the archive or video as it is) | POST /v1/batches {"path"} below SUTDOL_BATCH_FOLDER
    -> a job on the queue `batch` -> GET /v1/batches/{id}/results?format=jsonl|csv|coco|zip, sent as it is put together

Errors: InputError 400 (no such source, options that make no sense), 413 (too large); NotFoundError; ConflictError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

from litestar import Request, Router, get, post
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.params import Parameter
from litestar.response import Stream
from sqlmodel import col, select

from serving.auth import Keyring, needs
from serving.batch import results, runs, sources
from serving.batch.runs import Order, State
from serving.bodies import Bodies, read_json
from sutdol import registry
from sutdol.context import Context
from sutdol.errors import InputError, unknown
from sutdol.tables import BatchRun, new_id

HttpRequest = Request[Any, Any, Any]
MAX_BYTES = 100_000
UPLOADS = {"zip": ".zip", "video": ".mp4"}
"""Kinds that can be uploaded, and the ending that a nameless one gets."""


class PathOrder(Order, forbid_unknown_fields=True):
    """An order for something that lies on the server."""

    path: str = ""


@dataclass
class _OrderOperation(Operation):
    def __post_init__(self) -> None:
        number, text, flag = (Schema(type=t) for t in (OpenAPIType.NUMBER, OpenAPIType.STRING, OpenAPIType.BOOLEAN))
        properties: dict[str, Any] = {"model": text, "path": text, "every_s": number, "scene": number}
        properties |= {"log": flag, "pictures": flag}
        body = Schema(type=OpenAPIType.OBJECT, properties=properties, required=["model", "path"])
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(schema=body)}, required=True)


@dataclass
class _UploadOperation(Operation):
    def __post_init__(self) -> None:
        media = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY))
        self.request_body = RequestBody({"application/octet-stream": media}, required=True)


def build(context: Context, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""
    database = context.database
    caller, admin = needs(keyring, "predict"), needs(keyring, "admin")

    @post(
        "/v1/batches",
        guards=[admin],
        operation_class=_OrderOperation,
        status_code=202,
        summary="Predict everything in a folder, archive, list or video of the server",
        tags=["batches"],
        operation_id="start_batch",
    )
    async def start(request: HttpRequest) -> State:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            order = read_json(body, PathOrder)
        return await asyncio.to_thread(_start_path, context, order, _who(request))

    @post(
        "/v1/batches/upload",
        guards=[caller],
        operation_class=_UploadOperation,
        request_max_body_size=context.settings.batch_upload_bytes,
        status_code=202,
        summary="Predict everything in an archive or video that is sent",
        tags=["batches"],
        operation_id="upload_batch",
    )
    async def upload(
        request: HttpRequest,
        model: str,
        kind: Annotated[str, Parameter(description="zip or video")] = "zip",
        name: Annotated[str, Parameter(description="How the source is called in results.")] = "upload",
        every_s: float | None = None,
        scene: float | None = None,
        log: bool = False,
        pictures: bool = False,
    ) -> State:
        if kind not in UPLOADS:
            raise InputError(f"kind {kind!r}: expected one of {', '.join(UPLOADS)}")
        order = Order(model, every_s, scene, log, pictures)
        folder = context.settings.home / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, suffix=".part") as part:
            size, limit = 0, context.settings.batch_upload_bytes
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise InputError(f"upload: expected at most {limit / 1e6:,.0f} MB", status=413)
                await asyncio.to_thread(part.write, piece)
            part.flush()
            return await asyncio.to_thread(_start_upload, context, order, kind, name, Path(part.name), _who(request))

    @get(
        "/v1/batches",
        guards=[caller],
        sync_to_thread=True,
        summary="Batches, newest first",
        tags=["batches"],
        operation_id="list_batches",
    )
    def listed(model: str | None = None, limit: Annotated[int, Parameter(ge=1, le=1000)] = 100) -> list[State]:
        query = select(BatchRun).order_by(col(BatchRun.created_at).desc()).limit(limit)
        with database.read() as session:
            if model is not None:
                registry.get_model(session, model)
                query = query.where(BatchRun.model == model)
            return [runs.state(session, run) for run in session.exec(query).all()]

    @get(
        "/v1/batches/{run_id:str}",
        guards=[caller],
        sync_to_thread=True,
        summary="How far a batch is",
        tags=["batches"],
        operation_id="get_batch",
    )
    def one(run_id: str) -> State:
        with database.read() as session:
            return runs.state(session, runs.get(session, run_id))

    @post(
        "/v1/batches/{run_id:str}/cancel",
        guards=[caller],
        sync_to_thread=True,
        status_code=200,
        summary="Stop a batch; what is finished stays",
        tags=["batches"],
        operation_id="cancel_batch",
    )
    def cancel(run_id: str) -> State:
        with database.begin() as session:
            return runs.state(session, runs.cancel(session, run_id))

    @post(
        "/v1/batches/{run_id:str}/resume",
        guards=[caller],
        sync_to_thread=True,
        status_code=202,
        summary="Go on with a batch that was cancelled or failed",
        tags=["batches"],
        operation_id="resume_batch",
    )
    def resume(run_id: str) -> State:
        with database.begin() as session:
            return runs.state(session, runs.resume(session, run_id))

    @get(
        "/v1/batches/{run_id:str}/results",
        guards=[caller],
        sync_to_thread=True,
        summary="Results so far",
        tags=["batches"],
        operation_id="get_batch_results",
    )
    def fetch(run_id: str, format: str = "jsonl") -> Stream:
        if format not in results.FORMATS:
            raise unknown("format", format, sorted(results.FORMATS))
        media, write = results.FORMATS[format]
        with database.read() as session:
            run = runs.get(session, run_id)
            classes = registry.get_model(session, run.model).classes

        def parts() -> Iterator[bytes]:
            yield from write(context.store, run, classes)

        ending = {"coco": "json"}.get(format, format)
        headers = {"content-disposition": f'attachment; filename="batch-{run.id[:13]}.{ending}"'}
        return Stream(parts, media_type=media, headers=headers)

    return Router("/", route_handlers=[start, upload, listed, one, cancel, resume, fetch])


def _start_path(context: Context, order: PathOrder, who: str) -> State:
    if not context.settings.batch_folder:
        raise InputError("path: this server lets nobody name its files", hint="upload, or set SUTDOL_BATCH_FOLDER")
    root = Path(context.settings.batch_folder).resolve()
    path = (root / order.path).resolve()
    if not path.is_relative_to(root):
        raise InputError("path: expected one below the batch folder of the server")
    source = runs.source_of(path, sources.kind_of(path))
    with context.database.begin() as session:
        return runs.state(session, runs.start(session, order, source, who=who))


def _start_upload(context: Context, order: Order, kind: str, name: str, path: Path, who: str) -> State:
    shown = Path(name.replace("\\", "/")).name[:100] or "upload"
    if Path(shown).suffix.lower() not in (sources.VIDEOS if kind == "video" else {".zip"}):
        shown += UPLOADS[kind]
    with context.database.read() as session:
        registry.resolve(session, order.model)
    key = f"uploads/{new_id()}"
    context.store.put_file(key, path)
    with context.database.begin() as session:
        return runs.state(session, runs.start(session, order, {"kind": kind, "name": shown, "key": key}, who=who))


def _who(request: HttpRequest) -> str:
    return f"key {request.state.key_id}"
