"""`GET /v1/live`: every prediction of this replica as it is committed, as Server-Sent Events.

    log writer (its thread) -> Feed.told -> event loop -> one bounded queue per reader -> the reader's connection

A reader that does not keep up is dropped: its connection is cut, it may come again, and nobody waits for it. So is one whose
key was revoked. `close` ends all of them at once, so that an open feed never holds up a shutdown. What a reader missed is in
the log (`prediction` table), not here.

Errors: BusyError 503 when MAX_READERS are connected.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from litestar import Request, Router, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ASGIApp, Receive, Scope, Send

from serving.auth import Keyring, needs
from serving.log import Entry
from sutdol.errors import AuthError, BusyError
from sutdol.tables import PredictionRow

MAX_READERS = 64
MAX_QUEUE = 256
"""Events that wait for one reader before it is dropped."""
HEARTBEAT_S = 10.0
"""A comment after so long a silence keeps proxies from closing the connection."""
_LOOK_S = 0.5
"""Between two looks at whether the key still counts."""


class LiveEvent(msgspec.Struct):
    """One prediction, as it went into the log."""

    prediction_id: str
    at: float
    model: str
    version: int
    sample_id: str
    width_px: int
    height_px: int
    confidence: float
    ood_score: float | None
    arms: list[str]
    duration_ms: float
    answer: dict[str, Any]
    """{"classes": [...], "boxes": [...]}"""


@dataclass(eq=False)
class _Reader:
    model: str | None
    queue: deque[bytes] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    dropped: bool = False


class Feed:
    """The readers of this process. `told` may be called from any thread, everything else on the event loop."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def told(self, group: list[Entry]) -> None:
        """Committed entries; costs nothing while nobody reads."""
        loop = self._loop
        if not self._readers or loop is None or loop.is_closed():
            return
        rows = [values for entry in group for kind, values in entry.rows if kind is PredictionRow]
        if rows:
            loop.call_soon_threadsafe(self._deliver, rows)

    def close(self) -> None:
        """End every reader's stream, now and from now on."""
        self._closed = True
        for reader in self._readers:
            reader.wake.set()

    def join(self, model: str | None) -> _Reader:
        """A new reader.

        Raises:
            BusyError: there are too many, or the server is stopping.
        """
        if self._closed or len(self._readers) >= MAX_READERS:
            raise BusyError(f"{len(self._readers)} readers follow the feed, that is the limit", retry_after_s=10)
        self._loop = asyncio.get_running_loop()
        reader = _Reader(model)
        self._readers.add(reader)
        return reader

    def leave(self, reader: _Reader) -> None:
        """Nothing is queued for this reader any more."""
        self._readers.discard(reader)

    @property
    def closed(self) -> bool:
        return self._closed

    def _deliver(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            event = _encoded(row)
            for reader in list(self._readers):
                if reader.model not in (None, row["model"]):
                    continue
                if len(reader.queue) >= MAX_QUEUE:
                    reader.dropped = True
                    self._readers.discard(reader)
                else:
                    reader.queue.append(event)
                reader.wake.set()


def build(feed: Feed, keyring: Keyring) -> Router:
    """The route of this file."""

    @get(
        "/v1/live",
        guards=[needs(keyring, "label")],
        summary="Predictions as they happen",
        description="Server-Sent Events named `prediction`; a reader that does not keep up is cut off.",
        tags=["predict"],
        operation_id="live",
        responses={
            200: ResponseSpec(
                LiveEvent, generate_examples=False, media_type="text/event-stream", description="The data of one event."
            )
        },
    )
    async def live(request: Request[Any, Any, Any], model: str | None = None) -> ASGIApp:
        header = request.headers.get("authorization")
        reader = feed.join(model)

        async def app(_: Scope, receive: Receive, send: Send) -> None:
            writing = asyncio.create_task(_write(feed, reader, send))
            watching = asyncio.create_task(_watch(reader, receive, lambda: keyring.check(header, "label")))
            try:
                await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                feed.leave(reader)
                for task in (writing, watching):
                    task.cancel()

        return app

    return Router("/", route_handlers=[live])


async def _write(feed: Feed, reader: _Reader, send: Send) -> None:
    """Ends when the server stops; while the connection takes nothing it stands in `send`."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    text = b"retry: 2000\n\n"
    while not feed.closed:
        await send({"type": "http.response.body", "body": text, "more_body": True})
        reader.wake.clear()
        if not reader.queue:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await reader.wake.wait()
            except TimeoutError:
                text = b": nothing new\n\n"
                continue
        text = b"".join(reader.queue)
        reader.queue.clear()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _watch(reader: _Reader, receive: Receive, check: Callable[[], Any]) -> None:
    """Ends when the client goes away, its key stops working, or it was dropped for being slow."""
    gone = asyncio.ensure_future(receive())
    try:
        while not gone.done() and not reader.dropped:
            await asyncio.wait({gone}, timeout=_LOOK_S)
            if gone.done() and gone.result()["type"] != "http.disconnect":
                gone = asyncio.ensure_future(receive())
            await check()
    except AuthError:
        return
    finally:
        gone.cancel()


def _encoded(row: dict[str, Any]) -> bytes:
    event = LiveEvent(
        prediction_id=row["id"], **{f: row[f] for f in LiveEvent.__struct_fields__ if f != "prediction_id"}
    )
    return b"id: %s\nevent: prediction\ndata: %s\n\n" % (row["id"].encode(), msgspec.json.encode(event))
