"""The rest of the Open Inference Protocol: repository, statistics, trace and log settings, shared memory.

Every call of `tritonclient[http]` gets an answer it understands. What this server does not do is refused with the reason and
the place where it is done instead: models come from training or import, settings from the environment, tensors in the body.
Asking to undo what was never done (unregister, trace OFF) succeeds, because clients do so when they start.

Errors: InputError 400 for what is not supported; NotFoundError; BusyError 503 for a model that cannot answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Request, Router, get, post
from sqlmodel import col, select

from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from serving.inference_protocol import answering
from serving.schemas import AnyJsonOperation, of_each_path
from serving.slots import Slots
from serving.statistics import Statistics, Times
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError
from sutdol.tables import Model, ModelVersion

HttpRequest = Request[Any, Any, Any]
Json = dict[str, Any]
MAX_BYTES = 1_000_000
TRACE: Json = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "triton",
}
_MEMORY = ("systemsharedmemory", "cudasharedmemory")
_NO_MEMORY = "shared memory is not supported"
_IN_THE_BODY = "send and receive tensors in the body"


class IndexEntry(msgspec.Struct):
    """One version of one model: READY when this replica answers with it, else UNAVAILABLE and why."""

    name: str
    version: str
    state: str
    reason: str


def build(context: Context, slots: Slots, statistics: Statistics, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""
    reader, admin = needs(keyring, "predict"), needs(keyring, "admin")
    tags = ["inference protocol"]

    async def said(request: HttpRequest) -> Json:
        """The JSON object that came along; no body is an empty one."""
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            return read_json(body, dict[str, Any]) if body.strip() else {}

    @post(
        "/v2/repository/index",
        guards=[reader],
        operation_class=AnyJsonOperation,
        status_code=200,
        tags=tags,
        summary="All versions of all models, and which of them answer here",
        operation_id="v2_repository_index",
    )
    async def index(request: HttpRequest) -> list[IndexEntry]:
        only_ready = (await said(request)).get("ready") is True
        entries = await asyncio.to_thread(_index, context, slots)
        return [entry for entry in entries if entry.state == "READY" or not only_ready]

    @post(
        "/v2/repository/models/{model:str}/load",
        guards=[admin],
        operation_class=AnyJsonOperation,
        status_code=200,
        tags=tags,
        summary="Make sure that a model answers",
        operation_id="v2_load",
    )
    async def load(request: HttpRequest, model: str) -> Json:
        parameters = (await said(request)).get("parameters") or {}
        if parameters:
            raise InputError(
                f"load: expected no parameters, found {', '.join(sorted(map(str, parameters)))}",
                hint="a model's files and configuration come from training or import, not with this call",
            )
        await slots.ready(model)
        return {}

    @post(
        "/v2/repository/models/{model:str}/unload",
        guards=[admin],
        operation_class=AnyJsonOperation,
        status_code=200,
        tags=tags,
        summary="Let a model go until somebody asks for it again",
        description="Only of models that are loaded on demand; which version answers is decided by promoting.",
        operation_id="v2_unload",
    )
    async def unload(request: HttpRequest, model: str) -> Json:
        await said(request)
        if model not in slots.serving():
            await answering(slots, model, None)
        if not slots.lazy(model):
            raise InputError(
                f"unload {model!r}: not supported, it is not loaded on demand",
                hint="SUTDOL_MODELS_MEMORY_BYTES, SUTDOL_PINNED_MODELS; which version answers is decided by promoting",
            )
        await asyncio.to_thread(slots.retire, model)
        return {}

    @get("/v2/models/stats", guards=[reader], tags=tags, summary="Statistics of all models", operation_id="v2_stats")
    async def all_stats() -> Json:
        return {"model_stats": [entry for slug in sorted(slots.serving()) for entry in _stats(slots, statistics, slug)]}

    @get(
        ["/v2/models/{model:str}/stats", "/v2/models/{model:str}/versions/{version:str}/stats"],
        guards=[reader],
        tags=tags,
        summary="How often and how long a model worked",
        operation_id=of_each_path("v2_model_stats"),
    )
    async def model_stats(model: str, version: str | None = None) -> Json:
        if model not in slots.serving():
            await answering(slots, model, None)
        found = _stats(slots, statistics, model)
        if version is not None:
            found = [entry for entry in found if entry["version"] == version]
            if not found:
                await answering(slots, model, version)
        return {"model_stats": found}

    @get(
        ["/v2/trace/setting", "/v2/models/{model:str}/trace/setting"],
        guards=[reader],
        tags=tags,
        summary="Trace settings: always off",
        operation_id=of_each_path("v2_trace"),
    )
    async def trace(model: str | None = None) -> Json:
        if model is not None:
            await answering(slots, model, None)
        return TRACE

    @post(
        ["/v2/trace/setting", "/v2/models/{model:str}/trace/setting"],
        guards=[admin],
        operation_class=AnyJsonOperation,
        status_code=200,
        tags=tags,
        summary="Not supported beyond switching traces off",
        operation_id=of_each_path("v2_set_trace"),
    )
    async def set_trace(request: HttpRequest, model: str | None = None) -> Json:
        if model is not None:
            await answering(slots, model, None)
        _only_as_they_are(await said(request), TRACE, "trace", "/metrics and /v2/models/stats tell where time goes")
        return TRACE

    def log_settings() -> Json:
        level = context.settings.log_level
        return {
            "log_file": "",
            "log_info": level in ("debug", "info"),
            "log_warning": level != "error",
            "log_error": True,
            "log_verbose_level": int(level == "debug"),
            "log_format": "default",
        }

    @get("/v2/logging", guards=[reader], tags=tags, summary="Log settings", operation_id="v2_logging")
    async def logging() -> Json:
        return log_settings()

    @post(
        "/v2/logging",
        guards=[admin],
        operation_class=AnyJsonOperation,
        status_code=200,
        tags=tags,
        summary="Not supported: the log level is a setting",
        operation_id="v2_set_logging",
    )
    async def set_logging(request: HttpRequest) -> Json:
        settings = log_settings()
        _only_as_they_are(await said(request), settings, "log", "set SUTDOL_LOG_LEVEL and start again")
        return settings

    @get(
        [f"/v2/{kind}/{path}" for kind in _MEMORY for path in ("status", "region/{region:str}/status")],
        guards=[reader],
        tags=tags,
        summary="Shared memory regions: there are none",
        operation_id=of_each_path("v2_shared_memory"),
    )
    async def memory(region: str | None = None) -> list[Json]:
        if region is not None:
            raise NotFoundError(f"unknown region {region!r}: {_NO_MEMORY}", hint=_IN_THE_BODY)
        return []

    @post(
        [f"/v2/{kind}/region/{{region:str}}/register" for kind in _MEMORY],
        guards=[admin],
        operation_class=AnyJsonOperation,
        status_code=200,
        tags=tags,
        summary="Not supported",
        operation_id=of_each_path("v2_register_shared_memory"),
    )
    async def register(request: HttpRequest, region: str) -> Json:
        await said(request)
        raise InputError(f"region {region!r}: {_NO_MEMORY}", hint=_IN_THE_BODY)

    @post(
        [f"/v2/{kind}/{path}" for kind in _MEMORY for path in ("unregister", "region/{region:str}/unregister")],
        guards=[admin],
        operation_class=AnyJsonOperation,
        status_code=200,
        tags=tags,
        summary="Nothing is registered, so this succeeds",
        operation_id=of_each_path("v2_unregister_shared_memory"),
    )
    async def unregister(request: HttpRequest, region: str | None = None) -> Json:
        await said(request)
        return {}

    handlers = [index, load, unload, all_stats, model_stats, trace, set_trace, logging, set_logging]
    return Router("/", route_handlers=[*handlers, memory, register, unregister])


def _only_as_they_are(wanted: Json, settings: Json, what: str, hint: str) -> None:
    """Setting what is set already is fine, as is null, the protocol's word for the default."""
    for name, value in wanted.items():
        if name not in settings:
            raise InputError(f"{what} setting {name!r}: unknown", hint=f"known: {', '.join(settings)}")
        if value is not None and settings[name] not in (value, [value]):
            raise InputError(
                f"{what} setting {name}: changing it is not supported, it is {settings[name]!r}", hint=hint
            )


