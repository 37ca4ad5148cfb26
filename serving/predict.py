"""`POST /v1/predict/{model}` and `/batch`, and what a caller may say about an answer afterwards.

    body (raw image, or multipart with one file `file` or `image`) -> Item -> engine -> reply

A reply is sent after its row is committed. A batch goes through the engine like that many single requests, a few at a time,
so that it does not push others out of the queue; one broken image in it is that image's own affair.

Errors: those of `bodies`; ImageError; NotFoundError; BusyError 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, Router, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter

from serving import problems
from serving.answers import FORMATS, PLAIN, Ask, Corners, Reply
from serving.auth import Keyring, needs
from serving.bodies import Bodies, image_in, images_of, read_json, settled, while_connected
from serving.engine import Engine, Item
from serving.log import Entry, LogWriter
from serving.schemas import BatchOperation, FeedbackOperation, PredictOperation
from serving.slots import Slots
from serving.tickets import Ticket, outcomes
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError, SutdolError
from sutdol.tables import Feedback, Model, PredictionRow, new_id, now
from sutdol.types import Box as TruthBox
from sutdol.types import Label

HttpRequest = Request[Any, Any, Any]
AT_ONCE = 8
"""Images of one batch request in the queue at a time."""
MAX_FEEDBACK_BYTES = 1_000_000

Timeout = Annotated[
    float | None, HeaderParameter(name="X-Request-Timeout", gt=0, description="Seconds that the caller waits.")
]
MaxRisk = Annotated[
    float | None,
    QueryParameter(ge=0, le=1, description="Accepted chance of a wrong answer; a riskier one comes as `unsure`."),
]
Format = Annotated[Literal["sutdol", "roboflow"], QueryParameter(description="In whose form to answer.")]


class BatchEntry(msgspec.Struct, omit_defaults=True):
    """One image of a batch, in the order sent: its answer, or its problem."""

    status: int
    answer: msgspec.Raw | None = None
    problem: problems.Problem | None = None


class BatchReply(msgspec.Struct):
    """Status 200 when every image was answered, 207 when some were not."""

    results: list[BatchEntry]


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


def build(context: Context, slots: Slots, engine: Engine, log: LogWriter, keyring: Keyring, bodies: Bodies) -> Router:
    """The routes of this file."""

    @post(
        "/v1/predict/{model:str}",
        guards=[needs(keyring, "predict")],
        operation_class=PredictOperation,
        operation_id="predict",
        summary="Predict one image",
        status_code=200,
        tags=["predict"],
    )
    async def predict(
        request: HttpRequest,
        model: str,
        timeout: Timeout = None,
        max_risk: MaxRisk = None,
        format: Format = "sutdol",
    ) -> Reply:
        await slots.ready(model)
        async with bodies.of(request) as body:
            data = await image_in(body, request.headers.get("content-type", ""))
            item = Item(
                model, data, request.state.get("key_id"), Ticket(), _deadline(timeout), _asked(format, max_risk)
            )
            engine.submit(item)
            reply = await settled(item.ticket, request)
        return Response(reply, media_type="application/json")  # type: ignore[return-value]

    @post(
        "/v1/predict/{model:str}/batch",
        guards=[needs(keyring, "predict")],
        operation_class=BatchOperation,
        operation_id="predict_batch",
        summary="Predict several images",
        status_code=200,
        tags=["predict"],
        responses={207: ResponseSpec(BatchReply, generate_examples=False, description="Some images have no answer.")},
    )
    async def predict_batch(
        request: HttpRequest,
        model: str,
        timeout: Timeout = None,
        max_risk: MaxRisk = None,
        format: Format = "sutdol",
    ) -> BatchReply:
        await slots.ready(model)
        key_id, ask, deadline = request.state.get("key_id"), _asked(format, max_risk), _deadline(timeout)
        async with bodies.of(request) as body:
            images = await asyncio.to_thread(images_of, body, request.headers.get("content-type", ""))
            items = [Item(model, data, key_id, Ticket(), deadline, ask) for data in images]
            answers = await while_connected(outcomes(engine.submit, items, at_once=AT_ONCE), request)
        entries = [_entry(request, answer) for answer in answers]
        status = 200 if all(entry.status == 200 for entry in entries) else 207
        return Response(  # type: ignore[return-value]
            msgspec.json.encode(BatchReply(entries)), media_type="application/json", status_code=status
        )

    @post(
        "/v1/predictions/{prediction_id:str}/feedback",
        guards=[needs(keyring, "predict")],
        operation_class=FeedbackOperation,
        operation_id="feedback",
        summary="Say what the right answer was",
        tags=["predict"],
    )
    async def feedback(request: HttpRequest, prediction_id: str) -> FeedbackReply:
        async with bodies.of(request, at_most=MAX_FEEDBACK_BYTES) as raw:
            given = read_json(raw, FeedbackBody)
            reply = await given_feedback(
                request, context, log, prediction_id, given, key_id=request.state.get("key_id")
            )
        return Response(reply, media_type="application/json", status_code=201)  # type: ignore[return-value]

    return Router("/", route_handlers=[predict, predict_batch, feedback])


async def given_feedback(
    request: HttpRequest,
    context: Context,
    log: LogWriter,
    prediction_id: str,
    given: FeedbackBody,
    *,
    key_id: str | None,
) -> bytes:
    """The caller's own knowledge, committed to the log; a `FeedbackReply` as JSON. Raises NotFoundError, InputError."""
    value = await asyncio.to_thread(_check_feedback, context, prediction_id, given)
    ticket, feedback_id = Ticket(), new_id()
    row = {
        "id": feedback_id,
        "prediction_id": prediction_id,
        "value": msgspec.to_builtins(value),
        "at": now(),
        "key_id": key_id,
    }
    log.submit(Entry(ticket, msgspec.json.encode(FeedbackReply(feedback_id, prediction_id)), ((Feedback, row),)))
    reply: bytes = await settled(ticket, request)
    return reply


def _entry(request: HttpRequest, outcome: Any) -> BatchEntry:
    if isinstance(outcome, SutdolError):
        problem = problems.of(request, outcome)
        return BatchEntry(problem.status, problem=problem)
    return BatchEntry(200, msgspec.Raw(outcome))


def _deadline(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else time.monotonic() + timeout_s


def _asked(form: str, max_risk: float | None) -> Ask:
    return PLAIN if form == "sutdol" and max_risk is None else Ask(FORMATS[form], max_risk)


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
