"""Data sets over HTTP: uploaded, listed, counted, compared, exported; and jobs, whose results are fetched here.

A zip goes into the store piece by piece and a `batch` worker imports it: the answer is a job. So are a frozen version, an
export and a sheet of augmented images; `/v1/jobs/{id}` says how far they are and `/v1/jobs/{id}/file` gives what they made.

    make_model | receive | imports | versions | freeze | export | job | file_of -> the handlers here, and the console

Errors: NotFoundError for a model, version or job, and for a file that is not there yet; InputError 413, 415.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request, Router, get, patch, post
from litestar.datastructures import State
from litestar.openapi.spec import Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter
from litestar.response import Stream
from litestar.status_codes import HTTP_202_ACCEPTED
from sqlmodel import col, select

from serving import reads, schemas
from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from sutdol import dataset_versions, jobs, registry
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError, unknown
from sutdol.tables import Dataset, DatasetVersion, Job, new_id

MAX_BYTES = 100_000
MAX_ZIP_BYTES = 50_000_000_000
KINDS = ("retrain.import", "retrain.freeze", "retrain.export")
FILES = {".zip": "application/zip", ".jpg": "image/jpeg"}
_MAGIC = b"PK\x03\x04"

HttpRequest = Request[Any, Any, State]
T = TypeVar("T", bound=msgspec.Struct)


class ImportInfo(msgspec.Struct):
    """One import; `report` has counts and every file left out with its reason."""

    id: str
    model: str
    format: str
    name: str
    tags: list[str]
    memo: str
    report: dict[str, Any]
    created_at: float


class DatasetVersionInfo(msgspec.Struct):
    """One frozen dataset version."""

    number: int
    digest: str
    classes: list[str]
    counts: dict[str, Any]
    name: str
    tags: list[str]
    memo: str
    created_at: float


class Words(msgspec.Struct, forbid_unknown_fields=True):
    """What people say about a version; what is missing stays as it is."""

    name: str | None = None
    tags: list[str] | None = None
    memo: str | None = None


class ExportIn(msgspec.Struct, forbid_unknown_fields=True):
    """Which version (the newest without one), and as what: voc, coco, yolo, csv, imagefolder."""

    format: str
    version: int | None = None


class PreviewIn(msgspec.Struct, forbid_unknown_fields=True):
    """Augmentation to look at: training parameters, how many images, how often each."""

    params: dict[str, Any] = {}
    images: int = 4
    count: int = 6
    family: str | None = None


class JobInfo(msgspec.Struct):
    """A piece of work; `state` is queued, running, done, failed or cancelled."""

    id: str
    kind: str
    state: str
    attempt: int
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: str | None
    created_at: float
    finished_at: float | None


class ModelIn(msgspec.Struct, forbid_unknown_fields=True):
    """A new model; `task` is classify, multilabel or detect, and without a family the task's usual one is taken."""

    name: str
    task: str
    family: str = ""
    classes: list[str] = []


@dataclass
class ModelOperation(Operation):
    """The body of `POST /v1/models`, a route of `operations`: all that share a path have to be in one router."""

    def __post_init__(self) -> None:
        task = Schema(type=OpenAPIType.STRING, enum=list(registry.DEFAULT_FAMILY))
        text, names = schemas.TEXT, schemas.several(schemas.TEXT)
        wanted = schemas.record(["name", "task"], closed=True, name=text, task=task, family=text, classes=names)
        self.request_body = schemas.body("The new model.", {"application/json": wanted})


@dataclass
class _ZipOperation(Operation):
    def __post_init__(self) -> None:
        self.request_body = schemas.body("The zip.", {"application/octet-stream": schemas.BINARY})


@dataclass
class _WordsOperation(Operation):
    def __post_init__(self) -> None:
        text = Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL])
        tags = Schema(type=[OpenAPIType.ARRAY, OpenAPIType.NULL], items=schemas.TEXT)
        words = schemas.record(closed=True, name=text, tags=tags, memo=text)
        self.request_body = schemas.body("What to say about it.", {"application/json": words})