def _index(context: Context, slots: Slots) -> list[IndexEntry]:
    with context.database.read() as session:
        rows = session.exec(
            select(Model.slug, ModelVersion.version, ModelVersion.state)
            .join(ModelVersion, col(ModelVersion.model) == Model.slug, isouter=True)
            .order_by(Model.slug, col(ModelVersion.version))
        ).all()
    serving = slots.serving()
    entries = []
    for slug, version, state in rows:
        about = serving.get(slug, {})
        if version is not None and about.get("version") == version:
            entries.append(IndexEntry(slug, str(version), "READY", ""))
        else:
            champion = version is not None and about.get("champion") == version
            reason = about.get("error") or ("loaded when asked for" if about.get("resting") else "it is being loaded")
            why = reason if champion else f"not promoted ({state or 'no version'})"
            entries.append(IndexEntry(slug, str(version or ""), "UNAVAILABLE", why))
    return entries


def _stats(slots: Slots, statistics: Statistics, slug: str) -> list[Json]:
    known = statistics.of(slug)
    version = slots.serving().get(slug, {}).get("version")
    if version is not None:
        known.setdefault(version, Times())
    return [_in_tritons_words(slug, version, times) for version, times in sorted(known.items())]


def _in_tritons_words(model: str, version: int, times: Times) -> Json:
    def spent(count: int, seconds: float) -> Json:
        return {"count": count, "ns": round(seconds * 1e9)}

    whole_s = times.queued_s + times.prepared_s + times.ran_s + times.finished_s
    return {
        "name": model,
        "version": str(version),
        "last_inference": round(times.last_at * 1000),
        "inference_count": times.images,
        "execution_count": times.runs,
        "inference_stats": {
            "success": spent(times.images, whole_s),
            "fail": spent(times.refused, 0.0),
            "queue": spent(times.images, times.queued_s),
            "compute_input": spent(times.images, times.prepared_s),
            "compute_infer": spent(times.images, times.ran_s),
            "compute_output": spent(times.images, times.finished_s),
            "cache_hit": spent(0, 0.0),
            "cache_miss": spent(0, 0.0),
        },
        "batch_stats": [],
    }
