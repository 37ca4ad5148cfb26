"""What every page is given: the programs' parts it may ask, the sessions, the renderer; and the two gates in front of it.

request -> Desk.visitor(scope) -> page           (strangers are sent to the log-in page)
request -> Desk.form(scope) -> visitor, fields   (only forms of our own pages)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from litestar import Request, Response

from serving.auth import Keyring
from serving.bodies import Bodies
from serving.diagnosis import Standing
from serving.engine import Engine
from serving.log import LogWriter
from serving.slots import Slots
from serving.training import Families
from serving.web.render import Pages, go
from serving.web.session import Sessions, Visitor
from serving.web.ticks import Ticks
from sutdol import keys
from sutdol.context import Context
from sutdol.errors import AuthError, SutdolError

MAX_FORM_BYTES = 100_000
HttpRequest = Request[Any, Any, Any]


@dataclass(frozen=True)
class Desk:
    """Made once by the server's composition root, shared by all pages."""

    context: Context
    slots: Slots
    engine: Engine
    bodies: Bodies
    sessions: Sessions
    pages: Pages
    families: Families
    standing: Standing
    log: LogWriter
    ticks: Ticks

    async def visitor(self, request: HttpRequest, scope: str) -> Visitor:
        """Who asks.

        Raises:
            AuthError: 401 for strangers (see `failed`), 403 for keys without `scope`.
        """
        visitor = await self.sessions.visitor(request)
        if visitor is None:
            raise AuthError("nobody is logged in")
        if not visitor.may(scope):
            raise AuthError(f"this key has the scopes {', '.join(visitor.scopes)}, this needs {scope!r}", status=403)
        return visitor

    async def form(self, request: HttpRequest, scope: str | None) -> tuple[Visitor, dict[str, str]]:
        """Who sends one of our forms, and its fields; `scope` None is enough for whoever is logged in.

        Raises:
            AuthError: as `visitor`, and 403 when the form is not ours. InputError: too large, or no form.
        """
        visitor = await self.sessions.visitor(request)
        if visitor is None:
            raise AuthError("nobody is logged in")
        fields = await self.read_form(request)
        self.sessions.check_form(request, visitor, fields.get("csrf", ""))
        if scope is not None and not visitor.may(scope):
            raise AuthError(f"this key has the scopes {', '.join(visitor.scopes)}, this needs {scope!r}", status=403)
        return visitor, fields

    async def read_form(self, request: HttpRequest) -> dict[str, str]:
        """The fields of a plain form; of several of one name the last."""
        async with self.bodies.of(request, at_most=MAX_FORM_BYTES) as body:
            return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=200))

    def failed(self, request: HttpRequest, error: SutdolError) -> Response[Any]:
        """An expected failure as a page; strangers are sent to the log-in page."""
        if isinstance(error, AuthError) and error.status == 401:
            if request.headers.get("hx-request"):  # a part of a page: the whole page has to go to the log-in
                return Response(b"", status_code=204, headers={"HX-Redirect": "/console/login"})
            return go("/console/login")
        return self.pages.show(request, "problem.html", status=error.status, error=error)


def make_sessions(context: Context, keyring: Keyring) -> Sessions:
    """The sessions of this installation; all replicas share the secret."""
    secret = keys.secret(context.database, "console-session")
    return Sessions(keyring, secret, secure=context.settings.url.startswith("https://"))
