"""The Open Inference Protocol, version 2: health, metadata and inference as `tritonclient[http]` speaks it.

    JSON + binary tensors -> tensors.parse -> image (BYTES): the road of /v1, logged, picked, calibrated
                                           -> images (FP32): the model itself, its own outputs, not logged
                          -> tensors.pack -> JSON + binary tensors

A model has two inputs, of which a request brings one. `image` is an encoded picture and gets what /v1 answers: `prediction`
(its JSON), `prediction_id`, `label`, `confidence`. `images` is the tensor that the caller has made itself, and gets `scores`
and `features`. Raw tensors are counted but not logged: the log's unit is a sample, an image that a person could look at; a
row without one could never be labelled, and would only dilute the live accuracy and the drift that are measured on the log.

Errors: problems as everywhere, with a member `error` that carries the text for clients of this protocol.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Annotated, Any

import msgspec
import numpy as np
from litestar import Request, Response, Router, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter

import sutdol
from serving.answers import Ask, Reply, as_json
from serving.auth import Keyring, needs
from serving.bodies import MAX_IMAGES, SMALL_BYTES, Bodies, settled, while_connected
from serving.engine import Engine, Item, Numbers
from serving.loading import Loaded
from serving.schemas import InferOperation, of_each_path
from serving.slots import Slots
from serving.tensors import Inference, Tensor, pack, parse
from serving.tickets import Ticket, outcomes
from sutdol.errors import BusyError, InputError
from sutdol.runtime import Float32
from sutdol.types import Manifest

HttpRequest = Request[Any, Any, Any]
IMAGE, TENSOR = "image", "images"
OF_IMAGE = ("prediction", "prediction_id", "label", "confidence")
OF_TENSOR = ("scores", "features")
AT_ONCE = 8
"""Images of one request in the queue at a time."""
PARSED_AT_ONCE = 2
"""Large bodies: as JSON, 20 MB of numbers take 130 MB while they are parsed."""
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
]

HeaderLength = Annotated[
    str | None,
    HeaderParameter(
        name="Inference-Header-Content-Length",
        description="Bytes of JSON at the beginning, when binary tensors follow.",
    ),
]


class Liveness(msgspec.Struct):
    """The process answers."""

    live: bool


class Readiness(msgspec.Struct):
    """Predictions can be answered."""

    ready: bool


class ModelReadiness(msgspec.Struct):
    """Predictions of this model can be answered."""

    name: str
    ready: bool


class ServerMetadata(msgspec.Struct):
    """Who answers, and which extensions of the protocol it speaks."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct):
    """One input or output; -1 stands for any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """What a model takes and gives; `image` or `images`, not both."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def build(slots: Slots, engine: Engine, keyring: Keyring, bodies: Bodies, ready: Any) -> Router:
    """The routes of this file. `ready()` lists what stands in the way of answering, as for /readyz."""
    reader = needs(keyring, "predict")
    parsing = asyncio.Semaphore(PARSED_AT_ONCE)

    @get("/v2/health/live", tags=["inference protocol"], summary="Is the process alive?", operation_id="v2_live")
    async def live() -> Liveness:
        return Liveness(live=True)

    @get("/v2/health/ready", tags=["inference protocol"], summary="Can it answer?", operation_id="v2_ready")
    async def server_ready() -> Readiness:
        if problems := ready():
            raise BusyError("; ".join(problems))
        return Readiness(ready=True)

    @get("/v2", tags=["inference protocol"], summary="Server metadata", operation_id="v2_server")
    async def server() -> ServerMetadata:
        return ServerMetadata("sutdol", sutdol.__version__, EXTENSIONS)

    @get(
        ["/v2/models/{model:str}/ready", "/v2/models/{model:str}/versions/{version:str}/ready"],
        guards=[reader],
        tags=["inference protocol"],
        summary="Does this model answer?",
        operation_id=of_each_path("v2_model_ready"),
    )
    async def model_ready(model: str, version: str | None = None) -> ModelReadiness:
        await answering(slots, model, version)
        return ModelReadiness(model, ready=True)

    @get(
        ["/v2/models/{model:str}", "/v2/models/{model:str}/versions/{version:str}"],
        guards=[reader],
        tags=["inference protocol"],
        summary="Inputs and outputs of a model",
        operation_id=of_each_path("v2_model"),
    )
    async def model_metadata(model: str, version: str | None = None) -> ModelMetadata:
        loaded = await answering(slots, model, version)
        inputs, outputs = shapes(loaded.predictor.manifest)
        return ModelMetadata(model, [str(loaded.version)], "onnxruntime_onnx", inputs, outputs)

    @get(
        ["/v2/models/{model:str}/config", "/v2/models/{model:str}/versions/{version:str}/config"],
        guards=[reader],
        tags=["inference protocol"],
        summary="A model's configuration in Triton's words",
        operation_id=of_each_path("v2_model_config"),
    )
    async def model_config(model: str, version: str | None = None) -> dict[str, Any]:
        return _config(model, await answering(slots, model, version))

    @post(
        ["/v2/models/{model:str}/infer", "/v2/models/{model:str}/versions/{version:str}/infer"],
        guards=[reader],
        operation_class=InferOperation,
        status_code=200,
        tags=["inference protocol"],
        summary="Predict images or run tensors",
        operation_id=of_each_path("v2_infer"),
        responses={
            200: ResponseSpec(dict, generate_examples=False, description="JSON, then binary tensors if wanted.")
        },
    )
    async def infer(
        request: HttpRequest, model: str, header_length: HeaderLength = None, version: str | None = None
    ) -> Response[bytes]:
        loaded = await answering(slots, model, version)
        async with bodies.of(request) as body:
            if header_length == "0":  # the body is one encoded image and nothing else
                given = Inference("", {IMAGE: Tensor(IMAGE, (1,), None, [body])}, {}, {}, True, {})
            elif len(body) <= SMALL_BYTES:
                given = parse(body, header_length)
            else:
                async with parsing:
                    given = await asyncio.to_thread(parse, body, header_length)
            items, wanted = _plan(given, loaded, reference(model, version), request.state.get("key_id"))
            if len(items) == 1:
                engine.submit(items[0])
                answers: list[Any] = [await settled(items[0].ticket, request)]
            else:
                answers = await while_connected(outcomes(engine.submit, items, at_once=AT_ONCE), request)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            answered_by, tensors = _outputs(answers, wanted, given)
        head = {"model_name": model, "model_version": str(answered_by)} | ({"id": given.id} if given.id else {})
        binary = {t.name for t in tensors if given.binary.get(t.name, given.binary_by_default)}
        content, length = await asyncio.to_thread(pack, head, tensors, binary=binary)
        if length is None:
            return Response(content, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(length)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    return Router("/", route_handlers=[live, server_ready, server, model_ready, model_metadata, model_config, infer])


def reference(model: str, version: str | None) -> str:
    """A model and the version in the path as one reference; aliases (`champion`) are versions too."""
    return model if version is None else f"{model}@{version}"


async def answering(slots: Slots, model: str, version: str | None) -> Loaded:
    """The version that answers, loaded because of this request if need be.

    Raises:
        NotFoundError: no such model or version. BusyError: nothing is loaded for it. ModelError: it does not load.
    """
    return await slots.ready(reference(model, version))


def shapes(manifest: Manifest) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    """Inputs and outputs of a model with this manifest."""
    height, width = manifest.input.size_hw
    scores = [-1, 4 + len(manifest.classes), -1] if manifest.task == "detect" else [-1, len(manifest.classes)]
    inputs = [TensorMetadata(IMAGE, "BYTES", [-1, 1]), TensorMetadata(TENSOR, "FP32", [-1, 3, height, width])]
    texts = [TensorMetadata(name, "BYTES", [-1, 1]) for name in OF_IMAGE[:3]]
    numbers = [TensorMetadata("scores", "FP32", scores), TensorMetadata("features", "FP32", [-1, -1])]
    return inputs, [*texts, TensorMetadata("confidence", "FP32", [-1, 1]), *numbers]


def _config(model: str, loaded: Loaded) -> dict[str, Any]:
    inputs, outputs = shapes(loaded.predictor.manifest)
    kind = "KIND_CPU" if loaded.predictor.provider == "CPUExecutionProvider" else "KIND_GPU"

    def words(tensor: TensorMetadata) -> dict[str, Any]:
        data_type = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
        return {"name": tensor.name, "data_type": data_type, "dims": tensor.shape[1:]}

    return {
        "name": model,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": MAX_IMAGES,
        "version_policy": {"specific": {"versions": [loaded.version]}},
        "input": [words(tensor) | {"optional": True} for tensor in inputs],
        "output": [words(tensor) for tensor in outputs],
        "instance_group": [{"name": model, "kind": kind, "count": 1}],
        "parameters": {"classes": {"string_value": msgspec.json.encode(loaded.predictor.manifest.classes).decode()}},
    }


def _plan(given: Inference, loaded: Loaded, asked: str, key_id: str | None) -> tuple[list[Item], tuple[str, ...]]:
    """Items for the engine, and the outputs that this kind of input has."""
    names = sorted(given.inputs)
    if names not in ([IMAGE], [TENSOR]):
        raise InputError(
            f"inputs: expected one, {IMAGE!r} (BYTES) or {TENSOR!r} (FP32), found {', '.join(names) or 'none'}"
        )
    tensor = given.inputs[names[0]]
    wanted = OF_IMAGE if tensor.name == IMAGE else OF_TENSOR
    for name, classes in given.outputs.items():
        if name not in wanted:
            raise InputError(f"outputs: for {tensor.name!r} expected {', '.join(wanted)}, found {name!r}")
        if classes and (name != "scores" or loaded.predictor.manifest.task == "detect"):
            raise InputError(f"{name}: classification is for the scores of a classifier")
    timeout_us = given.parameters.get("timeout", 0)
    if not isinstance(timeout_us, int) or timeout_us < 0:
        raise InputError(f"timeout: expected microseconds, found {timeout_us!r}")
    deadline = time.monotonic() + timeout_us / 1e6 if timeout_us else math.inf
    if not tensor.shape or not 1 <= tensor.shape[0] <= MAX_IMAGES:
        raise InputError(f"{tensor.name}: expected 1 to {MAX_IMAGES} images, found shape {list(tensor.shape)}")
    if tensor.name == TENSOR:
        return [Item(asked, b"", key_id, Ticket(), deadline, tensor=row) for row in _rows(tensor, loaded)], wanted
    if tensor.datatype != "BYTES" or tensor.shape[1:] not in ((), (1,)):
        raise InputError(
            f"{IMAGE}: expected BYTES of shape (n) or (n, 1), found {tensor.datatype} {list(tensor.shape)}"
        )
    ask = Ask(as_json, given.parameters.get("max_risk"))
    if ask.max_risk is not None and not (isinstance(ask.max_risk, int | float) and 0 <= ask.max_risk <= 1):
        raise InputError(f"max_risk: expected a number in [0, 1], found {ask.max_risk!r}")
    return [Item(asked, data, key_id, Ticket(), deadline, ask) for data in tensor.strings], wanted


def _rows(tensor: Tensor, loaded: Loaded) -> list[Float32]:
    expected = (3, *loaded.predictor.manifest.input.size_hw)
    if tensor.numbers is None or tensor.shape[1:] != expected:
        raise InputError(
            f"{TENSOR}: expected FP32 of shape (n, {', '.join(map(str, expected))}), "
            f"found {tensor.datatype} {list(tensor.shape)}"
        )
    return list(tensor.numbers)


def _outputs(answers: list[Any], wanted: tuple[str, ...], given: Inference) -> tuple[int, list[Tensor]]:
    """The version that answered, and the tensors that the caller wants, in its order."""
    if isinstance(answers[0], Numbers):
        version = answers[0].loaded.version
        classes = answers[0].loaded.predictor.manifest.classes
        there = {
            name: Tensor(name, (len(rows), *rows.shape[1:]), rows)
            for name in wanted
            for rows in [np.stack([getattr(answer, name) for answer in answers])]
        }
    else:
        replies = [msgspec.json.decode(answer, type=Reply) for answer in answers]
        version, classes, shape = replies[0].version, [], (len(replies), 1)
        sure = np.array([[reply.confidence] for reply in replies], np.float32)
        texts = {
            "prediction": answers,
            "prediction_id": [reply.prediction_id.encode() for reply in replies],
            "label": [reply.predictions[0].name.encode() if reply.predictions else b"" for reply in replies],
        }
        there = {name: Tensor(name, shape, None, strings) for name, strings in texts.items()}
        there["confidence"] = Tensor("confidence", shape, sure)
    chosen = given.outputs or dict.fromkeys(wanted, 0)
    return version, [_classified(there[n], count, classes) if count else there[n] for n, count in chosen.items()]


def _classified(tensor: Tensor, count: int, classes: list[str]) -> Tensor:
    """The `count` largest of each row as strings `value:index:label`, the protocol's classification extension."""
    assert tensor.numbers is not None
    count = min(count, tensor.shape[1])
    strings = [
        f"{row[k]:f}:{k}:{classes[k]}".encode()
        for row in tensor.numbers
        for k in np.argsort(-row, kind="stable")[:count]
    ]
    return Tensor(tensor.name, (tensor.shape[0], count), None, strings)
