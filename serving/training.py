"""Training runs over HTTP: the list, one with its curves, start, cancel.

Nothing is trained here: a run is a row and a job, which a `train` worker takes. What can be trained is told by `families`, a
function that the command line hands over; parameters that a family does not know are refused, or end the run at once with the
reason in `error` where nobody could tell.

Errors: NotFoundError for a model or run, ConflictError when one is under way already or has ended, InputError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
from sutdol import registry, runs
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError

HttpRequest = Request[Any, Any, Any]
MAX_BYTES = 100_000


Families = Callable[[str, list[str], str, dict[str, Any]], list[dict[str, Any]]]
"""task, classes, the model's family and parameters -> what can be trained, each as `FamilyInfo` says."""
FORM = ("image_size", "batch", "epochs", "lr", "hflip", "vflip", "rotate_deg", "brightness", "crop", "mosaic")
"""Numbers that a form asks for, where the family has them."""
SWITCHES = ("head_only", "pretrained")
AUGMENTATION = FORM[4:]
_WARM = {"epochs": "warm_epochs", "lr": "warm_lr"}
"""What replaces them in a training that starts from the champion; a person who says how many means both."""


def no_families(task: str, classes: list[str], own: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a server that was not told what can be trained."""
    return []


class FamilyInfo(msgspec.Struct):
    """A family that can do the model's task; `missing` libraries keep workers from training it where it was looked up."""

    name: str
    missing: list[str]
    presets: dict[str, dict[str, Any]]
    params: dict[str, Any]
    """Every parameter with the value that a run would have."""


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
    """A run; `state` is queued, preparing, waiting, training, exporting, evaluating, deciding, done, failed or cancelled.

    `ahead` is how many others are before a queued one.
    """

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
    ahead: int | None


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


def build(context: Context, keyring: Keyring, bodies: Bodies, families: Families) -> Router:
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

        return await asyncio.to_thread(started, context, wanted)

    @get(
        "/v1/models/{model:str}/families",
        summary="What can be trained for a model, with presets and parameters",
        tags=["training"],
        operation_id="list_families",
        guards=[reader],
        sync_to_thread=True,
    )
    def list_families(model: str) -> list[FamilyInfo]:
        return families_of(context, families, model)

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

    return Router("/", route_handlers=[list_runs, one_run, start_run, list_families, cancel_run])


def started(context: Context, wanted: RunIn) -> RunDetail:
    """Queue a run. Errors as at the top of this file."""
    candidates = [msgspec.to_builtins(one) for one in wanted.candidates] or None
    with context.database.begin() as session:
        run = runs.queue(session, wanted.model, cause=wanted.cause, params=wanted.params, candidates=candidates)
        if run is None:
            raise ConflictError(f"{wanted.model} is being trained already", hint="see /v1/runs")
        return msgspec.convert(runs.detail(session, run.id), RunDetail)


def families_of(context: Context, families: Families, model: str) -> list[FamilyInfo]:
    """The families that can do a model's task, its own first. Raises NotFoundError."""
    with context.database.read() as session:
        known = registry.get_model(session, model)
    return msgspec.convert(families(known.task, known.classes, known.family, known.params), list[FamilyInfo])


def typed(fields: dict[str, str]) -> dict[str, Any]:
    """Training parameters as a form brings them: texts, those left empty are not there.

    Raises:
        InputError: not a number.

    >>> typed({"preset": "fast", "epochs": "3", "rotate_deg": "7,5", "head_only": "on", "mosaic": "", "model": "x"})
    {'preset': 'fast', 'epochs': 3, 'warm_epochs': 3, 'rotate_deg': 7.5, 'head_only': True}
    """
    found: dict[str, Any] = {"preset": fields["preset"]} if fields.get("preset") else {}
    for name in FORM:
        text = fields.get(name, "").strip().replace(",", ".")
        if not text:
            continue
        whole = name in ("image_size", "batch", "epochs")
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = -1
        if not 0 <= value < 1e6 or (whole and value < 1):
            kind = "a whole number from 1 on" if whole else "a number from 0 on"
            raise InputError(f"{name}: expected {kind}, found {text[:20]!r}")
        found[name] = value
        if name in _WARM:
            found[_WARM[name]] = value
    return found | {name: True for name in SWITCHES if fields.get(name)}
