"""The tensors of the Open Inference Protocol on the wire, version 2 with the binary extension; pure, no HTTP.

    body, length of its JSON part -> parse -> Inference(inputs: name -> Tensor, wanted outputs, parameters)
    Tensors, which of them binary -> pack -> body, length of its JSON part (None: it is all JSON)

FP32 and BYTES are spoken. In binary a BYTES element is 4 little-endian bytes of length and the bytes; in JSON it is a string:
base64 where it comes in (an encoded image is no text), text where it goes out.

Errors: InputError that names the tensor, what was expected and what was found.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from serving.bodies import from_base64, read_json
from sutdol.errors import InputError
from sutdol.runtime import Float32

MAX_DIMENSIONS = 8
_SHARED_MEMORY = "shared_memory_region"


class Input(msgspec.Struct):
    """One input as the JSON part describes it."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: Any = None


class Output(msgspec.Struct):
    """One output that the caller wants."""

    name: str
    parameters: dict[str, Any] = {}


class InferenceBody(msgspec.Struct):
    """The JSON part of an inference request."""

    inputs: list[Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[Output] = []


@dataclass(frozen=True)
class Tensor:
    """A named tensor; FP32 lies in `numbers` in the shape given, BYTES in `strings`, flat."""

    name: str
    shape: tuple[int, ...]
    numbers: Float32 | None = None
    strings: list[bytes] = field(default_factory=list)

    @property
    def datatype(self) -> str:
        return "BYTES" if self.numbers is None else "FP32"


@dataclass(frozen=True)
class Inference:
    """A parsed request.

    Attributes:
        outputs: wanted outputs and how many classes of each (0: the tensor itself); empty means all.
        binary: whether a wanted output comes in binary; `binary_by_default` for those not named.
    """

    id: str
    inputs: dict[str, Tensor]
    outputs: dict[str, int]
    binary: dict[str, bool]
    binary_by_default: bool
    parameters: dict[str, Any]


def parse(body: bytes, header_length: str | None) -> Inference:
    """A request body.

    Args:
        header_length: the header `Inference-Header-Content-Length`; None when the body is JSON alone.

    Raises:
        InputError: see the top of this file.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    given = read_json(body[:length], InferenceBody)
    rest = memoryview(body)[length:]
    inputs: dict[str, Tensor] = {}
    for one in given.inputs:
        if one.name in inputs:
            raise InputError(f"{one.name}: expected each input once, found it twice")
        size = one.parameters.get("binary_data_size")
        if size is None:
            inputs[one.name] = _from_json(one)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise InputError(f"{one.name}: expected binary_data_size of 0 to {len(rest)} bytes, found {size!r}")
        inputs[one.name] = _from_binary(one, rest[:size])
        rest = rest[size:]
    if len(rest):
        raise InputError(f"body: {len(rest)} bytes after the last tensor belong to none")
    wanted: dict[str, int] = {}
    binary: dict[str, bool] = {}
    for output in given.outputs:
        _refuse_shared_memory(output.name, output.parameters)
        classes = output.parameters.get("classification", 0)
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
            raise InputError(f"{output.name}: expected classification of 0 or more classes, found {classes!r}")
        wanted[output.name] = classes
        if "binary_data" in output.parameters:
            binary[output.name] = output.parameters["binary_data"] is True
    default = given.parameters.get("binary_data_output") is True
    return Inference(given.id, inputs, wanted, binary, default, given.parameters)


def pack(head: dict[str, Any], tensors: list[Tensor], *, binary: set[str]) -> tuple[bytes, int | None]:
    """A response body, and the length of its JSON part when binary tensors follow it."""
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for tensor in tensors:
        about: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.name in binary:
            raw = _to_binary(tensor)
            about["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        elif tensor.numbers is not None:
            about["data"] = tensor.numbers.ravel().tolist()
        else:
            about["data"] = [s.decode() for s in tensor.strings]
        outputs.append(about)
    start = msgspec.json.encode(head | {"outputs": outputs})
    return (start, None) if not tail else (b"".join([start, *tail]), len(start))


def _length(header: str, size: int) -> int:
    if not (header.isascii() and header.isdecimal()) or int(header) > size:
        raise InputError(f"Inference-Header-Content-Length: expected 0 to {size}, the body's bytes, found {header!r}")
    return int(header)


def _elements(one: Input) -> int:
    _refuse_shared_memory(one.name, one.parameters)
    if one.datatype not in ("FP32", "BYTES"):
        raise InputError(f"{one.name}: expected datatype FP32 or BYTES, found {one.datatype!r}")
    if len(one.shape) > MAX_DIMENSIONS or any(side < 0 for side in one.shape):
        raise InputError(f"{one.name}: expected a shape of up to {MAX_DIMENSIONS} lengths, found {one.shape}")
    return math.prod(one.shape)


def _refuse_shared_memory(name: str, parameters: dict[str, Any]) -> None:
    if _SHARED_MEMORY in parameters:
        raise InputError(f"{name}: shared memory is not supported", hint="send and receive tensors in the body")


def _from_json(one: Input) -> Tensor:
    count = _elements(one)
    if one.data is None:
        raise InputError(f"{one.name}: expected data, or binary_data_size in its parameters, found neither")
    if one.datatype == "FP32":
        try:
            numbers = np.asarray(one.data, np.float32).ravel()
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{one.name}: expected numbers in a list: {error}") from None
        return _numbers(one, numbers, count)
    flat = _flat(one.data)
    if len(flat) != count or not all(isinstance(text, str) for text in flat):
        raise InputError(f"{one.name}: expected {count} strings of base64 for shape {one.shape}, found {len(flat)}")
    return Tensor(one.name, tuple(one.shape), None, [from_base64(text, one.name) for text in flat])


def _from_binary(one: Input, data: memoryview) -> Tensor:
    count = _elements(one)
    if one.datatype == "FP32":
        if len(data) % 4:
            raise InputError(f"{one.name}: expected 4 bytes a number, found {len(data)} bytes")
        return _numbers(one, np.frombuffer(data, "<f4"), count)
    strings: list[bytes] = []
    while len(data):
        if len(data) < 4 or len(data) - 4 < (size := struct.unpack_from("<I", data)[0]):
            raise InputError(f"{one.name}: expected 4 bytes of length and that many bytes, the data ends too early")
        strings.append(bytes(data[4 : 4 + size]))
        data = data[4 + size :]
    if len(strings) != count:
        raise InputError(f"{one.name}: expected {count} elements for shape {one.shape}, found {len(strings)}")
    return Tensor(one.name, tuple(one.shape), None, strings)


def _numbers(one: Input, numbers: Float32, count: int) -> Tensor:
    if len(numbers) != count:
        raise InputError(f"{one.name}: expected {count} numbers for shape {one.shape}, found {len(numbers)}")
    if not np.isfinite(numbers).all():
        raise InputError(f"{one.name}: expected finite numbers, found some that are not")
    return Tensor(one.name, tuple(one.shape), numbers.reshape(one.shape))


def _flat(data: Any) -> list[Any]:
    """Rows first; nested at most as deep as a shape may be."""
    level = data if isinstance(data, list) else [data]
    for _ in range(MAX_DIMENSIONS):
        if not any(isinstance(part, list) for part in level):
            break
        level = [inner for part in level for inner in (part if isinstance(part, list) else [part])]
    return level


def _to_binary(tensor: Tensor) -> bytes:
    if tensor.numbers is not None:
        return np.ascontiguousarray(tensor.numbers, "<f4").tobytes()
    return b"".join(struct.pack("<I", len(s)) + s for s in tensor.strings)
