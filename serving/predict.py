"""`POST /v1/predict/{model}` and what a caller may say about the answer afterwards.

    body (raw image, or multipart with one file `file` or `image`) -> Item -> engine -> reply

The reply has the words of the Ultralytics Platform for each finding (`name`, `class`, `confidence`, `box`) and ours around
them. It is sent after its row is committed.

Errors: InputError 400 (no image field, several files), 408 (the body did not come), 413 (too large); ImageError; NotFoundError;
BusyError 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request, Response, Router, post
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.params import Parameter
from multipart import MultipartError, MultipartSegment, PushMultipartParser  # type: ignore[import-untyped]

from serving.auth import Keyring, needs
from serving.engine import Answer, Engine, Item
from serving.log import Entry, LogWriter
from serving.metrics import Metrics
from serving.slots import Slots
from serving.tickets import Ticket
from sutdol.context import Context
from sutdol.errors import Cancelled, InputError, NotFoundError
from sutdol.sampling import is_unfamiliar
from sutdol.tables import Feedback, LabelTask, Model, PredictionRow, new_id, now
from sutdol.types import Box as TruthBox
from sutdol.types import Label, Prediction

T = TypeVar("T")
FIELDS = ("file", "image")
BODY_TIMEOUT_S = 30.0
_WATCH_AFTER_S = 0.25
"""A request that waits longer than this is watched, so that it is dropped when its client goes away."""


class Corners(msgspec.Struct):
    """Pixels of the upright image: x to the right, y down."""

    x1: float
    y1: float
    x2: float
    y2: float


class Found(msgspec.Struct, omit_defaults=True):
    """One class, or one object with its box; `confidence` is calibrated, in [0, 1]."""

    name: str
    index: int = msgspec.field(name="class")
    """Place in the model's class list; it never changes."""
    confidence: float
    box: Corners | None = None


class Queued(msgspec.Struct):
    """The image was picked for labelling."""

    arms: list[str]
    """drawn (by chance), unfamiliar, empty."""
    reason: str


class Size(msgspec.Struct):
    """Pixels of the upright image (EXIF orientation applied)."""

    width: int
    height: int


class Reply(msgspec.Struct):
    """The answer for one image; it is in the log under `prediction_id`."""

    prediction_id: str
    model: str
    version: int
    task: str
    confidence: float
    """Of the best prediction, calibrated; 0 when a detector found nothing."""
    ood_score: float | None
    """How strange the image is, in standard deviations of familiar ones; null when the model cannot tell."""
    unfamiliar: bool
    queued: Queued | None
    predictions: list[Found]
    """Best first; for classification at most five."""
    image: Size
    duration_ms: float
    """From the accepted body to the answer, before its commit."""


class FeedbackBox(msgspec.Struct):
    """One object that is really there, in the reply's own shape."""

    name: str
    box: Corners


class FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """The right answer: `class` for one class, `classes` for several or none, `boxes` for a detector."""

    class_name: str | None = msgspec.field(name="class", default=None)
    classes: list[str] | None = None
    boxes: list[FeedbackBox] | None = None


class FeedbackReply(msgspec.Struct):
    """The feedback is in the log under `id`."""

    id: str
    prediction_id: str


@dataclass
class _PredictOperation(Operation):
    def __post_init__(self) -> None:
        binary = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
        form = Schema(type=OpenAPIType.OBJECT, properties=dict.fromkeys(FIELDS, binary), min_properties=1)
        kinds = ("image/jpeg", "image/png", "image/webp", "image/gif", "application/octet-stream")
        content = {kind: OpenAPIMediaType(schema=binary) for kind in kinds}
        content["multipart/form-data"] = OpenAPIMediaType(schema=form)
        self.request_body = RequestBody(content, description="One image.", required=True)


@dataclass
class _FeedbackOperation(Operation):
    def __post_init__(self) -> None:
        name = Schema(type=OpenAPIType.STRING)
        corner = Schema(type=OpenAPIType.NUMBER)
        corners = Schema(type=OpenAPIType.OBJECT, properties=dict.fromkeys(("x1", "y1", "x2", "y2"), corner))
        box = Schema(type=OpenAPIType.OBJECT, properties={"name": name, "box": corners})
        body = Schema(
            type=OpenAPIType.OBJECT,
            properties={
                "class": name,
                "classes": Schema(type=OpenAPIType.ARRAY, items=name),
                "boxes": Schema(type=OpenAPIType.ARRAY, items=box),
            },
            min_properties=1,
            max_properties=1,
        )
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(schema=body)}, required=True)


