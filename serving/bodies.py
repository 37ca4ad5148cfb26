"""Request bodies: read with a limit on size and time, and taken apart - JSON, one file of a form, several images.

    receive() -> Bodies.of -> bytes -> read_json | image_of | images_of

The framework's own parsers are not used: with them a wrong field name passes, and broken JSON answers 500.

Errors: InputError 400 (unusable), 408 (the body did not come), 413 (too large), 415 (an encoding that is not read);
BusyError 503 while all requests together hold too much; Cancelled when the client went away while it waited.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import zlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec
from litestar import Request
from multipart import MultipartError, MultipartSegment, PushMultipartParser  # type: ignore[import-untyped]

from serving.tickets import Ticket
from sutdol.errors import BusyError, Cancelled, InputError

T = TypeVar("T")
FIELDS = ("file", "image")
MANY_FIELDS = (*FIELDS, "files", "images", "file[]", "image[]", "files[]", "images[]")
BODY_TIMEOUT_S = 30.0
MAX_IMAGES = 64
"""Images in one batch request."""
_MAX_SEGMENTS = 32
"""Parts of a form beside its images."""
HELD_BYTES = 256_000_000
SMALL_BYTES = 64_000
"""Bodies up to this size are taken apart on the event loop, larger ones in a thread."""
_WATCH_AFTER_S = 0.25
"""A request that waits longer than this is watched, so that it is dropped when its client goes away."""
_INFLATERS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""`wbits` of zlib for each Content-Encoding."""


class ImageList(msgspec.Struct, forbid_unknown_fields=True):
    """A batch as JSON."""

    images: list[str]
    """Encoded images (JPEG, PNG, WebP, GIF) in base64."""


class Bodies:
    """All bodies of this process: each has a limit, and so have all that are held at one moment.

    Args:
        max_bytes: largest body.
        held_bytes: what all requests together may hold, from the first byte of a body to the end of its answer; thousands
            of half-sent uploads must not fill the memory.
    """

    def __init__(self, max_bytes: int, *, held_bytes: int = HELD_BYTES) -> None:
        self.max_bytes = max_bytes
        self._most = max(held_bytes, 2 * max_bytes)
        self._held = 0

    def of(self, request: Request[Any, Any, Any], *, at_most: int | None = None) -> Reading:
        """`async with bodies.of(request) as body`: the whole body, inflated where `Content-Encoding` says so.

        Raises:
            InputError: 413 too large, 408 not here in BODY_TIMEOUT_S, 400 a length that is no number, 415 an encoding that
                is not read. BusyError: others hold too much. Cancelled: the client went away.
        """
        return Reading(self, request, min(at_most or self.max_bytes, self.max_bytes))

    def take(self, size: int) -> None:
        """Count bytes that were received.

        Raises:
            BusyError: all requests together hold too much.
        """
        if self._held + size > self._most:
            raise BusyError("too many uploads at once", retry_after_s=2)
        self._held += size

    def give(self, size: int) -> None:
        """They are free again."""
        self._held -= size