@dataclass
class _ExportOperation(Operation):
    def __post_init__(self) -> None:
        number = Schema(type=[OpenAPIType.INTEGER, OpenAPIType.NULL])
        wanted = schemas.record(["format"], closed=True, format=schemas.TEXT, version=number)
        self.request_body = schemas.body("Which version, as what.", {"application/json": wanted})


@dataclass
class _PreviewOperation(Operation):
    def __post_init__(self) -> None:
        params = Schema(type=OpenAPIType.OBJECT, additional_properties=True)
        number = Schema(type=OpenAPIType.INTEGER, minimum=1)
        family = Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL])
        wanted = schemas.record(closed=True, params=params, images=number, count=number, family=family)
        self.request_body = schemas.body("What to look at.", {"application/json": wanted})


def build(context: Context, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""
    database = context.database
    reader, admin = (needs(keyring, scope) for scope in ("predict", "admin"))
    accepted: dict[str, Any] = {"guards": [admin], "status_code": HTTP_202_ACCEPTED, "tags": ["datasets"]}
    looked_at: dict[str, Any] = {"guards": [reader], "sync_to_thread": True, "tags": ["datasets"]}

    @post(
        "/v1/models/{model:str}/imports",
        summary="Upload a data set as a zip",
        description="The body is the zip. A `batch` worker imports it, all in or not in; the answer is its job.",
        operation_id="import_dataset",
        operation_class=_ZipOperation,
        request_max_body_size=None,
        **accepted,
    )
    async def import_dataset(
        request: HttpRequest,
        model: str,
        format: str | None = None,
        group: Annotated[str | None, Parameter(description="folder, folder:N, column:NAME or name:REGEX.")] = None,
        name: str = "",
        memo: str = "",
        resplit: bool = False,
    ) -> JobInfo:
        plan = {"format": format, "group": group, "name": name, "memo": memo, "resplit": resplit}
        return await receive(context, model, request.stream(), plan)

    @get(
        "/v1/models/{model:str}/imports",
        summary="Imports of a model, newest first",
        operation_id="list_imports",
        **looked_at,
    )
    def list_imports(model: str) -> list[ImportInfo]:
        return imports(context, model)

    @get(
        "/v1/models/{model:str}/dataset-versions",
        summary="Frozen dataset versions of a model, newest first",
        operation_id="list_dataset_versions",
        **looked_at,
    )
    def list_versions(model: str) -> list[DatasetVersionInfo]:
        return versions(context, model)

    @post(
        "/v1/models/{model:str}/dataset-versions",
        summary="Freeze the labels as they are into a dataset version",
        description="The newest one again when nothing changed since; the job's result says its number.",
        operation_id="freeze_dataset",
        sync_to_thread=True,
        **accepted,
    )
    def freeze_dataset(model: str, name: str = "") -> JobInfo:
        return freeze(context, model, name)

    @get(
        "/v1/models/{model:str}/dataset-versions/{number:int}/statistics",
        summary="Images, labels per class, imbalance and sizes of a dataset version",
        operation_id="dataset_statistics",
        **looked_at,
    )
    def statistics(model: str, number: int) -> dict[str, Any]:
        with database.read() as session:
            return dataset_versions.statistics(session, dataset_versions.get_version(session, model, number))

    @get(
        "/v1/models/{model:str}/dataset-versions/{number:int}/diff",
        summary="What changed since another dataset version",
        operation_id="dataset_diff",
        **looked_at,
    )
    def diff(model: str, number: int, since: int) -> dict[str, Any]:
        with database.read() as session:
            old, new = (dataset_versions.get_version(session, model, n) for n in (since, number))
            return dataset_versions.diff(session, old, new)

    @patch(
        "/v1/models/{model:str}/dataset-versions/{number:int}",
        summary="Give a dataset version a name, tags and a memo",
        operation_id="describe_dataset_version",
        operation_class=_WordsOperation,
        guards=[admin],
        tags=["datasets"],
    )
    async def describe_version(request: HttpRequest, model: str, number: int) -> DatasetVersionInfo:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            words = read_json(body, Words)

        return await asyncio.to_thread(describe, context, model, number, words)

    @post(
        "/v1/models/{model:str}/exports",
        summary="Make a zip of a dataset version",
        operation_id="export_dataset",
        operation_class=_ExportOperation,
        **accepted,
    )
    async def export_dataset(request: HttpRequest, model: str) -> JobInfo:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            wanted = read_json(body, ExportIn)

        return await asyncio.to_thread(export, context, model, wanted)

    @post(
        "/v1/models/{model:str}/previews",
        summary="Make a sheet of augmented training images",
        operation_id="preview_augmentation",
        operation_class=_PreviewOperation,
        **accepted,
    )
    async def preview(request: HttpRequest, model: str) -> JobInfo:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            wanted = read_json(body, PreviewIn)
        return await asyncio.to_thread(preview_ordered, context, model, wanted)

    @get("/v1/jobs/{job_id:str}", summary="How far a job is", operation_id="get_job", **looked_at)
    def get_job(job_id: str) -> JobInfo:
        return job(context, job_id)

    @get(
        "/v1/jobs/{job_id:str}/file",
        summary="The file that a job made",
        operation_id="get_job_file",
        guards=[admin],
        sync_to_thread=True,
        tags=["datasets"],
    )
    def get_file(job_id: str) -> Stream:
        return file_of(context, job_id)

    handlers = [
        import_dataset,
        list_imports,
        list_versions,
        freeze_dataset,
        statistics,
        diff,
        describe_version,
        export_dataset,
        preview,
        get_job,
        get_file,
    ]
    return Router("/", route_handlers=handlers)


def make_model(context: Context, wanted: ModelIn) -> reads.ModelInfo:
    """Name a new model. Raises InputError for a name or task that is none, ConflictError when there is one."""
    if wanted.task not in registry.DEFAULT_FAMILY:
        raise InputError(f"task {wanted.task!r}: expected one of {', '.join(registry.DEFAULT_FAMILY)}")
    family = wanted.family or registry.DEFAULT_FAMILY[wanted.task]
    with context.database.begin() as session:
        registry.create_model(session, wanted.name, task=wanted.task, classes=wanted.classes, family=family)  # type: ignore[arg-type]
    return reads.model(context.database, {}, wanted.name)


async def receive(context: Context, model: str, zipped: AsyncIterator[bytes], plan: dict[str, Any]) -> JobInfo:
    """Put a zip that comes piece by piece into the store, and send the job that imports it.

    Args:
        plan: format, group, name, memo, resplit; see `retrain.imports.Plan`.

    Raises:
        NotFoundError: no such model. InputError: 415 no zip, 413 too large, 400 nothing.
    """
    await asyncio.to_thread(_known, context, model)
    key = f"uploads/{new_id()}.zip"
    (context.settings.home / "uploads").mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=context.settings.home / "uploads") as file:
        size = 0
        async for chunk in zipped:
            if size == 0 and not chunk.startswith(_MAGIC[: len(chunk)]):
                raise InputError("expected a zip file as the body", status=415, hint="zip the folder and send the file")
            size += len(chunk)
            if size > MAX_ZIP_BYTES:
                raise InputError(f"zip: expected at most {MAX_ZIP_BYTES:,} bytes", status=413)
            await asyncio.to_thread(file.write, chunk)
        if size == 0:
            raise InputError("expected a zip file as the body, found nothing")
        file.flush()
        await asyncio.to_thread(context.store.put_file, key, Path(file.name))
    return await asyncio.to_thread(_send, context, "retrain.import", {"model": model, "key": key, **plan})


