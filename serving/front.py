"""The door of the server: the plainest and most frequent request goes straight to the engine, all others to Litestar.

    POST /v1/predict/{model}, a raw image, nothing asked beyond -> key -> body -> engine -> reply
    GET /console/live, from somebody who is logged in           -> the tick that all readers share
    everything else                                             -> Litestar's routing, parsing and hooks

Litestar costs half as much CPU as a small model takes for its answer. Both roads use the same parts (`Keyring`, `Bodies`,
`Engine`, `problems`), and the same tests run over both. A request is plain when it has none of the headers in _SPECIAL and
no query; what one road refuses, the other refuses in the same words.

Errors: as `predict`; each becomes a problem.
"""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import HTTPScope, Receive, Scope, Send

from serving import problems
from serving.answers import PLAIN
from serving.auth import Keyring
from serving.bodies import Bodies, settled
from serving.engine import Engine, Item
from serving.metrics import Metrics
from serving.slots import Slots
from serving.tickets import Ticket
from serving.web.ticks import PATH, Ticks
from sutdol.tables import new_id

PREFIX = "/v1/predict/"
MLFLOW = PREFIX + "models:/"
ROUTE = "/v1/predict/{model}"
_SPECIAL = frozenset({b"origin", b"x-request-timeout", b"content-encoding", b"traceparent"})


class Front:
    """An ASGI application; `litestar` is the one behind it."""

    def __init__(
        self,
        litestar: Litestar,
        slots: Slots,
        engine: Engine,
        keyring: Keyring,
        bodies: Bodies,
        metrics: Metrics,
        ticks: Ticks,
    ) -> None:
        self.litestar = litestar
        self._slots = slots
        self._engine = engine
        self._keyring = keyring
        self._bodies = bodies
        self._metrics = metrics
        self._ticks = ticks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and scope["method"] == "POST":
            path = scope["path"]
            if path.startswith(MLFLOW):  # `models:/digits@champion` is one name, although it has a slash
                path = PREFIX + path[len(MLFLOW) :]
                scope = {**scope, "path": path, "raw_path": path.encode()}
            if path.startswith(PREFIX) and not scope["query_string"] and "/" not in path[len(PREFIX) :]:
                headers = _plain(scope["headers"])
                if headers is not None:
                    await self._predict(scope, path[len(PREFIX) :], headers, receive, send)
                    return
        elif scope["type"] == ScopeType.HTTP and scope["path"] == PATH and scope["method"] == "GET":
            began = time.perf_counter()
            if await self._ticks.sent(scope, send):
                self._metrics.answered(PATH, "GET", 200, time.perf_counter() - began)
                return
        await self.litestar(scope, receive, send)

    async def _predict(
        self, scope: HTTPScope, model: str, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        began = time.perf_counter()
        request: Any = SimpleNamespace(headers=headers, receive=receive, method="POST")
        request_id = request_id_of(headers.get("x-request-id", ""))
        try:
            key_id = await self._keyring.check(headers.get("authorization"), "predict")
            await self._slots.ready(model)
            async with self._bodies.of(request) as body:
                item = Item(model, body, key_id, Ticket(), math.inf, PLAIN)
                self._engine.submit(item)
                reply = await settled(item.ticket, request)
            status, kind, more = 200, b"application/json", []
        except Exception as error:  # the handlers' own outermost loop: what is not expected becomes an incident
            request.url, request.state = SimpleNamespace(path=scope["path"]), SimpleNamespace(request_id=request_id)
            answer = problems.answer(request, error)
            status, kind, reply = answer.status_code or 500, problems.MEDIA_TYPE.encode(), answer.content
            more = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", kind),
                    (b"content-length", b"%d" % len(reply)),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    *more,
                ],
            }
        )
        await send({"type": "http.response.body", "body": reply, "more_body": False})
        self._metrics.answered(ROUTE, "POST", status, time.perf_counter() - began)


def request_id_of(given: str) -> str:
    """The caller's own `X-Request-Id` when it is a plain word, else a new one."""
    plain = 0 < len(given) <= 64 and given.isascii() and given.replace("-", "").replace("_", "").isalnum()
    return given if plain else new_id()


def _plain(raw: Any) -> dict[str, str] | None:
    """The headers by name, or None when one of them asks for more than a plain answer."""
    headers: dict[str, str] = {}
    for name, value in raw:
        if name in _SPECIAL or (name == b"content-type" and value[:10].lower() == b"multipart/"):
            return None
        headers[name.decode("latin-1")] = value.decode("latin-1")
    return headers
