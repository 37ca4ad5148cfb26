"""`/v1/predict/{model}/stream`: a WebSocket for video; every binary message is one encoded frame and gets one answer, in order.

    message -> Item -> engine (IN_FLIGHT at most) -> answers in order -> text message {"frame": n, "status": ..., ...}

Backpressure is the socket's own: while IN_FLIGHT frames are unanswered no further message is read, so a camera that is faster
than the model is held back by TCP, and its memory is its own. A frame that cannot be used gets its problem as its answer and
the stream goes on. Who goes away, falls silent for IDLE_S, does not take its answers for SEND_S or holds a revoked key is
let go, and its unanswered frames with it.

A browser cannot send headers with a WebSocket, so the key may also come as a subprotocol: `["sutdol.v1", "bearer.sut_..."]`.

Errors: without a valid key the handshake is refused; everything else is told in words before the stream is closed.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from litestar import Router, WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import QueryParameter

from serving import problems
from serving.answers import FORMATS, PLAIN, Ask
from serving.auth import Keyring
from serving.engine import Engine, Item
from serving.slots import Slots
from serving.tickets import Ticket
from sutdol.errors import AuthError, BusyError, InputError, SutdolError

IN_FLIGHT = 4
"""Frames of one stream that are unanswered at a time: enough to keep every core busy, too few to be old."""
MAX_STREAMS = 64
IDLE_S = 60.0
SEND_S = 10.0
PROTOCOL = "sutdol.v1"
_POLICY, _GOING, _LATER = 1008, 1001, 1013
"""Close codes of RFC 6455: refused, the server or client goes, come back later."""

Socket = WebSocket[Any, Any, Any]


class FrameReply(msgspec.Struct, omit_defaults=True):
    """The answer of one frame; `frame` counts from 0."""

    frame: int
    status: int
    answer: msgspec.Raw | None = None
    problem: problems.Problem | None = None


class Streams:
    """The open streams of this process; used on the event loop alone."""

    def __init__(self) -> None:
        self._open: set[asyncio.Task[Any]] = set()
        self.closed = False

    def close(self) -> None:
        """End all of them, now and from now on."""
        self.closed = True
        for task in self._open:
            task.cancel()

    @property
    def full(self) -> bool:
        return self.closed or len(self._open) >= MAX_STREAMS

    async def run(self, work: Any) -> None:
        """`work` until it ends, or until `close` cancels it."""
        task = asyncio.ensure_future(work)
        self._open.add(task)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            self._open.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


def build(slots: Slots, engine: Engine, keyring: Keyring, streams: Streams, max_bytes: int) -> Router:
    """The route of this file."""

    @websocket("/v1/predict/{model:str}/stream")
    async def stream(
        socket: Socket,
        model: str,
        max_risk: Annotated[float | None, QueryParameter(ge=0, le=1)] = None,
        format: Literal["sutdol", "roboflow"] = "sutdol",
    ) -> None:
        header, protocol = _presented(socket)
        try:
            key_id = await keyring.check(header, "predict")
        except AuthError as error:
            await socket.close(code=_POLICY, reason=error.message[:120])
            return
        await socket.accept(subprotocols=protocol)
        ask = PLAIN if format == "sutdol" and max_risk is None else Ask(FORMATS[format], max_risk)

        def accept(data: bytes | str) -> Item:
            if isinstance(data, str):
                raise InputError("frame: expected a binary message with one encoded image, found text")
            if len(data) > max_bytes:
                raise InputError(f"frame: expected at most {max_bytes} bytes, found {len(data)}", status=413)
            item = Item(model, data, key_id, Ticket(), ask=ask)
            engine.submit(item)
            return item

        code = _GOING
        try:
            if streams.full:
                raise BusyError(f"{MAX_STREAMS} streams are open, that is the limit", retry_after_s=10)
            await slots.ready(model)
            await streams.run(_talk(socket, accept, lambda: keyring.check(header, "predict")))
        except (WebSocketDisconnect, TimeoutError):
            pass
        except SutdolError as error:
            code = _LATER if isinstance(error, BusyError) else _POLICY
            await _say(socket, FrameReply(0, error.status, problem=problems.of(socket, error)))
        if socket.connection_state != "disconnect":
            await _close(socket, code)

    return Router("/", route_handlers=[stream])


async def _talk(socket: Socket, accept: Any, check: Any) -> None:
    """Read frames and send answers until one side has enough.

    Raises:
        WebSocketDisconnect: the client left. TimeoutError: it is silent, or does not take its answers. AuthError: revoked.
    """
    waiting: asyncio.Queue[Item | SutdolError] = asyncio.Queue(IN_FLIGHT - 1)  # one more is with the sender
    taken: list[Item] = []

    async def read() -> None:
        while True:
            async with asyncio.timeout(IDLE_S):
                message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(detail="the client left", code=message.get("code", _GOING))
            await check()
            data = message.get("bytes")
            try:
                job: Item | SutdolError = accept(data if data is not None else message.get("text") or "")
            except SutdolError as error:
                job = error
            if isinstance(job, Item):
                taken.append(job)
            await waiting.put(job)

    async def answer() -> None:
        frame = 0
        while True:
            job = await waiting.get()
            try:
                if isinstance(job, SutdolError):
                    raise job
                reply = FrameReply(frame, 200, answer=msgspec.Raw(await job.ticket.future))
                taken.remove(job)
            except SutdolError as error:
                reply = FrameReply(frame, error.status, problem=problems.of(socket, error))
            await _say(socket, reply)
            frame += 1

    tasks = {asyncio.create_task(read()), asyncio.create_task(answer())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        for item in taken:
            item.ticket.future.cancel()


async def _say(socket: Socket, reply: FrameReply) -> None:
    async with asyncio.timeout(SEND_S):
        await socket.send_data(msgspec.json.encode(reply), mode="text")


async def _close(socket: Socket, code: int) -> None:
    """A client that is gone already, or takes nothing, need not be told."""
    try:
        async with asyncio.timeout(1.0):
            await socket.close(code=code)
    except (WebSocketDisconnect, TimeoutError, RuntimeError):
        return


def _presented(socket: Socket) -> tuple[str | None, str | None]:
    """The Authorization header, or what stands for it; and the subprotocol to agree on."""
    offered = [word.strip() for word in socket.headers.get("sec-websocket-protocol", "").split(",")]
    header = socket.headers.get("authorization")
    for word in offered:
        if header is None and word.startswith("bearer."):
            header = f"Bearer {word.removeprefix('bearer.')}"
    return header, PROTOCOL if PROTOCOL in offered else None