def imports(context: Context, model: str) -> list[ImportInfo]:
    """Imports of a model, newest first. Raises NotFoundError."""
    query = select(Dataset).where(Dataset.model == model).order_by(col(Dataset.created_at).desc())
    with context.database.read() as session:
        registry.get_model(session, model)
        return [_told(row, ImportInfo) for row in session.exec(query)]


def versions(context: Context, model: str, *, limit: int | None = None) -> list[DatasetVersionInfo]:
    """Frozen versions of a model, newest first. Raises NotFoundError."""
    query = select(DatasetVersion).where(DatasetVersion.model == model).order_by(col(DatasetVersion.number).desc())
    with context.database.read() as session:
        registry.get_model(session, model)
        return [_told(row, DatasetVersionInfo) for row in session.exec(query.limit(limit))]


def freeze(context: Context, model: str, name: str = "") -> JobInfo:
    """Send the job that freezes the labels as they are. Raises NotFoundError."""
    _known(context, model)
    return _send(context, "retrain.freeze", {"model": model, "name": name})


def describe(context: Context, model: str, number: int, words: Words) -> DatasetVersionInfo:
    """Say something about a version. Raises NotFoundError."""
    with context.database.begin() as session:
        row = dataset_versions.get_version(session, model, number)
        dataset_versions.describe(row, name=words.name, tags=words.tags, memo=words.memo)
        session.add(row)
    return _told(row, DatasetVersionInfo)


