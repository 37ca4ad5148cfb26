"""Request bodies in the OpenAPI document that no type of ours describes: images, forms, tensors.

The handlers read their bodies themselves (see `bodies`), so the framework cannot see what they take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.types import OperationIDCreator

from serving.bodies import FIELDS, MAX_IMAGES

TEXT = Schema(type=OpenAPIType.STRING)
NUMBER = Schema(type=OpenAPIType.NUMBER)
BINARY = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
ENCODED = Schema(type=OpenAPIType.STRING, content_encoding="base64")


def of_each_path(name: str) -> OperationIDCreator:
    """Operation ids of a handler with several paths: the name, and behind it what tells this path from the others."""

    def operation_id(_: Any, __: Any, parts: list[Any]) -> str:
        words = [part if isinstance(part, str) else part.name for part in parts]
        return "_".join([name, *(word for word in words if word not in ("v2", "models"))])

    return operation_id


def record(required: list[str] | None = None, *, closed: bool = False, **properties: Schema) -> Schema:
    """An object; `closed` refuses other fields."""
    return Schema(
        type=OpenAPIType.OBJECT,
        properties=dict(properties),
        required=required,
        additional_properties=False if closed else None,
    )


def several(items: Schema, *, at_least: int | None = None, at_most: int | None = None) -> Schema:
    """An array."""
    return Schema(type=OpenAPIType.ARRAY, items=items, min_items=at_least, max_items=at_most)


def body(description: str, by_kind: dict[str, Schema], *, required: bool = True) -> RequestBody:
    """A request body, by media type."""
    content = {kind: OpenAPIMediaType(schema) for kind, schema in by_kind.items()}
    return RequestBody(content, description=description, required=required)


@dataclass
class PredictOperation(Operation):
    """One image, raw or in a form."""

    def __post_init__(self) -> None:
        form = Schema(type=OpenAPIType.OBJECT, properties=dict.fromkeys(FIELDS, BINARY), min_properties=1)
        kinds = ("image/jpeg", "image/png", "image/webp", "image/gif", "application/octet-stream")
        self.request_body = body("One image.", dict.fromkeys(kinds, BINARY) | {"multipart/form-data": form})


@dataclass
class BatchOperation(Operation):
    """Several images, in a form or as JSON."""

    def __post_init__(self) -> None:
        files = several(BINARY, at_least=1, at_most=MAX_IMAGES)
        form = Schema(type=OpenAPIType.OBJECT, properties=dict.fromkeys(FIELDS, files), min_properties=1)
        listed = record(["images"], closed=True, images=several(ENCODED, at_least=1, at_most=MAX_IMAGES))
        self.request_body = body("Several images.", {"multipart/form-data": form, "application/json": listed})


@dataclass
class FeedbackOperation(Operation):
    """What the right answer was."""

    def __post_init__(self) -> None:
        corners = record(["x1", "y1", "x2", "y2"], x1=NUMBER, y1=NUMBER, x2=NUMBER, y2=NUMBER)
        box = record(["name", "box"], name=TEXT, box=corners)
        said = Schema(
            type=OpenAPIType.OBJECT,
            properties={"class": TEXT, "classes": several(TEXT), "boxes": several(box)},
            min_properties=1,
            max_properties=1,
            additional_properties=False,
        )
        self.request_body = body("The right answer, in one of three ways.", {"application/json": said})


@dataclass
class InferOperation(Operation):
    """Tensors in JSON, or JSON followed by binary tensors."""

    def __post_init__(self) -> None:
        anything = Schema(type=OpenAPIType.OBJECT)
        tensor = record(
            ["name", "datatype", "shape"],
            name=Schema(type=OpenAPIType.STRING, enum=["image", "images"]),
            datatype=Schema(type=OpenAPIType.STRING, enum=["BYTES", "FP32"]),
            shape=several(Schema(type=OpenAPIType.INTEGER, minimum=0)),
            parameters=anything,
            data=Schema(type=OpenAPIType.ARRAY),
        )
        wanted = record(["name"], name=TEXT, parameters=anything)
        whole = record(
            ["inputs"], id=TEXT, inputs=several(tensor, at_least=1), outputs=several(wanted), parameters=anything
        )
        self.request_body = body(
            "JSON, and binary tensors behind it when Inference-Header-Content-Length says where it ends.",
            {"application/json": whole, "application/octet-stream": BINARY},
        )


@dataclass
class AnyJsonOperation(Operation):
    """A JSON object, or nothing."""

    def __post_init__(self) -> None:
        anything = Schema(type=OpenAPIType.OBJECT)
        self.request_body = body("Parameters, if any.", {"application/json": anything}, required=False)