class Reading:
    """One body while its request lasts."""

    __slots__ = ("_bodies", "_held", "_limit", "_request")

    def __init__(self, bodies: Bodies, request: Request[Any, Any, Any], limit: int) -> None:
        self._bodies = bodies
        self._request = request
        self._limit = limit
        self._held = 0

    async def __aenter__(self) -> bytes:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await self._read()
            encoding = self._request.headers.get("content-encoding", "identity").strip().lower()
            return body if encoding == "identity" else await self._inflate(body, encoding)
        except TimeoutError:
            self._bodies.give(self._held)
            raise InputError(f"body: not here after {BODY_TIMEOUT_S:g} s", status=408) from None
        except BaseException:
            self._bodies.give(self._held)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._bodies.give(self._held)

    async def _inflate(self, body: bytes, encoding: str) -> bytes:
        """Room for the largest body is taken first, and what was not needed given back."""
        self._bodies.take(self._limit)
        self._held += self._limit
        plain = await asyncio.to_thread(_inflated, body, encoding, self._limit)
        self._bodies.give(self._limit - len(plain))
        self._held -= self._limit - len(plain)
        return plain

    async def _read(self) -> bytes:
        announced = self._request.headers.get("content-length")
        if announced is not None:
            if not (announced.isascii() and announced.isdecimal()):
                raise InputError(f"Content-Length: expected a number, found {announced!r}")
            if int(announced) > self._limit:
                raise _too_large(int(announced), self._limit)
        parts: list[bytes] = []
        while True:
            message = await self._request.receive()
            if message["type"] != "http.request":
                raise InputError("body: it ended before it was complete")
            if part := message["body"]:
                if self._held + len(part) > self._limit:
                    raise _too_large(self._held + len(part), self._limit)
                self._bodies.take(len(part))
                self._held += len(part)
                parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def read_json(body: bytes, kind: type[T]) -> T:
    """A JSON body as `kind`.

    Raises:
        InputError: not JSON, not UTF-8, nested too deeply, or not of that shape.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"body: {error}") from None
    except RecursionError:
        raise InputError("body: JSON nested too deeply") from None


async def image_in(body: bytes, content_type: str) -> bytes:
    """`image_of`, away from the event loop when it takes long."""
    if len(body) <= SMALL_BYTES or not _is_form(content_type):
        return image_of(body, content_type)
    return await asyncio.to_thread(image_of, body, content_type)


def image_of(body: bytes, content_type: str) -> bytes:
    """The one image of a request: the body itself, or the file of a form in the field `file` or `image`.

    Raises:
        InputError: a form that cannot be read, without such a field, or with several files.
    """
    if not _is_form(content_type):
        return body
    files = _files(body, content_type, FIELDS)
    if len(files) > 1:
        raise InputError(
            "multipart: expected one image, found several", hint="POST /v1/predict/{model}/batch takes several"
        )
    return files[0]


def images_of(body: bytes, content_type: str) -> list[bytes]:
    """The images of a batch, in order: the files of a form, or JSON `{"images": ["<base64>", ...]}`.

    Raises:
        InputError: neither, none at all, or more than MAX_IMAGES.
    """
    if _is_form(content_type):
        files = _files(body, content_type, MANY_FIELDS)
    elif content_type.partition(";")[0].strip().lower() == "application/json":
        files = [from_base64(text, f"images[{i}]") for i, text in enumerate(read_json(body, ImageList).images)]
    else:
        raise InputError(
            f"batch: expected multipart/form-data or application/json, found {content_type or 'no Content-Type'!r}",
            status=415,
        )
    if not 1 <= len(files) <= MAX_IMAGES:
        raise InputError(f"batch: expected 1 to {MAX_IMAGES} images, found {len(files)}")
    return files


def from_base64(text: str, name: str) -> bytes:
    """Bytes from strict base64.

    Raises:
        InputError: it is something else.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{name}: expected base64, found something else: {error}") from None


def field_of(body: bytes, content_type: str, name: str) -> bytes:
    """The content of one named field of a form; of several the first.

    Raises:
        InputError: a form that cannot be read, or without that field.
    """
    return _files(body, content_type, (name,))[0]


async def opened_form(
    request: Request[Any, Any, Any], file: str, *, at_most: int = SMALL_BYTES
) -> tuple[dict[str, str], AsyncIterator[bytes]]:
    """A form whose last part is a file too large to hold: its fields, and the file piece by piece.

    Args:
        file: name of the file's field; what comes behind it is not looked at.
        at_most: bytes of all fields before it.

    Raises:
        InputError: no such form, no such field, or larger fields; also while the pieces are taken.
    """
    parser = PushMultipartParser(_boundary(request.headers.get("content-type", "")), max_segment_count=_MAX_SEGMENTS)
    events = _form_events(parser, request.stream())
    fields: dict[str, str] = {}
    size, name, value = 0, "", bytearray()
    async for event in events:
        if isinstance(event, MultipartSegment):
            if event.name == file:
                return fields, _until_end(events)
            name, value = event.name, bytearray()
        elif event is None:
            fields[name] = value.decode("utf-8", "replace")
        else:
            size += len(event)
            if size > at_most:
                raise _too_large(size, at_most)
            value.extend(event)
    raise InputError(f"multipart: expected a field {file!r}, found none")


