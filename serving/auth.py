"""Who may call: `Authorization: Bearer sut_<id>_<secret>` against a snapshot of all keys that a thread renews.

    header -> keys.parse (constant work) -> snapshot -> keys.check -> key id

A key that was revoked stops working within REFRESH_S. One that was made a moment ago works at once: an unknown id waits for
a renewal of the snapshot that begins after it asked, shared by all who ask, before it is refused.

A key may make so many requests a second (`SUTDOL_KEY_RATE`), counted by this process; a burst of BURST_S seconds' worth passes.

Errors: AuthError 401 and 403; BusyError 429 for a key that asks too often, 503 when the keys could not be read for too long,
because then a revoked one might pass.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time

import structlog
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.types import Guard
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import select

from sutdol import keys
from sutdol.db import Database
from sutdol.errors import AuthError, BusyError
from sutdol.tables import ApiKey

REFRESH_S = 0.4
BURST_S = 10.0
_MISS_INTERVAL_S = 0.1
"""Unknown ids cause at most ten renewals a second, whatever is thrown at us."""


class Keyring:
    """All API keys of this installation; `check` never touches the database unless the id is unknown."""

    def __init__(self, database: Database, *, stale_s: float = 300.0, rate: float = 0.0) -> None:
        self._database = database
        self._stale_s = stale_s
        self._rate = rate
        self._used: dict[str, tuple[float, float]] = {}
        self._rows: dict[str, ApiKey] = {}
        self._read_at = 0.0
        self._renewing = threading.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="keys", daemon=True)
        self._log = structlog.get_logger("serving.auth")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    async def alive(self, key_id: str) -> ApiKey | None:
        """The key of that id, or None when it is unknown, expired or revoked; for sessions, whose proof is their own."""
        row = await self._row(key_id)
        return row if row is not None and keys.state(row) == "valid" else None

    async def check(self, header: str | None, scope: str | None) -> str:
        """The id of the key in an `Authorization` header; any scope will do when `scope` is None.

        Raises:
            AuthError: missing, malformed, unknown, expired, revoked (401), or without `scope` (403).
        """
        if not header:
            raise AuthError("API key: expected a header `Authorization: Bearer sut_...`, found none")
        kind, _, presented = header.partition(" ")
        if kind.lower() != "bearer":
            raise AuthError("API key: expected the scheme Bearer", hint="send `Authorization: Bearer sut_...`")
        key_id, digest = keys.parse(presented.strip())
        keys.check(await self._row(key_id), digest, scope)
        if self._rate:
            self._count(key_id)
        return key_id

    def _count(self, key_id: str) -> None:
        """One request of a valid key; what it has used runs out at the rate (a leaky bucket). On the event loop only."""
        at = time.monotonic()
        used, since = self._used.get(key_id, (0.0, at))
        used = max(used - (at - since) * self._rate, 0.0)
        over = used + 1 - max(self._rate * BURST_S, 1.0)
        if over > 0:
            refusal = BusyError(
                f"API key {key_id} asks too often", retry_after_s=math.ceil(over / self._rate), hint="SUTDOL_KEY_RATE"
            )
            refusal.status = 429
            raise refusal
        self._used[key_id] = (used + 1, at)

    async def _row(self, key_id: str) -> ApiKey | None:
        row = self._rows.get(key_id)
        if row is None:
            await self._look_again()
            row = self._rows.get(key_id)
        if time.monotonic() - self._read_at > self._stale_s:
            raise BusyError("the API keys cannot be read", retry_after_s=5)
        return row

    async def _look_again(self) -> None:
        """Wait for a renewal that begins from now on; all who ask before it begins share it."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        await asyncio.sleep(self._looked_at + _MISS_INTERVAL_S - time.monotonic())
        self._looking, self._looked_at = None, time.monotonic()
        await asyncio.to_thread(self._renew)

    def _renew(self) -> None:
        with self._renewing:
            began = time.monotonic()
            try:
                with self._database.read() as session:
                    self._rows = {row.id: row for row in session.exec(select(ApiKey))}
                self._read_at = began
            except SQLAlchemyError as error:
                self._log.warning("API keys not read", error=str(error).splitlines()[0])

    def _follow(self) -> None:
        while True:
            self._renew()
            if self._ended.wait(REFRESH_S):
                return


def needs(keyring: Keyring, scope: str) -> Guard:
    """A guard for routes: refuses before the body is read, and leaves the key's id in `connection.state.key_id`."""

    async def guard(connection: ASGIConnection, _: BaseRouteHandler) -> None:  # type: ignore[type-arg]
        connection.state.key_id = await keyring.check(connection.headers.get("authorization"), scope)

    return guard
