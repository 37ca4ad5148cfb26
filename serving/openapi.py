"""The OpenAPI 3.1 document of an app at `/schema`. There is no page that loads anything from elsewhere.

Litestar makes most of it; two things are put right here: actions (`:promote`) stand in the path as they are called, and
every operation names the problems it may answer with.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import msgspec
from litestar.connection import Request
from litestar.enums import OpenAPIMediaType
from litestar.openapi.plugins import OpenAPIRenderPlugin

from serving.problems import MEDIA_TYPE

_ACTIONS = {
    ("/v1/models/{model}", "post"): "/v1/models/{model}:rollback",
    ("/v1/models/{model}/versions/{version}", "post"): "/v1/models/{model}/versions/{version}:promote",
}
_PROBLEMS = {
    "400": "The request cannot be used; `detail` says what was expected and found.",
    "401": "No key, or one that is unknown, expired or revoked.",
    "403": "The key has not the scope.",
    "404": "There is no such thing; known ones are listed.",
    "408": "The body did not come in time.",
    "409": "The state forbids it.",
    "413": "Too many bytes or pixels.",
    "415": "A kind of image that is not read.",
    "500": "Unexpected; quote `incident`.",
    "503": "Busy; try again after `Retry-After` seconds.",
}
_OPEN = {"/livez", "/readyz", "/metrics"}


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
    components = whole.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = _PROBLEM
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "sut_<id>_<secret>"}}
    for path, operations in whole["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/"):
                operation["security"] = [{"key": []}]
            if path in _OPEN:
                continue
            for status, description in _PROBLEMS.items():
                operation["responses"][status] = {
                    "description": description,
                    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
    return whole


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
    },
}