def compose(answer: Answer, metrics: Metrics) -> Entry:
    """The log rows and the reply of one answer."""
    item, loaded, image, prediction, picked = answer.item, answer.loaded, answer.image, answer.prediction, answer.picked
    manifest = loaded.predictor.manifest
    at, prediction_id = now(), new_id()
    unfamiliar = is_unfamiliar(prediction, manifest)
    reply = Reply(
        prediction_id=prediction_id,
        model=loaded.model,
        version=loaded.version,
        task=manifest.task,
        confidence=prediction.confidence,
        ood_score=prediction.ood_score,
        unfamiliar=unfamiliar,
        queued=Queued(picked.arms, picked.reason) if picked.arms else None,
        predictions=_found(prediction, manifest.classes),
        image=Size(image.width_px, image.height_px),
        duration_ms=round(answer.duration_ms, 3),
    )
    logged = {"classes": msgspec.to_builtins(prediction.classes), "boxes": msgspec.to_builtins(prediction.boxes)}
    row = {
        "id": prediction_id,
        "at": at,
        "model": loaded.model,
        "version": loaded.version,
        "sample_id": image.sample_id,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "answer": logged,
        "confidence": prediction.confidence,
        "raw_confidence": prediction.raw_confidence,
        "margin": prediction.margin,
        "ood_score": prediction.ood_score,
        "inclusion_probability": picked.inclusion_probability,
        "arms": picked.arms,
        "duration_ms": answer.duration_ms,
        "key_id": item.key_id,
        "brightness": answer.appearance.brightness,
        "sharpness": answer.appearance.sharpness,
        "colour": answer.appearance.colour,
        "fingerprint": answer.appearance.fingerprint,
    }
    metrics.predictions.labels(loaded.model, str(loaded.version)).inc()
    if unfamiliar:
        metrics.unfamiliar.labels(loaded.model).inc()
    for arm in picked.arms:
        metrics.picked.labels(loaded.model, arm).inc()
    task = None
    if picked.arms:
        arm = "drawn" if "drawn" in picked.arms else picked.arms[0]
        task = LabelTask(
            model=loaded.model,
            sample_id=image.sample_id,
            prediction_id=prediction_id,
            version=loaded.version,
            arm=arm,
            reason=picked.reason,
            inclusion_probability=picked.inclusion_probability if arm == "drawn" else None,
            priority=picked.priority,
            uncertainty=1.0 - prediction.margin,
            ood_score=prediction.ood_score,
            answer=logged,
        )
    kept = image if picked.arms else None
    return Entry(item.ticket, msgspec.json.encode(reply), ((PredictionRow, row),), image=kept, task=task)


def build(context: Context, slots: Slots, engine: Engine, log: LogWriter, keyring: Keyring) -> Router:
    """The routes of this file."""
    max_bytes = context.settings.max_body_bytes

    @post(
        "/v1/predict/{model:str}",
        guards=[needs(keyring, "predict")],
        operation_class=_PredictOperation,
        operation_id="predict",
        summary="Predict one image",
        status_code=200,
        tags=["predict"],
        responses={},
    )
    async def predict(
        request: Request[Any, Any, Any],
        model: str,
        timeout: Annotated[
            float | None, Parameter(header="X-Request-Timeout", gt=0, description="Seconds that the caller waits.")
        ] = None,
    ) -> Reply:
        slots.get(model)
        body = await read_body(request, max_bytes=max_bytes)
        content_type = request.headers.get("content-type", "")
        data = file_of(body, content_type) if content_type.lower().startswith("multipart/") else body
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        item = Item(model, data, request.state.get("key_id"), Ticket(), deadline)
        engine.submit(item)
        reply = await settled(item.ticket, request)
        return Response(reply, media_type="application/json")  # type: ignore[return-value]

    @post(
        "/v1/predictions/{prediction_id:str}/feedback",
        guards=[needs(keyring, "predict")],
        operation_class=_FeedbackOperation,
        operation_id="feedback",
        summary="Say what the right answer was",
        tags=["predict"],
    )
    async def feedback(request: Request[Any, Any, Any], prediction_id: str) -> FeedbackReply:
        raw = await read_body(request, max_bytes=min(max_bytes, 1_000_000))
        given = read_json(raw, FeedbackBody)
        value = await asyncio.to_thread(_check_feedback, context, prediction_id, given)
        ticket, feedback_id = Ticket(), new_id()
        row = {
            "id": feedback_id,
            "prediction_id": prediction_id,
            "value": msgspec.to_builtins(value),
            "at": now(),
            "key_id": request.state.get("key_id"),
        }
        log.submit(Entry(ticket, msgspec.json.encode(FeedbackReply(feedback_id, prediction_id)), ((Feedback, row),)))
        reply = await settled(ticket, request)
        return Response(reply, media_type="application/json", status_code=201)  # type: ignore[return-value]

    return Router("/", route_handlers=[predict, feedback])


