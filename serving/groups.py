"""Routes about what the model does not know, group by group; see `sutdol.unfamiliar`.

    GET  /v1/models/{model}/unfamiliar        the groups
    POST /v1/models/{model}/unfamiliar/name   call tasks by a class, new or known
    POST /v1/models/{model}/unfamiliar/ask    send tasks to Label Studio before everything else

Errors: NotFoundError for an unknown model; InputError for a class name that is none, or no tasks that still wait.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request, Router, get, post
from litestar.datastructures import State
from litestar.openapi.spec import Operation

from serving import schemas
from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from serving.samples import studio_url
from sutdol import unfamiliar
from sutdol.context import Context
from sutdol.settings import Settings
from sutdol.tables import LabelTask
from sutdol.unfamiliar import WAITING

MAX_BYTES = 100_000
HttpRequest = Request[Any, Any, State]


class Member(msgspec.Struct):
    """One task of a group; `studio_url` once it is in Label Studio."""

    task_id: str
    sample_id: str
    state: str
    ood_score: float | None
    answer: dict[str, Any]
    studio_url: str | None


class GroupInfo(msgspec.Struct):
    """Tasks that look alike, the most typical first; `grouped` is false for those that cannot be compared."""

    tasks: list[Member]
    grouped: bool
    said: list[tuple[str, int]]
    """What the model called them, most frequent first; an empty text for nothing found."""
    waiting: int
    """How many nobody was asked about yet; only those can be named or sent."""


class TasksIn(msgspec.Struct, forbid_unknown_fields=True):
    """Which tasks."""

    tasks: list[str]


class NameIn(msgspec.Struct, forbid_unknown_fields=True):
    """Which tasks, and what they show."""

    tasks: list[str]
    class_name: str


class Named(msgspec.Struct):
    """How many images are labelled now, and how many tasks are on their way to Label Studio."""

    labelled: int
    asked: int


@dataclass
class _AskOperation(Operation):
    def __post_init__(self) -> None:
        wanted = schemas.record(["tasks"], closed=True, tasks=schemas.several(schemas.TEXT))
        self.request_body = schemas.body("Which tasks.", {"application/json": wanted})


@dataclass
class _NameOperation(Operation):
    def __post_init__(self) -> None:
        tasks = schemas.several(schemas.TEXT)
        wanted = schemas.record(["tasks", "class_name"], closed=True, tasks=tasks, class_name=schemas.TEXT)
        self.request_body = schemas.body("Which tasks, and what they show.", {"application/json": wanted})


def build(context: Context, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""
    labeler, admin = needs(keyring, "label"), needs(keyring, "admin")

    @get(
        "/v1/models/{model:str}/unfamiliar",
        guards=[labeler],
        sync_to_thread=True,
        summary="What the model does not know, in groups that look alike",
        tags=["labels"],
        operation_id="list_unfamiliar",
    )
    def list_unfamiliar(model: str) -> list[GroupInfo]:
        return groups_of(context, model)

    @post(
        "/v1/models/{model:str}/unfamiliar/name",
        guards=[admin],
        status_code=200,
        operation_class=_NameOperation,
        summary="Call a group of images by a class",
        description="Images of one class are labelled with it; for a detector the tasks go to Label Studio to be drawn.",
        tags=["labels"],
        operation_id="name_unfamiliar",
    )
    async def name_unfamiliar(request: HttpRequest, model: str) -> Named:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            wanted = read_json(body, NameIn)
        who = f"key {request.state.key_id}"
        return await asyncio.to_thread(name, context, model, wanted.class_name, wanted.tasks, who)

    @post(
        "/v1/models/{model:str}/unfamiliar/ask",
        guards=[labeler],
        status_code=200,
        operation_class=_AskOperation,
        summary="Send a group of images to Label Studio before everything else",
        tags=["labels"],
        operation_id="ask_unfamiliar",
    )
    async def ask_unfamiliar(request: HttpRequest, model: str) -> Named:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            wanted = read_json(body, TasksIn)
        return await asyncio.to_thread(ask, context, model, wanted.tasks, f"key {request.state.key_id}")

    return Router("/", route_handlers=[list_unfamiliar, name_unfamiliar, ask_unfamiliar])


def groups_of(context: Context, model: str) -> list[GroupInfo]:
    """The groups, the largest first. Raises NotFoundError."""
    with context.database.read() as session:
        found = unfamiliar.groups_of(session, model)
    return [GroupInfo([_member(row, context.settings) for row in g.tasks], g.grouped, g.said, g.waiting) for g in found]


def name(context: Context, model: str, class_name: str, tasks: list[str], who: str) -> Named:
    """Call tasks by a class. Raises NotFoundError, InputError."""
    with context.database.begin() as session:
        return Named(**unfamiliar.name(session, model, class_name, tasks, who=who))


def ask(context: Context, model: str, tasks: list[str], who: str) -> Named:
    """Send tasks to Label Studio. Raises NotFoundError, InputError."""
    with context.database.begin() as session:
        return Named(0, unfamiliar.ask(session, model, tasks, who=who))


def _member(row: LabelTask, settings: Settings) -> Member:
    there = row.state not in WAITING and row.project_id is not None and row.studio_task_id is not None
    url = studio_url(settings, row.project_id or 0, row.studio_task_id or 0) if there else None
    return Member(row.id, row.sample_id, row.state, row.ood_score, row.answer, url)
