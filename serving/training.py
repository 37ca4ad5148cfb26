"""Training runs over HTTP: the list, one with its curves, start, cancel.

Nothing is trained here and no family is known here: a run is a row and a job, which a `train` worker takes. Parameters that
the family does not know end the run at once, with the reason in `error`.

Errors: NotFoundError for a model or run, ConflictError when one is under way already or has ended, InputError.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post
from litestar.openapi.spec import Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter
from litestar.status_codes import HTTP_202_ACCEPTED

from serving import schemas
from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from sutdol import runs
from sutdol.context import Context
from sutdol.errors import ConflictError

HttpRequest = Request[Any, Any, Any]
MAX_BYTES = 100_000


class CandidateIn(msgspec.Struct, forbid_unknown_fields=True):
    """One network to compare; without a family it is the model's own."""

    family: str | None = None
    params: dict[str, Any] = {}


class RunIn(msgspec.Struct, forbid_unknown_fields=True):
    """What to train; `params` hold for every candidate."""

    model: str
    params: dict[str, Any] = {}
    candidates: list[CandidateIn] = []
    cause: str = "by hand"


class RunInfo(msgspec.Struct):
    """A run; `state` is queued, preparing, waiting, training, exporting, evaluating, deciding, done, failed or cancelled."""

    id: str
    model: str
    family: str
    params: dict[str, Any]
    cause: str
    state: str
    version: int | None
    parent_version: int | None
    dataset_version_id: str | None
    epoch: int
    epochs: int
    eta_s: float | None
    timings: dict[str, Any] | None
    """Seconds of each finished step."""
    hints: list[str] | None
    """What the curves say, in words."""
    error: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None


class CandidateInfo(msgspec.Struct):
    """One network of a run; `curve` has every number of every epoch, `metrics` those of the val split at its end."""

    number: int
    family: str
    params: dict[str, Any]
    state: str
    epoch: int
    epochs: int
    score: float | None
    training_s: float
    metrics: dict[str, Any] | None
    error: str | None
    curve: list[dict[str, Any]]


class RunDetail(RunInfo):
    """A run with its candidates, the best first, and what its job says right now."""

    candidates: list[CandidateInfo]
    progress: dict[str, Any] | None


@dataclass
class _StartOperation(Operation):
    def __post_init__(self) -> None:
        params = Schema(type=OpenAPIType.OBJECT, additional_properties=True)
        family = Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL])
        candidate = schemas.record(closed=True, family=family, params=params)
        several = schemas.several(candidate, at_most=runs.MAX_CANDIDATES)
        wanted = schemas.record(
            ["model"], closed=True, model=schemas.TEXT, params=params, candidates=several, cause=schemas.TEXT
        )
        self.request_body = schemas.body("What to train.", {"application/json": wanted})


def build(context: Context, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""
    database = context.database
    reader, admin = (needs(keyring, scope) for scope in ("predict", "admin"))

    @get(
        "/v1/runs",
        summary="Training runs, newest first",
        tags=["training"],
        operation_id="runs",
        guards=[reader],
        sync_to_thread=True,
    )
    def list_runs(
        model: str | None = None, limit: Annotated[int, Parameter(ge=1, le=500, description="Runs at most.")] = 50
    ) -> list[RunInfo]:
        with database.read() as session:
            return msgspec.convert(runs.overview(session, model=model, limit=limit), list[RunInfo])

    @get(
        "/v1/runs/{run_id:str}",
        summary="One training run with its curves",
        tags=["training"],
        operation_id="run",
        guards=[reader],
        sync_to_thread=True,
    )
    def one_run(run_id: str) -> RunDetail:
        with database.read() as session:
            return msgspec.convert(runs.detail(session, run_id), RunDetail)

    @post(
        "/v1/runs",
        guards=[admin],
        operation_class=_StartOperation,
        status_code=HTTP_202_ACCEPTED,
        summary="Start a training run",
        description="With several candidates the weak ones are given up early and the best on val is judged.",
        tags=["training"],
        operation_id="start_run",
    )
    async def start_run(request: HttpRequest) -> RunDetail:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            wanted = read_json(body, RunIn)

        def write() -> RunDetail:
            candidates = [msgspec.to_builtins(one) for one in wanted.candidates] or None
            with database.begin() as session:
                run = runs.queue(session, wanted.model, cause=wanted.cause, params=wanted.params, candidates=candidates)
                if run is None:
                    raise ConflictError(f"{wanted.model} is being trained already", hint="see /v1/runs")
                return msgspec.convert(runs.detail(session, run.id), RunDetail)

        return await asyncio.to_thread(write)

    @post(
        "/v1/runs/{run_id:str}/cancel",
        summary="Stop a training run",
        tags=["training"],
        operation_id="cancel_run",
        guards=[admin],
        status_code=HTTP_202_ACCEPTED,
        sync_to_thread=True,
    )
    def cancel_run(run_id: str) -> RunDetail:
        with database.begin() as session:
            run = runs.cancel(session, run_id)
            return msgspec.convert(runs.detail(session, run.id), RunDetail)

    return Router("/", route_handlers=[list_runs, one_run, start_run, cancel_run])
