"""`POST /v1/models/{model}/adoptions`: an ONNX file that somebody else exported becomes a version of a model.

    body (the file) + what the file cannot say -> tried in a limited child -> `dry_run`: what was found and assumed
                                                                        -> else: a version, champion if there is none

A short dialogue is two requests: the first with `dry_run=true` shows what is assumed, the second brings better answers.

Errors: ModelError as 422 (hostile, broken, or of a form that cannot be read), InputError 400 and 413, ConflictError 409.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Router, post
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.params import Parameter

from serving.auth import Keyring, needs
from serving.bodies import Bodies
from sutdol.context import Context
from sutdol.errors import InputError, ModelError

MAX_MODEL_BYTES = 1_000_000_000
_IN_MEMORY = 8_000_000


class Adopted(msgspec.Struct):
    """How the file is read; `version` is null after a dry run."""

    model: str
    version: int | None
    task: str
    classes: list[str]
    width_px: int
    height_px: int
    resize: str
    outputs: str
    found: list[str]
    """What the file itself says."""
    assumed: dict[str, str]
    """By the name of the parameter that changes it, what the file cannot say and was taken for granted."""


@dataclass
class _AdoptOperation(Operation):
    def __post_init__(self) -> None:
        media = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY))
        self.request_body = RequestBody({"application/octet-stream": media}, required=True)


def build(context: Context, keyring: Keyring, bodies: Bodies) -> Router:
    """The route of this file. `bodies` is not used: a model is larger than what one request may hold in memory."""
    turn = asyncio.Semaphore(1)

    @post(
        "/v1/models/{model:str}/adoptions",
        guards=[needs(keyring, "admin")],
        operation_class=_AdoptOperation,
        request_max_body_size=MAX_MODEL_BYTES,
        status_code=200,
        summary="Take over an ONNX file of your own",
        tags=["models"],
        operation_id="adopt_model",
    )
    async def adopt(
        request: Request[Any, Any, Any],
        model: str,
        task: Literal["classify", "multilabel", "detect"] | None = None,
        classes: Annotated[str | None, Parameter(description="Names in order, separated by commas.")] = None,
        size: Annotated[int | None, Parameter(ge=8, le=4096)] = None,
        normalise: Literal["none", "imagenet", "half", "clip", "255"] | None = None,
        resize: Literal["stretch", "letterbox", "crop"] | None = None,
        crop_share: Annotated[float | None, Parameter(gt=0, le=1)] = None,
        outputs: Literal["logits", "probabilities", "boxes", "boxes-last", "yolov5", "end2end"] | None = None,
        bgr: bool = False,
        promote: bool = True,
        dry_run: bool = False,
    ) -> Adopted:
        data = await _body(request)
        from sutdol.adoption import Answers

        names = [name.strip() for name in classes.split(",") if name.strip()] if classes else None
        answers = Answers(task, names, size, normalise, resize, crop_share, bgr, outputs)
        who = f"key {request.state.key_id}"
        async with turn:  # each takes a child process and seconds of a core
            return await asyncio.to_thread(_adopt, context, model, data, answers, who, promote, dry_run)

    return Router("/", route_handlers=[adopt])


def _adopt(context: Context, model: str, data: bytes, answers: Any, who: str, promote: bool, dry_run: bool) -> Adopted:
    from sutdol import adoption

    try:
        proposal = adoption.propose(data, answers)
        version = None if dry_run else adoption.adopt(context, model, proposal, who=who, promote=promote)
    except ModelError as error:
        raise InputError(error.message, hint=error.hint, status=422) from error
    height, width = proposal.input.size_hw
    return Adopted(
        model,
        version,
        proposal.task,
        proposal.classes,
        width,
        height,
        proposal.input.resize,
        proposal.plan.outputs,
        proposal.found,
        proposal.assumed,
    )


async def _body(request: Request[Any, Any, Any]) -> bytes:
    """The file; on disk while it comes, because several may come at once."""
    size = 0
    with SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
        async for piece in request.stream():
            size += len(piece)
            if size > MAX_MODEL_BYTES:
                raise InputError(f"model: expected at most {MAX_MODEL_BYTES / 1e6:,.0f} MB", status=413)
            await asyncio.to_thread(file.write, piece)
        file.seek(0)
        return file.read()
