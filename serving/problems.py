"""Every failure that reaches a client is an RFC 9457 problem, `application/problem+json`.

    SutdolError            its own code, status, message, hint
    Litestar's HTTP errors 404 of the router, 405, 413, 400 of a parameter; the code is that of the status
    anything else          500 with an incident id only; the traceback goes to the log under the same id

A body that Litestar's own parsers choke on (not UTF-8, nested too deeply) is the caller's mistake, although they raise
UnicodeDecodeError and RecursionError for it.
"""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from sutdol.errors import AuthError, BusyError, SetupError, StudioError, SutdolError, TrainingError
from sutdol.tables import new_id

MEDIA_TYPE = "application/problem+json"
Connection = ASGIConnection[Any, Any, Any, Any]
_FOR_OPERATORS = (SetupError, TrainingError)
"""Their texts may hold paths and settings of the server."""


class Problem(msgspec.Struct, omit_defaults=True):
    """The body of every answer that is not a success."""

    type: str
    """`urn:sutdol:problem:<code>`; the code is stable, texts are not."""
    title: str
    status: int
    detail: str
    """What was expected and what was found."""
    hint: str | None = None
    """What to do about it."""
    incident: str | None = None
    """On 500 only: quote it to the operator."""
    error: str | None = None
    """Under /v2 only: the same text where clients of the Open Inference Protocol look for it."""


def handlers() -> ExceptionHandlersMap:
    """For `Litestar(exception_handlers=...)`."""
    return {SutdolError: _expected, HTTPException: _from_litestar, Exception: _unexpected}


def response(
    request: Request[Any, Any, Any], problem: Problem, headers: dict[str, str] | None = None
) -> Response[bytes]:
    """The problem as the answer to this request."""
    path = request.url.path
    if path == "/v2" or path.startswith("/v2/"):
        problem.error = f"{problem.detail} ({problem.hint})" if problem.hint else problem.detail
    return Response(
        msgspec.json.encode(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers or {}
    )


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Whatever was raised, as the response to it; for those who are not behind Litestar's own handlers."""
    return _expected(request, error) if isinstance(error, SutdolError) else _unexpected(request, error)


def of(connection: Connection, error: SutdolError) -> Problem:
    """An expected failure as a problem; what only operators may read is logged and becomes an incident."""
    if isinstance(error, _FOR_OPERATORS):
        return _incident(connection, error)
    if error.status >= 500 and not isinstance(error, BusyError | StudioError):
        structlog.get_logger("serving").error(
            "request failed", path=connection.url.path, error=str(error), exc_info=error
        )
    return _problem(error.code, error.status, error.message, hint=error.hint)


def _expected(request: Request[Any, Any, Any], error: SutdolError) -> Response[bytes]:
    headers = {}
    if isinstance(error, AuthError) and error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(error.retry_after_s)
    return response(request, of(request, error), headers)


def _from_litestar(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    if error.status_code >= 500:
        return _unexpected(request, error)
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is no {request.url.path} here"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible on {request.url.path}"
    elif isinstance(error.extra, list) and error.extra:
        first = error.extra[0]
        if isinstance(first, dict):
            detail = f"{first.get('key', 'request')}: {first.get('message', detail)}"
    status = HTTPStatus(error.status_code)
    code = status.phrase.lower().replace(" ", "-")
    return response(request, _problem(code, status, detail), dict(error.headers or {}))


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    if isinstance(error, UnicodeDecodeError | RecursionError) and _while_reading_the_body(error):
        return response(
            request, _problem("invalid-input", 400, "body: expected UTF-8 JSON that is not nested too deeply")
        )
    return response(request, _incident(request, error))


def _incident(connection: Connection, error: Exception) -> Problem:
    incident = str(getattr(connection.state, "request_id", None) or new_id())
    structlog.get_logger("serving").error(
        "incident", incident=incident, method=connection.scope.get("method"), path=connection.url.path, exc_info=error
    )
    text = "something went wrong here; it is in the server's log under this incident"
    return _problem("incident", 500, text, incident=incident)


def _while_reading_the_body(error: Exception) -> bool:
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__, limit=None)]
    return any("litestar/_kwargs/" in name or "litestar/serialization/" in name for name in files)


def _problem(code: str, status: int, detail: str, *, hint: str | None = None, incident: str | None = None) -> Problem:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else code
    return Problem(f"urn:sutdol:problem:{code}", phrase, int(status), detail, hint, incident)