async def _form_events(parser: PushMultipartParser, chunks: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    try:
        with parser:
            async for chunk in chunks:
                if chunk:
                    for event in parser.parse(chunk):
                        yield event
    except (MultipartError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"multipart: the body cannot be read: {error}") from None


async def _until_end(events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for event in events:
        if event is None:
            return
        if not isinstance(event, MultipartSegment):
            yield bytes(event)


async def settled(ticket: Ticket, request: Request[Any, Any, Any]) -> Any:
    """Wait for a ticket, and give it up when the client goes away.

    Raises:
        Cancelled: the client went away; besides, whatever the ticket is settled with.
    """
    watching: list[asyncio.Task[None]] = []

    async def watch() -> None:
        message = await request.receive()
        while message["type"] != "http.disconnect":
            message = await request.receive()
        ticket.future.cancel()

    timer = ticket.loop.call_later(_WATCH_AFTER_S, lambda: watching.append(ticket.loop.create_task(watch())))
    try:
        return await ticket.future
    except asyncio.CancelledError:
        if watching and watching[0].done():
            raise Cancelled("the client went away") from None
        raise
    finally:
        timer.cancel()
        ticket.future.cancel()
        for task in watching:
            task.cancel()


async def while_connected(work: Coroutine[Any, Any, T], request: Request[Any, Any, Any]) -> T:
    """The result of `work`, which is cancelled when the client goes away. For work of many tickets.

    Raises:
        Cancelled: the client went away; besides, whatever `work` raises.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("the client went away")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


def _inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its compression, never more than `limit` of it: a kilobyte of gzip can stand for a megabyte."""
    if encoding not in _INFLATERS:
        raise InputError(
            f"Content-Encoding: expected {', '.join(sorted(_INFLATERS))} or identity, found {encoding!r}", status=415
        )
    inflater = zlib.decompressobj(wbits=_INFLATERS[encoding])
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError(f"body: this is not {encoding}: {error}") from None
    if len(plain) > limit:
        raise _too_large(len(plain), limit)
    if not inflater.eof:
        raise InputError(f"body: the {encoding} data ends too early")
    return plain


def _is_form(content_type: str) -> bool:
    return content_type.lower().startswith("multipart/")


def _files(body: bytes, content_type: str, fields: tuple[str, ...]) -> list[bytes]:
    """The files in the fields of these names, in order; text fields are passed over."""
    files: list[bytearray] = []
    others: list[str] = []
    try:
        boundary = _boundary(content_type)
        segments = MAX_IMAGES + _MAX_SEGMENTS
        with PushMultipartParser(boundary, content_length=len(body), max_segment_count=segments) as parser:
            target: bytearray | None = None
            for part in parser.parse(body):
                if isinstance(part, MultipartSegment):
                    target = None
                    if part.name in fields:
                        target = bytearray()
                        files.append(target)
                    else:
                        others.append(part.name)
                elif part and target is not None:
                    target.extend(part)
    except (MultipartError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"multipart: the body cannot be read: {error}") from None
    if not files:
        found = ", ".join(repr(name) for name in others[:5]) or "none"
        wanted = " or ".join(repr(name) for name in fields[:2])
        raise InputError(f"multipart: expected a field {wanted}, found fields: {found}")
    return [bytes(file) for file in files]


def _boundary(content_type: str) -> str:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "boundary" and value.strip('"'):
            return value.strip('"')
    raise InputError("multipart: expected a boundary in the Content-Type, found none")


def _too_large(size: int, limit: int) -> InputError:
    return InputError(f"body: expected at most {limit} bytes, found {size}", hint="SUTDOL_MAX_BODY_BYTES", status=413)
