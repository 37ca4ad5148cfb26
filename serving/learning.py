"""Routes about what to label and how sure to be: collections ("50 more like this cell"), and the threshold study of a version.

Errors: NotFoundError for an unknown model, class or collection; InputError for a count below 1 or a class taken for itself.
"""

from __future__ import annotations

import msgspec
from litestar import Router, delete, get, post
from litestar.connection import Request
from litestar.datastructures import State

from serving.auth import Keyring, needs
from sutdol import focus, registry, thresholds
from sutdol.context import Context
from sutdol.tables import Collection

HttpRequest = Request[object, object, State]


class CollectionBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to collect: samples that really are `truth`, and that the model calls `taken_for` where that is given."""

    truth: str
    taken_for: str | None = None
    wanted: int = 50


class CollectionInfo(msgspec.Struct):
    """One open collection and how far it is."""

    id: str
    truth: str
    taken_for: str | None
    wanted: int
    collected: int
    who: str
    created_at: float


def build(context: Context, keyring: Keyring) -> Router:
    """The routes of this file."""
    database = context.database
    labeler = needs(keyring, "label")

    @get(
        "/v1/models/{model:str}/collections",
        guards=[labeler],
        sync_to_thread=True,
        summary="What people asked to have collected",
        tags=["labels"],
        operation_id="list_collections",
    )
    def list_collections(model: str) -> list[CollectionInfo]:
        with database.read() as session:
            registry.get_model(session, model)
            return [_info(row, collected) for row, collected in focus.open_collections(session, model)]

    @post(
        "/v1/models/{model:str}/collections",
        guards=[labeler],
        sync_to_thread=True,
        summary="Collect more samples like one cell of the confusion matrix, or of one class",
        tags=["labels"],
        operation_id="open_collection",
    )
    def open_collection(request: HttpRequest, model: str, data: CollectionBody) -> CollectionInfo:
        who = f"key {request.state.key_id}"
        with database.begin() as session:
            row = focus.collect(session, model, data.truth, data.taken_for, wanted=data.wanted, who=who)
            return _info(row, 0)

    @delete(
        "/v1/models/{model:str}/collections/{collection_id:str}",
        guards=[labeler],
        sync_to_thread=True,
        summary="Stop collecting",
        tags=["labels"],
        operation_id="close_collection",
    )
    def close_collection(model: str, collection_id: str) -> None:
        with database.begin() as session:
            focus.end(session, model, collection_id)

    @get(
        "/v1/models/{model:str}/versions/{version:int}/thresholds",
        guards=[needs(keyring, "predict")],
        sync_to_thread=True,
        summary="What accuracy costs in answers withheld",
        description="The sweep over temperature and confidence that was made with the version, and what `max_risk` means.",
        tags=["models"],
        operation_id="get_thresholds",
    )
    def get_thresholds(model: str, version: int) -> thresholds.Study:
        with database.read() as session:
            registry.get_version(session, model, version)
        return thresholds.read(context.store, model, version)

    return Router("/", route_handlers=[list_collections, open_collection, close_collection, get_thresholds])


def _info(row: Collection, collected: int) -> CollectionInfo:
    return CollectionInfo(row.id, row.truth, row.taken_for, row.wanted, collected, row.who, row.created_at)
