"""The OpenAPI 3.1 document of an app at `/schema`. There is no page that loads anything from elsewhere.

Litestar makes most of it; put right here: actions (`:promote`) stand in the path as they are called, every operation names
the problems it may answer with and the key it wants, and `Allow` names every method of a path.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import msgspec
from litestar import Litestar
from litestar.connection import Request
from litestar.enums import OpenAPIMediaType
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.routes import HTTPRoute

from serving.problems import MEDIA_TYPE

_ACTIONS = {
    ("/v1/models/{model}", "post"): "/v1/models/{model}:rollback",
    ("/v1/models/{model}/versions/{version}", "post"): "/v1/models/{model}/versions/{version}:promote",
}
_ALWAYS = {
    "400": "The request cannot be used; `detail` says what was expected and found.",
    "401": "No key, or one that is unknown, expired or revoked.",
    "403": "The key has not the scope.",
    "404": "There is no such thing; known ones are listed.",
    "422": "A model that cannot be taken over, with the reason.",
    "429": "The key asks too often, or too many wait for this model; try again after `Retry-After` seconds.",
    "500": "Unexpected; quote `incident`.",
    "503": "Busy; try again after `Retry-After` seconds.",
}
_WITH_A_BODY = {
    "408": "The body did not come in time.",
    "413": "Too many bytes or pixels.",
    "415": "A kind of image, body or encoding that is not read.",
}
_CHANGING = {"409": "The state forbids it."}
_HEADERS = {
    "401": {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}},
    "429": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}},
    "503": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}},
}
_OPEN = {"/livez", "/readyz", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready"}
"""Answered without a key."""
_ABOUT = """\
Answers are JSON; failures are RFC 9457 problems (`application/problem+json`) with a stable `type`.

Two things cannot be said in OpenAPI: `GET /v1/live` never ends, it sends Server-Sent Events; and
`/v1/predict/{model}/stream` is a WebSocket: every binary message is one encoded image, every answer one text message
`{"frame": 0, "status": 200, "answer": {...}}` or `{"frame": 1, "status": 415, "problem": {...}}`, in order. The key comes in
`Authorization`, or from a browser as the subprotocol `bearer.<key>` beside `sutdol.v1`.
"""


class SchemaDocument(OpenAPIRenderPlugin):
    """The only renderer: JSON at `/schema` and `/schema/openapi.json`."""

    def __init__(self) -> None:
        super().__init__(path=["/", "/openapi.json"], media_type=OpenAPIMediaType.OPENAPI_JSON)

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return msgspec.json.encode(complete(openapi_schema))


def complete(openapi_schema: dict[str, Any]) -> dict[str, Any]:
    """Litestar's document with actions, problems and the key put right; the argument is left as it is."""
    whole = deepcopy(openapi_schema)
    for (path, method), better in _ACTIONS.items():
        operations = whole["paths"].get(path, {})
        if method in operations:
            whole["paths"].setdefault(better, {})[method] = operations.pop(method)
            if not operations:
                del whole["paths"][path]
    whole["info"]["description"] = _ABOUT
    components = whole.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = _PROBLEM
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "sut_<id>_<secret>"}}
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            for status, description in _problems_of(path, method, operation).items():
                operation["responses"][status] = {
                    "description": description,
                    "headers": _HEADERS.get(status, {}),
                    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            if path not in _OPEN:
                operation["security"] = [{"key": []}]
    return whole


def methods_of(app: Litestar) -> dict[str, list[str]]:
    """The methods of every path template; what the framework says itself to OPTIONS is only those of the first handler."""
    found: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            found.setdefault(route.path_format, set()).update(route.methods)
    return {path: sorted(methods) for path, methods in found.items()}


def allowed(methods: list[str], template: str, path: str) -> str:
    """The `Allow` header of one path; actions (`:promote`) share their template with what they act on."""
    if (template, "post") in _ACTIONS:
        action = ":" in path.rsplit("/", 1)[-1]
        methods = [m for m in methods if m == "OPTIONS" or (m == "POST") == action]
    return ", ".join(methods)


def _problems_of(path: str, method: str, operation: dict[str, Any]) -> dict[str, str]:
    """Which failures an operation may answer with, and what they mean."""
    found = dict(_ALWAYS)
    if path in _OPEN:
        found = {"500": _ALWAYS["500"]} | ({"503": _ALWAYS["503"]} if path == "/v2/health/ready" else {})
    if "requestBody" in operation:
        found |= _WITH_A_BODY
    if method != "get":
        found |= _CHANGING
    return found


_PROBLEM: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "urn:sutdol:problem:<code>, stable"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was expected and what was found."},
        "hint": {"type": "string", "description": "What to do about it."},
        "incident": {"type": "string", "description": "Where the server's log tells more."},
        "error": {"type": "string", "description": "Under /v2: the text again, where clients of that protocol look."},
    },
}