def export(context: Context, model: str, wanted: ExportIn) -> JobInfo:
    """Send the job that makes a zip of a version. Raises NotFoundError."""
    with context.database.read() as session:
        version = dataset_versions.get_version(session, model, wanted.version)
    payload = {"model": model, "version": version.number, "format": wanted.format}
    return _send(context, "retrain.export", payload)


def job(context: Context, job_id: str) -> JobInfo:
    """How far a job is. Raises NotFoundError."""
    return _told(_job(context, job_id), JobInfo)


def jobs_of(context: Context, model: str, *, limit: int = 10) -> list[JobInfo]:
    """The newest imports, versions and exports of a model that are under way, have failed, or left a file."""
    shown = (col(Job.queue) == "batch", col(Job.state).in_(("queued", "running", "done", "failed")))
    query = select(Job).where(*shown, col(Job.kind).in_(KINDS)).order_by(col(Job.id).desc()).limit(100)
    with context.database.read() as session:
        rows = [row for row in session.exec(query) if row.payload.get("model") == model]
    kept = [row for row in rows if row.state != "done" or row.kind == "retrain.export"]
    return [_told(row, JobInfo) for row in kept[:limit]]


def file_of(context: Context, job_id: str) -> Stream:
    """The file that a job made. Raises NotFoundError."""
    job = _job(context, job_id)
    key = str((job.result or {}).get("key", ""))
    if job.state != "done" or not key.startswith(("exports/", "previews/")):
        raise NotFoundError(f"job {job_id} has no file: it is {job.state}")
    name = key.rsplit("/", 1)[1]
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Stream(context.store.chunks(key), media_type=FILES[Path(name).suffix], headers=headers)


def preview_ordered(context: Context, model: str, wanted: PreviewIn) -> JobInfo:
    """Queue a sheet of augmented images. Raises NotFoundError, InputError."""
    _known(context, model)
    if not (1 <= wanted.images <= 32 and 1 <= wanted.count <= 16):
        raise InputError("preview: expected 1 to 32 images and a count of 1 to 16")
    return _send(context, "retrain.preview", {"model": model, **msgspec.to_builtins(wanted)})


def preview_of(context: Context, job_id: str) -> tuple[JobInfo, dict[str, Any]]:
    """The job of a sheet and what it was asked for. Raises NotFoundError."""
    job = _job(context, job_id)
    if job.kind != "retrain.preview":
        raise unknown("preview", job_id, [])
    return _told(job, JobInfo), job.payload


def _known(context: Context, model: str) -> None:
    with context.database.read() as session:
        registry.get_model(session, model)


def _send(context: Context, kind: str, payload: dict[str, Any]) -> JobInfo:
    with context.database.begin() as session:
        job_id = jobs.send(session, kind, payload)
    return _told(_job(context, str(job_id)), JobInfo)


def _job(context: Context, job_id: str) -> Job:
    with context.database.read() as session:
        job = session.get(Job, job_id)
    if job is None:
        raise unknown("job", job_id, [])
    return job


def _told(row: Any, kind: type[T]) -> T:
    return kind(**{name: getattr(row, name) for name in kind.__struct_fields__})
