"""Routes for what people do to versions: look at one and where it comes from, rename, tag, delete, name an alias.

Every change leaves an event that says which key did it. Deleting asks twice: the first request is refused with what would be
lost and a token, the second one brings the token.

Errors: NotFoundError, InputError, ConflictError 409 (something stands on the version, or nobody confirmed).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, delete, get, patch, put
from litestar.openapi.spec import Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter

from serving import schemas
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
    database, store, lease_s = context.database, context.store, context.settings.lease_s
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
        with database.begin() as session:
            plan = versions.delete(session, store, model, version, confirm=confirm, who=_who(request), lease_s=lease_s)
        versions.remove_files(store, plan)
        return plan

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

    return Router("/", route_handlers=[get_version, change_version, delete_version, set_alias, remove_alias])


def _who(request: HttpRequest) -> str:
    return f"key {request.state.key_id}"
