"""Routes for what people do to versions: look at one and where it comes from, rename, tag, reject, delete, name an alias.

Every change leaves an event that says which key did it. Deleting asks twice: the first request is refused with what would be
lost and a token, the second one brings the token.

Errors: NotFoundError, InputError, ConflictError 409 (something stands on the version, or nobody confirmed).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, delete, get, patch, post, put
from litestar.openapi.spec import Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter

from serving import reads, schemas
from serving.auth import Keyring, needs
from serving.bodies import Bodies, read_json
from sutdol import registry, versions
from sutdol.context import Context

HttpRequest = Request[Any, Any, Any]
MAX_BYTES = 100_000


class VersionChange(msgspec.Struct, forbid_unknown_fields=True):
    """What to change; a tag with the value null is removed."""

    name: str | None = None
    tags: dict[str, str | None] = {}


class AliasChange(msgspec.Struct, forbid_unknown_fields=True):
    """Which version the alias means from now on."""

    version: int


class AliasInfo(msgspec.Struct):
    """`models:/{model}@{alias}` means `version`."""

    model: str
    alias: str
    version: int | None


@dataclass
class _ChangeOperation(Operation):
    def __post_init__(self) -> None:
        text = Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL])
        tags = Schema(type=OpenAPIType.OBJECT, additional_properties=text)
        change = schemas.record(closed=True, name=text, tags=tags)
        self.request_body = schemas.body("What to change.", {"application/json": change})


@dataclass
class _AliasOperation(Operation):
    def __post_init__(self) -> None:
        change = schemas.record(["version"], closed=True, version=Schema(type=OpenAPIType.INTEGER))
        self.request_body = schemas.body("Which version it shall mean.", {"application/json": change})


def build(context: Context, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""
    database = context.database
    reader, admin = needs(keyring, "predict"), needs(keyring, "admin")

    @get(
        "/v1/models/{model:str}/versions/{version:int}",
        guards=[reader],
        sync_to_thread=True,
        summary="One version: where it comes from, what was decided about it",
        tags=["models"],
        operation_id="get_version",
    )
    def get_version(model: str, version: int) -> versions.Lineage:
        with database.read() as session:
            return versions.lineage(session, model, version)

    @patch(
        "/v1/models/{model:str}/versions/{version:int}",
        guards=[admin],
        operation_class=_ChangeOperation,
        summary="Rename or tag a version",
        tags=["models"],
        operation_id="change_version",
    )
    async def change_version(request: HttpRequest, model: str, version: int) -> versions.Lineage:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            change, who = read_json(body, VersionChange), _who(request)

        def write() -> versions.Lineage:
            with database.begin() as session:
                if change.name is not None:
                    versions.rename(session, model, version, change.name, who=who)
                for key, value in change.tags.items():
                    versions.tag(session, model, version, key, value, who=who)
                return versions.lineage(session, model, version)

        return await asyncio.to_thread(write)

    @delete(
        "/v1/models/{model:str}/versions/{version:int}",
        guards=[admin],
        sync_to_thread=True,
        status_code=200,
        summary="Delete a version for ever; asks twice",
        description="Without `confirm` it is refused with what would be lost and the token to confirm with.",
        tags=["models"],
        operation_id="delete_version",
    )
    def delete_version(
        request: HttpRequest,
        model: str,
        version: int,
        confirm: Annotated[str, Parameter(description="The token out of the first answer.")] = "",
    ) -> versions.Deletion:
        return deleted(context, model, version, confirm=confirm, who=_who(request))

    @post(
        "/v1/models/{model:str}/versions/{version:int}/rejection",
        guards=[admin],
        sync_to_thread=True,
        status_code=200,
        summary="Say no to a version that waits for approval",
        description="It becomes `refused` and can no longer be promoted. Approving is promoting.",
        tags=["models"],
        operation_id="reject_version",
    )
    def reject_version(
        request: HttpRequest,
        model: str,
        version: int,
        reason: Annotated[str, Parameter(description="Why, for the record.")] = "",
    ) -> reads.DecisionInfo:
        with database.begin() as session:
            return reads.told(versions.reject(session, model, version, reason=reason, who=_who(request)))

    @get(
        "/v1/decisions",
        guards=[reader],
        sync_to_thread=True,
        summary="Gates, promotions, rollbacks and trials, newest first",
        tags=["models"],
        operation_id="list_decisions",
    )
    def list_decisions(
        model: str | None = None,
        waiting: Annotated[bool, Parameter(description="Only those that wait for a person.")] = False,
        before: Annotated[str | None, Parameter(description="Id of the last decision of the page before.")] = None,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    ) -> list[reads.DecisionInfo]:
        if waiting:
            return reads.waiting(database, model=model)[:limit]
        return reads.decisions(database, model=model, before=before, limit=limit)

    @put(
        "/v1/models/{model:str}/aliases/{alias:str}",
        guards=[admin],
        operation_class=_AliasOperation,
        summary="Point an alias of your own at a version",
        tags=["models"],
        operation_id="set_alias",
    )
    async def set_alias(request: HttpRequest, model: str, alias: str) -> AliasInfo:
        async with bodies.of(request, at_most=MAX_BYTES) as body:
            change, who = read_json(body, AliasChange), _who(request)

        def write() -> AliasInfo:
            with database.begin() as session:
                versions.point(session, model, alias, change.version, who=who)
            return AliasInfo(model, alias, change.version)

        return await asyncio.to_thread(write)

    @delete(
        "/v1/models/{model:str}/aliases/{alias:str}",
        guards=[admin],
        sync_to_thread=True,
        status_code=200,
        summary="Remove an alias of your own",
        tags=["models"],
        operation_id="remove_alias",
    )
    def remove_alias(request: HttpRequest, model: str, alias: str) -> AliasInfo:
        with database.begin() as session:
            if registry.alias(session, model, alias) is None:
                registry.resolve(session, f"{model}@{alias}")  # the error lists what there is
            versions.point(session, model, alias, None, who=_who(request))
        return AliasInfo(model, alias, None)

    handlers = [get_version, change_version, delete_version, reject_version, list_decisions, set_alias, remove_alias]
    return Router("/", route_handlers=handlers)


def deleted(context: Context, model: str, version: int, *, confirm: str, who: str) -> versions.Deletion:
    """Delete a version and then its files. Errors as `versions.delete`."""
    store, lease_s = context.store, context.settings.lease_s
    with context.database.begin() as session:
        plan = versions.delete(session, store, model, version, confirm=confirm, who=who, lease_s=lease_s)
    versions.remove_files(store, plan)
    return plan


def _who(request: HttpRequest) -> str:
    return f"key {request.state.key_id}"
