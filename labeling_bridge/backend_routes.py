"""The ML backend protocol as Label Studio 1.23.2 speaks it, under /label-studio; mounted with SUTDOL_ML_BACKEND=true.

    GET  /health, /      it is asked within 1 s on nearly every page of Label Studio: answered from memory
    POST /setup          {"project": "13.1795254715", "schema", "access_token", ...} -> {"model_version"}
    POST /predict        {"tasks": [...], "project", "params": {"context"}} -> {"results": [...]}, one for each task, in order
    GET  /versions       -> {"versions": [...]}
    POST /webhook        every event, and the button "train": answered and ignored; hints come by `routes`

Basic auth (user `sutdol`) on all but health and webhook, where Label Studio sends none. `/setup` brings the legacy token of the
project's owner along: it is neither read, kept nor logged. While a model is being swapped the one before it answers.

Errors: AuthError 401, NotFoundError 404, InputError 400, ModelError 500.
"""

from __future__ import annotations

import base64
import hmac
from typing import Any

from litestar import Request, Router, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.enums import MediaType
from litestar.handlers import BaseRouteHandler
from litestar.params import JSONBody

from labeling_bridge.backend import Champions, model_of, predictions, versions
from labeling_bridge.project import backend_password, version_name
from sutdol import registry
from sutdol.context import Context
from sutdol.errors import AuthError, InputError

USER = "sutdol"


def build(context: Context) -> Router:
    """The protocol's routes over this context."""
    champions = Champions(context)
    expected = base64.b64encode(f"{USER}:{backend_password(context)}".encode())

    def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        kind, _, presented = connection.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic" or not hmac.compare_digest(presented.strip().encode(), expected):
            raise AuthError("ML backend: user or password is missing or wrong", hint=f"the user is {USER}")

    @get(["/health", "/"], sync_to_thread=False, media_type=MediaType.JSON)
    def health() -> dict[str, str]:
        """Alive."""
        return {"status": "UP", "model_class": "sutdol"}

    @post("/setup", status_code=200, guards=[guard], sync_to_thread=True)
    def setup(data: JSONBody[dict[str, Any]]) -> dict[str, str]:
        """The version that answers for this project."""
        with context.database.read() as session:
            model = model_of(session, data.get("project"))
            champion = registry.alias(session, model.slug, "champion")
        return {"model_version": version_name(model.slug, champion or 0)}

    @post("/predict", status_code=200, guards=[guard], sync_to_thread=True)
    def predict(data: JSONBody[dict[str, Any]]) -> dict[str, Any]:
        """One result for each task."""
        if not isinstance(data.get("tasks"), list):
            raise InputError("predict: expected `tasks`, a list")
        with context.database.read() as session:
            model = model_of(session, data.get("project"))
        params = data.get("params")
        drawn = params.get("context") if isinstance(params, dict) else None
        return {"results": predictions(context, champions.predictor(model.slug), data["tasks"], drawn)}

    @get("/versions", guards=[guard], sync_to_thread=True)
    def known_versions(request: Request[Any, Any, State]) -> dict[str, list[str]]:
        """Versions that may serve."""
        with context.database.read() as session:
            model = model_of(session, request.query_params.get("project"))
            return {"versions": versions(session, model.slug)}

    @post("/webhook", status_code=200, sync_to_thread=False)
    def ignored() -> dict[str, Any]:
        """Taken and thrown away."""
        return {}

    return Router(path="/label-studio", route_handlers=[health, setup, predict, known_versions, ignored])
