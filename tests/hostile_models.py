"""Models that must never serve: broken, lying, hungry, endless. HOSTILE maps a name to (bytes, words of the refusal).

All claim to be the tiny classifier of `tiny_models` (three classes, 32 px), so whoever tests a road by which models come in
(adoption, a swap) can hand them over one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.tiny_models import SIDE_PX, classifier_onnx, nan_onnx

IMAGES = ["n", 3, SIDE_PX, SIDE_PX]


def _graph(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    shape: Sequence[Any] = IMAGES,
    dtype: int = TensorProto.FLOAT,
    inputs: Sequence[str] = ("images",),
    scores: Sequence[Any] = ("n", 3),
    opset: int = 17,
    ir: int = 10,
    outputs: Sequence[str] = ("scores", "features"),
) -> onnx.ModelProto:
    declared = {"scores": scores, "features": ["n", 3]}
    graph = helper.make_graph(
        list(nodes),
        "hostile",
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(declared[name])) for name in outputs],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def _tiny() -> onnx.ModelProto:
    return onnx.load_model_from_string(classifier_onnx())


def _changed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = _tiny()
    change(model)
    return bytes(model.SerializeToString())


def _with(*extra: onnx.NodeProto, initializers: Sequence[onnx.TensorProto] = ()) -> bytes:
    """The tiny classifier whose scores go through `extra` (from `plain` to `scores`)."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "plain"
        model.graph.node.extend(extra)
        model.graph.initializer.extend(initializers)

    return _changed(change)


def _constant(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _external(path: str) -> bytes:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=path)

    return _changed(change)


def _external_sparse() -> bytes:
    def change(model: onnx.ModelProto) -> None:
        values = TensorProto(name="sparse", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        values.external_data.add(key="location", value="/etc/passwd")
        indices = numpy_helper.from_array(np.array([0], np.int64), "sparse_indices")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))

    return _changed(change)


def _external_attribute() -> bytes:
    value = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="../../secret")
    return _with(
        helper.make_node("Constant", [], ["secret"], value=value),
        helper.make_node("Add", ["plain", "secret"], ["scores"]),
    )


def _external_subgraph() -> bytes:
    value = TensorProto(name="deep", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="weights.bin")
    out = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    node = helper.make_node("Add", ["plain", "deep"], ["branch"])
    branch = helper.make_graph([node], "branch", [], [out], [value])
    yes = numpy_helper.from_array(np.array(True), "yes")
    return _with(
        helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch), initializers=[yes]
    )


def _bomb() -> bytes:
    """A few hundred bytes that ask for 40 GB when they run."""
    shape = _constant("huge", 100_000, 100_000)
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    return _with(
        # depends on the images, so that nothing can be folded when it is loaded
        helper.make_node("Shape", ["images"], ["size"]),
        helper.make_node("Gather", ["size", "first"], ["batch"]),
        helper.make_node("Div", ["batch", "batch"], ["unit"]),
        helper.make_node("Mul", ["huge", "unit"], ["huge_now"]),
        helper.make_node("ConstantOfShape", ["huge_now"], ["mountain"], value=one),
        helper.make_node("ReduceMax", ["mountain"], ["top"], keepdims=0),
        helper.make_node("Mul", ["plain", "top"], ["scores"]),
        initializers=[shape, _constant("first", 0)],
    )