async def read_body(request: Request[Any, Any, Any], *, max_bytes: int) -> bytes:
    """The whole body, with a limit on its size and on the time it takes.

    Raises:
        InputError: 413 too large, 408 not here in BODY_TIMEOUT_S, 400 a Content-Length that is no number.
        Cancelled: the client went away.
    """
    announced = request.headers.get("content-length")
    if announced is not None:
        if not announced.isdecimal():
            raise InputError(f"Content-Length: expected a number, found {announced!r}")
        if int(announced) > max_bytes:
            raise _too_large(int(announced), max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await request.receive()
                if message["type"] != "http.request":
                    raise Cancelled("the client went away before its body was here")
                if part := message["body"]:
                    parts.append(part)
                    size += len(part)
                    if size > max_bytes:
                        raise _too_large(size, max_bytes)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise InputError(f"body: not here after {BODY_TIMEOUT_S:g} s", status=408) from None


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


def file_of(body: bytes, content_type: str) -> bytes:
    """The one file in a multipart body, from the field `file` or `image`; text fields are passed over.

    Raises:
        InputError: not multipart, no such field, several files.
    """
    files: dict[str, bytearray] = {}
    others: list[str] = []
    try:
        boundary = _boundary(content_type)
        with PushMultipartParser(boundary, content_length=len(body), max_segment_count=32) as parser:
            target: bytearray | None = None
            for part in parser.parse(body):
                if isinstance(part, MultipartSegment):
                    target = None
                    if part.name in FIELDS:
                        if files:
                            raise InputError("multipart: expected one image, found several")
                        target = files[part.name] = bytearray()
                    else:
                        others.append(part.name)
                elif part and target is not None:
                    target.extend(part)
    except (MultipartError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"multipart: the body cannot be read: {error}") from None
    if not files:
        found = ", ".join(repr(name) for name in others[:5]) or "none"
        raise InputError(f"multipart: expected the image in a field 'file' or 'image', found fields: {found}")
    return bytes(next(iter(files.values())))


async def settled(ticket: Ticket, request: Request[Any, Any, Any]) -> bytes:
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


def _found(prediction: Prediction, classes: list[str]) -> list[Found]:
    if prediction.boxes:
        index = {name: i for i, name in enumerate(classes)}
        return [
            Found(b.label, index[b.label], b.confidence or 0.0, Corners(b.x1, b.y1, b.x2, b.y2))
            for b in prediction.boxes
        ]
    return [Found(c.label, c.index, c.confidence) for c in prediction.classes]


def _check_feedback(context: Context, prediction_id: str, given: FeedbackBody) -> Label:
    """The feedback as a label of the prediction's model."""
    with context.database.read() as session:
        row = session.get(PredictionRow, prediction_id)
        if row is None:
            raise NotFoundError(f"unknown prediction {prediction_id!r}", hint="the id is in the reply of /v1/predict")
        model = session.get_one(Model, row.model)
    said = [
        f for f, v in (("class", given.class_name), ("classes", given.classes), ("boxes", given.boxes)) if v is not None
    ]
    expected = {"classify": ["class", "classes"], "multilabel": ["class", "classes"], "detect": ["boxes"]}[model.task]
    if len(said) != 1 or said[0] not in expected:
        raise InputError(
            f"feedback for a {model.task} model: expected {' or '.join(expected)}, found {said or 'nothing'}"
        )
    if given.boxes is not None:
        boxes = [TruthBox(b.name, b.box.x1, b.box.y1, b.box.x2, b.box.y2) for b in given.boxes]
        for box in boxes:
            if box.x1 < 0 or box.y1 < 0 or box.x2 > row.width_px or box.y2 > row.height_px:
                size = f"{row.width_px} x {row.height_px}"
                raise InputError(f"feedback: box of {box.label!r} is not inside the image of {size} pixels")
        label = Label(boxes=boxes)
    else:
        label = Label(classes=given.classes if given.classes is not None else [str(given.class_name)])
    for name in [*label.classes, *(b.label for b in label.boxes)]:
        if name not in model.classes:
            raise InputError(f"feedback: unknown class {name!r}", hint=f"known: {', '.join(model.classes[:20])}")
    if model.task == "classify" and len(label.classes) != 1:
        raise InputError(f"feedback for a classify model: expected one class, found {len(label.classes)}")
    return label


def _boundary(content_type: str) -> str:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "boundary" and value.strip('"'):
            return value.strip('"')
    raise InputError("multipart: expected a boundary in the Content-Type, found none")


def _too_large(size: int, limit: int) -> InputError:
    return InputError(f"body: expected at most {limit} bytes, found {size}", hint="SUTDOL_MAX_BODY_BYTES", status=413)
