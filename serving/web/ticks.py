"""The moving part of the live page: rendered once a tick and language, shared by all who look.

    reads, monitor.report -> values -> one rendering -> the same bytes for every reader of the next REFRESH_S

A reader asks every REFRESH_S, so nothing is held open and nothing holds up a shutdown. `sent` is the straight road for a
hundred readers: cookie, key, bytes. Whoever it does not know takes the road of all other pages (`pages.live`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from litestar.types import Scope, Send

from serving import reads
from serving.diagnosis import Standing
from serving.slots import Slots
from serving.web import session, text
from serving.web.render import HEADERS, Pages
from sutdol.context import Context
from sutdol.errors import BusyError
from sutdol.monitor import report

PATH = "/console/live"
REFRESH_S = 2
RECENT = 16
WINDOW_S = 60.0
_RAW_HEADERS = [
    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
    (b"content-type", b"text/html; charset=utf-8"),
    (b"x-content-type-options", b"nosniff"),
]


@dataclass
class _Tick:
    made_at: float
    html: bytes


class Ticks:
    """One for the process."""

    def __init__(
        self, context: Context, slots: Slots, standing: Standing, pages: Pages, sessions: session.Sessions
    ) -> None:
        self._context = context
        self._slots = slots
        self._standing = standing
        self._pages = pages
        self._sessions = sessions
        self._ticks: dict[str, _Tick] = {}
        self._making = asyncio.Lock()

    def values(self) -> dict[str, Any]:
        """What the page shows, as the API tells it. Blocks."""
        database = self._context.database
        with database.read() as opened:
            watched = report.everything(opened)
        return {
            "watched": watched,
            "traffic": reads.traffic(database, window_s=WINDOW_S),
            "predictions": reads.predictions(database, limit=RECENT),
            "replicas": reads.replicas(database, lease_s=self._context.settings.lease_s),
            "models": reads.models(database, self._slots.serving()),
            "refresh_s": REFRESH_S,
            "away": self._standing.away(),
        }

    async def html(self, language: str) -> bytes:
        """The moving part, at most a tick old."""
        tick = self._ticks.get(language)
        if tick is None or time.monotonic() - tick.made_at > REFRESH_S * 0.9:
            async with self._making:
                tick = self._ticks.get(language)
                if tick is None or time.monotonic() - tick.made_at > REFRESH_S * 0.9:
                    html = await asyncio.to_thread(self._rendered, language)
                    tick = self._ticks[language] = _Tick(time.monotonic(), html)
        return tick.html

    async def sent(self, scope: Scope, send: Send) -> bool:
        """Answer a plain look at the moving part; False, and nothing sent, when somebody else must."""
        headers = dict(scope["headers"])
        cookies = _cookies(headers.get(b"cookie", b"").decode("latin-1"))
        try:
            visitor = await self._sessions.holder(cookies.get(session.COOKIE, ""))
        except BusyError:
            return False
        if visitor is None or not visitor.may("label"):
            return False
        accepted = headers.get(b"accept-language", b"").decode("latin-1")
        html = await self.html(text.language(cookies.get(text.COOKIE, ""), accepted))
        length = (b"content-length", b"%d" % len(html))
        await send({"type": "http.response.start", "status": 200, "headers": [*_RAW_HEADERS, length]})
        await send({"type": "http.response.body", "body": html, "more_body": False})
        return True

    def _rendered(self, language: str) -> bytes:
        return self._pages.render("live_part.html", text.words(language), **self.values()).encode()


def _cookies(header: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {name: value for name, _, value in pairs}