def _endless() -> bytes:
    """A loop that counts to 2^62."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["value", "value"], ["twice"]),
            helper.make_node("Sub", ["twice", "value"], ["same"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, None),
        ],
    )
    often = numpy_helper.from_array(np.array(2**62, np.int64), "often")
    yes = numpy_helper.from_array(np.array(True), "yes")
    return _with(helper.make_node("Loop", ["often", "yes", "plain"], ["scores"], body=body), initializers=[often, yes])


def _nested(depth: int) -> bytes:
    """Graphs in attributes of graphs; written byte by byte, because protobuf itself refuses to build it."""

    def field(number: int, data: bytes) -> bytes:
        size, length = len(data), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + data

    node = b""
    for _ in range(depth):
        node = field(5, field(6, field(1, node)))  # attribute of a node, its graph, a node of that
    return classifier_onnx() + field(7, field(1, node))


def _rebuilt(name: str, **options: Any) -> bytes:
    pool = helper.make_node("GlobalAveragePool", ["images"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["features"])
    return bytes(_graph([pool, flat, helper.make_node(name, ["features"], ["scores"])], **options).SerializeToString())


def _flipped() -> bytes:
    """One exponent bit of a weight: it loads in silence and answers with infinity."""

    def change(model: onnx.ModelProto) -> None:
        weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
        weights.view(np.uint32)[0, 0] |= 0x7F800000
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))

    return _changed(change)


def _text() -> bytes:
    model = onnx.load_model_from_string(_with(helper.make_node("Cast", ["plain"], ["scores"], to=TensorProto.STRING)))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    return bytes(model.SerializeToString())


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "scores"


def _foreign_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.example"
    model.opset_import.append(helper.make_opsetid("evil.example", 1))


def _missing_contrib(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type, model.graph.node[0].domain = "ReadFile", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _set(path: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        if path == "opset":
            model.opset_import[0].version = value
        else:
            setattr(model, path, value)

    return change


def _lie(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 3_000


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["features"], ["scores"]))


_RANDOM = helper.make_node("RandomNormalLike", ["plain"], ["scores"])
_MERGED = helper.make_node("ReduceMean", ["plain"], ["mean"], axes=[0], keepdims=1)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not an ONNX file"),
    "text": (b"hello, this is a model", "not an ONNX file"),
    "a pickle": (b"PK\x03\x04" + b"archive/data.pkl" * 20, "not an ONNX file"),
    "cut at 1 %": (classifier_onnx()[:12], "not an ONNX file"),
    "cut in half": (classifier_onnx()[: len(classifier_onnx()) // 2], "not an ONNX file"),
    "cut at 99 %": (classifier_onnx()[:-4], "not an ONNX file"),
    "a graph without operators": (_changed(lambda m: m.graph.ClearField("node")), "without a single operator"),
    "an operator set of the future": (_changed(_set("opset", 9_999)), "cannot be loaded"),
    "a format of the future": (_changed(_set("ir_version", 99)), "ir_version 99"),
    "weights in another file": (_external("weights.bin"), "lies in another file"),
    "weights up the tree": (_external("../../etc/passwd"), "lies in another file"),
    "weights at an absolute path": (_external("/etc/passwd"), "lies in another file"),
    "sparse weights in another file": (_external_sparse(), "lies in another file"),
    "a constant in another file": (_external_attribute(), "lies in another file"),
    "a branch's weights in another file": (_external_subgraph(), "lies in another file"),
    "an operator of its own": (_changed(_foreign_domain), "unknown domains"),
    "an operator nobody has": (_changed(_missing_contrib), "not a registered function"),
    "a cycle": (_changed(_cycle), "topologically sorted"),
    "one value from two operators": (_changed(_twice), "single static assignment"),
    "weights that lie about their size": (_changed(_lie), "too small for the declared shape"),
    "graphs nested 500 deep": (_nested(500), "not an ONNX file"),
    "weights that are not numbers": (nan_onnx(), "not finite"),
    "one flipped bit": (_flipped(), "not finite"),
    "divides by zero": (
        _with(
            helper.make_node("Sub", ["plain", "plain"], ["zero"]),
            helper.make_node("Div", ["plain", "zero"], ["scores"]),
        ),
        "not finite",
    ),
    "forty gigabytes": (_bomb(), "the model failed"),
    "a loop without end": (_endless(), "was not done after"),
    "another answer every time": (_with(_RANDOM), "the second time"),
    "mixes the images of a batch": (
        _with(_MERGED, helper.make_node("Add", ["plain", "mean"], ["scores"])),
        "alone than in a batch",
    ),
    "one answer for the whole batch": (
        _with(helper.make_node("ReduceMean", ["plain"], ["scores"], axes=[0], keepdims=1)),
        "found (1, 3)",
    ),
    "two classes where three were said": (
        _with(
            helper.make_node("Slice", ["plain", "from", "to", "axis"], ["scores"]),
            initializers=[_constant("from", 0), _constant("to", 2), _constant("axis", 1)],
        ),
        "found (3, 2)",
    ),
    "scores that are text": (_text(), "expected an array of numbers"),
    "two inputs": (
        _changed(lambda m: m.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n", 3]))),
        "Required inputs",
    ),
    "integers in": (
        bytes(
            _graph(
                [
                    helper.make_node("Cast", ["images"], ["real"], to=TensorProto.FLOAT),
                    helper.make_node("GlobalAveragePool", ["real"], ["pooled"]),
                    helper.make_node("Flatten", ["pooled"], ["features"]),
                    helper.make_node("Identity", ["features"], ["scores"]),
                ],
                dtype=TensorProto.INT64,
            ).SerializeToString()
        ),
        "Unexpected input data type",
    ),
    "no features": (_rebuilt("Identity", outputs=("scores",)), "`features`"),
}
"""Name -> file, and what the refusal must say."""
