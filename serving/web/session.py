"""Who is at the console: an API key, given once, becomes a signed cookie; unsafe requests need a token of our own pages.

    key -> Keyring.check -> cookie `{key id}.{expiry}.{signature}` -> each request: signature, expiry, key still alive
    cookie -> CSRF token (HMAC) -> hidden field of every form -> compared on every unsafe request, with the Origin

The cookie is HttpOnly and SameSite=Strict, and Secure where the console is reached by https. Nothing is stored: a key that is
revoked or expires ends its sessions with the next request. Wrong keys are counted by address: after FAILURES in WINDOW_S
the log-in waits.

Errors: AuthError 401 (nobody is logged in), 403 (the key may not do this, or the form is not ours), 429 as BusyError.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.datastructures import Cookie

from serving.auth import Keyring
from sutdol.errors import AuthError, BusyError

COOKIE = "sutdol_session"
LIFETIME_S = 12 * 3600.0
FAILURES = 8
WINDOW_S = 60.0
_ADDRESSES = 10_000
"""Addresses whose failures are remembered; the oldest are forgotten first."""

HttpRequest = Request[Any, Any, Any]


@dataclass(frozen=True)
class Visitor:
    """Who asks: the key's id, what it may do, and the token that its forms must carry."""

    key_id: str
    name: str
    scopes: tuple[str, ...]
    csrf: str

    @property
    def who(self) -> str:
        """How records name this visitor."""
        return f"key {self.key_id}"

    def may(self, scope: str) -> bool:
        """Whether this key has `scope`; admin includes the others."""
        return scope in self.scopes or "admin" in self.scopes


class Sessions:
    """Log-in, recognition and log-out; stateless but for the count of wrong keys.

    Args:
        secret: shared by all replicas of the installation.
        secure: the cookie is only sent over https.
    """

    def __init__(self, keyring: Keyring, secret: str, *, secure: bool) -> None:
        self._keyring = keyring
        self._secret = secret.encode()
        self._secure = secure
        self._failures: dict[str, deque[float]] = {}

    async def log_in(self, request: HttpRequest, key: str) -> Cookie:
        """The cookie for this key.

        Raises:
            AuthError: not a valid key. BusyError 429: too many wrong keys from this address.
        """
        address = request.client.host if request.client else ""
        failures = self._failures.get(address, deque())
        while failures and failures[0] < time.monotonic() - WINDOW_S:
            failures.popleft()
        if len(failures) >= FAILURES:
            wait_s = int(failures[0] + WINDOW_S - time.monotonic()) + 1
            error = BusyError(f"{len(failures)} wrong keys in a minute: try again later", retry_after_s=wait_s)
            error.status = 429
            raise error
        try:
            key_id = await self._keyring.check(f"Bearer {key.strip()}", None)
        except AuthError:
            self._remember(address, failures)
            raise
        self._failures.pop(address, None)
        expires = int(time.time() + LIFETIME_S)
        return self._cookie(f"{key_id}.{expires}.{self._sign(f'session:{key_id}.{expires}')}", int(LIFETIME_S))

    def log_out(self) -> Cookie:
        """A cookie that ends the session in this browser."""
        return self._cookie("", 0)

    async def visitor(self, request: HttpRequest) -> Visitor | None:
        """Who is logged in, or None."""
        return await self.holder(request.cookies.get(COOKIE, ""))

    async def holder(self, value: str) -> Visitor | None:
        """Whose cookie this is, or None."""
        key_id, _, rest = value.partition(".")
        expires, _, signature = rest.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(f"session:{key_id}.{expires}").encode()):
            return None
        if float(expires) < time.time():
            return None
        row = await self._keyring.alive(key_id)
        return Visitor(key_id, row.name, tuple(row.scopes), self._sign(f"csrf:{value}")) if row else None

    def check_form(self, request: HttpRequest, visitor: Visitor, presented: str) -> None:
        """Raise AuthError 403 unless the request comes from one of our own pages."""
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
        if foreign or not hmac.compare_digest(presented.encode(), visitor.csrf.encode()):
            raise AuthError("this form is not from the console, or too old", hint="load the page again", status=403)

    def _cookie(self, value: str, max_age: int) -> Cookie:
        return Cookie(
            COOKIE, value=value, max_age=max_age, httponly=True, samesite="strict", secure=self._secure, path="/"
        )

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def _remember(self, address: str, failures: deque[float]) -> None:
        failures.append(time.monotonic())
        self._failures.pop(address, None)
        self._failures[address] = failures
        while len(self._failures) > _ADDRESSES:
            self._failures.pop(next(iter(self._failures)))
