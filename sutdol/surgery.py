"""A foreign ONNX graph gets the ends that our contract asks for; its inside stays as its owner exported it.

    bytes -> look -> Look (input, outputs, metadata) -> Plan (what people confirmed) -> operate -> model.onnx

    images (n, 3, h, w) -> [channels, range, layout, element type] -> the foreign graph -> [logits | boxes] -> scores
                                                 its penultimate tensor, or mean and std of early layers -> features

A fixed batch of one is opened: reshapes that name it take it from their input instead. Where that is not enough (a class
token that is expanded to one) the whole graph is put into a Scan over the images, which is right but slower.

Only files that passed `selftest.try_model` come here. Errors: ModelError for a graph that cannot be given these ends.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, shape_inference

from sutdol.errors import ModelError

Outputs = Literal["logits", "probabilities", "boxes", "boxes-last", "yolov5", "end2end"]
OPSET_MIN = 11
_PREFIX = "own/"
_PASSING = {"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}


@dataclass(frozen=True)
class Look:
    """What a file says about itself.

    Attributes:
        size_hw: fixed input size in pixels; None where it is open.
        layout: where the channels stand.
        shape: of the first output; open sizes are None.
        names: class names out of the metadata, in order.
        maker: `ultralytics` when it says so, else empty.
    """

    input: str
    element: int
    layout: Literal["nchw", "nhwc"]
    size_hw: tuple[int, int] | None
    fixed_batch: bool
    output: str
    shape: list[int | None]
    others: list[str]
    names: list[str]
    maker: str
    task: str
    opset: int


@dataclass(frozen=True)
class Plan:
    """How the graph is to be read; see `adoption.propose`, which fills it from a `Look` and a person's answers."""

    classes: int
    size_hw: tuple[int, int]
    outputs: Outputs
    multilabel: bool = False
    bgr: bool = False
    range_255: bool = False
    normalised_boxes: bool = False


@dataclass
class _Ends:
    """Nodes and weights to be added before and behind the foreign graph."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0

    def add(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        self.count += 1
        name = out or f"added/{kind}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        self.count += 1
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), f"added/constant_{self.count}"))
        return self.weights[-1].name


def look(data: bytes) -> Look:
    """Read the ends of a graph.

    Raises:
        ModelError: several inputs, no image among them, or operators older than the surgery knows.
    """
    model = onnx.load_model_from_string(data)
    weights = {w.name for w in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    if len(inputs) != 1:
        raise ModelError(f"model.onnx: expected one input, an image, found {[i.name for i in inputs]}")
    shape = _dimensions(inputs[0])
    element = inputs[0].type.tensor_type.elem_type
    if len(shape) != 4 or element not in (*_FLOATS, TensorProto.UINT8):
        kind = TensorProto.DataType.Name(element).lower()
        raise ModelError(f"model.onnx: expected images (n, 3, h, w) as float or uint8, found {kind} {shape}")
    last = shape[3] == 3 and shape[1] != 3
    if not last and shape[1] not in (3, None):
        raise ModelError(f"model.onnx: expected 3 colour channels, found an input of shape {shape}")
    height, width = (shape[1], shape[2]) if last else (shape[2], shape[3])
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OPSET_MIN:
        raise ModelError(
            f"model.onnx: operator set {opset} is too old", hint=f"export again with opset {OPSET_MIN} or newer"
        )
    metadata = {p.key: p.value for p in model.metadata_props}
    outputs = list(model.graph.output)
    return Look(
        input=inputs[0].name,
        element=element,
        layout="nhwc" if last else "nchw",
        size_hw=(height, width) if height and width else None,
        fixed_batch=shape[0] is not None,
        output=outputs[0].name,
        shape=_dimensions(outputs[0]),
        others=[o.name for o in outputs[1:]],
        names=_names(metadata.get("names", "")),
        maker="ultralytics" if "ltralytics" in metadata.get("author", "") + metadata.get("description", "") else "",
        task=metadata.get("task", ""),
        opset=opset,
    )


def operate(data: bytes, found: Look, plan: Plan, *, scan: bool = False) -> bytes:
    """The file with our ends.

    Args:
        scan: run the foreign graph once per image; for graphs whose batch cannot be opened.

    Raises:
        ModelError: the output has not the shape that the plan says.
    """
    model = onnx.load_model_from_string(data)
    _constants_to_weights(model)
    shapes = _shapes(model, found, plan)
    model = compose.add_prefix(model, _PREFIX)
    source, output = _PREFIX + found.input, _PREFIX + found.output
    if found.fixed_batch and not scan:
        _open_batch(model, source)
    before, behind = _Ends(), _Ends(count=1_000)
    fed = _feed(before, found, plan, source)
    if found.element == TensorProto.FLOAT16:
        output = behind.add("Cast", output, to=TensorProto.FLOAT)
    half = found.element == TensorProto.FLOAT16
    if plan.outputs in ("logits", "probabilities"):
        logits = _logits(model.graph, behind, output, plan)
        features = _penultimate(model.graph, behind, logits, shapes, half=half)
        _named(behind, logits, "scores")
    else:
        features = _early(model.graph, behind, shapes, plan, half=half)
        _named(behind, _boxes(behind, output, found, plan), "scores")
    _named(behind, features, "features")
    return _assembled(model, before, behind, source, fed, plan, scan=scan)


def _feed(ends: _Ends, found: Look, plan: Plan, source: str) -> str:
    """From our images (n, 3, h, w) float32 to what the graph takes; returns the name of what feeds it."""
    value = "images"
    if plan.bgr:
        value = ends.add("Gather", value, ends.constant([2, 1, 0], np.int64), axis=1)
    if plan.range_255 or found.element == TensorProto.UINT8:
        value = ends.add("Mul", value, ends.constant(255.0))
    if found.element == TensorProto.UINT8:
        value = ends.add("Round", value)
    if found.layout == "nhwc":
        value = ends.add("Transpose", value, perm=[0, 2, 3, 1])
    if found.element != TensorProto.FLOAT:
        value = ends.add("Cast", value, to=found.element)
    return ends.add("Identity", value, out=source)


def _logits(graph: onnx.GraphProto, ends: _Ends, output: str, plan: Plan) -> str:
    """Logits (n, classes): the input of a closing softmax or sigmoid where there is one, else the inverse of it."""
    made_by = {name: node for node in graph.node for name in node.output}
    last = made_by.get(output)
    if plan.outputs == "probabilities":
        wanted = "Sigmoid" if plan.multilabel else "Softmax"
        while last is not None and last.op_type in _PASSING:
            last = made_by.get(last.input[0])
        if last is not None and last.op_type == wanted:
            output = last.input[0]
        else:
            p = ends.add("Clip", output, ends.constant(1e-7), ends.constant(1 - 1e-7))
            logs = ends.add("Log", p)
            rest = ends.add("Log", ends.add("Sub", ends.constant(1.0), p)) if plan.multilabel else None
            output = ends.add("Sub", logs, rest) if rest else logs
    return ends.add("Reshape", output, ends.constant([0, plan.classes], np.int64))


def _penultimate(
    graph: onnx.GraphProto, ends: _Ends, logits: str, shapes: dict[str, list[int | None]], *, half: bool
) -> str:
    """Input of the last linear layer, flattened: (n, d). The logits themselves where no such layer is found."""
    made_by = {name: node for node in [*graph.node, *ends.nodes] for name in node.output}
    weights = {w.name for w in graph.initializer}
    value = logits
    for _ in range(40):
        node = made_by.get(value)
        if node is None:
            break
        fixed = [name for name in node.input if name in weights]
        moving = [name for name in node.input if name and name not in weights]
        if node.op_type in ("Gemm", "MatMul", "Conv") and fixed and len(moving) == 1:
            flat = ends.add("Flatten", moving[0], axis=1)
            return ends.add("Cast", flat, to=TensorProto.FLOAT) if half else flat
        if len(moving) != 1 and node.op_type not in _PASSING:
            break
        value = moving[0] if moving else ""
    return logits


def _early(graph: onnx.GraphProto, ends: _Ends, shapes: dict[str, list[int | None]], plan: Plan, *, half: bool) -> str:
    """Channel means and deviations of early layers, (n, d): later ones hide noise, darkness and other pictures.

    Taken are the first tensor at a quarter of the size, and what the first halving layers at a quarter and an eighth get.
    """
    height = plan.size_hw[0]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    chosen: list[str] = []
    first = next((n.output[0] for n in convolutions if _height(shapes, n.output[0]) == height // 4), None)
    if first:
        chosen.append(first)
    for part in (4, 8):
        for node in convolutions:
            into, out = _height(shapes, node.input[0]), _height(shapes, node.output[0])
            if into == height // part and out == height // (2 * part):
                chosen.append(node.input[0])
                break
    chosen = list(dict.fromkeys(chosen)) or [n.output[0] for n in convolutions[:3]]
    if not chosen:
        raise ModelError("model.onnx: expected convolutions, found none to take features from")
    parts = []
    for name in chosen:
        tensor = ends.add("Cast", name, to=TensorProto.FLOAT) if half else name
        mean = ends.add("GlobalAveragePool", tensor)
        apart = ends.add("Sub", tensor, mean)
        variance = ends.add("GlobalAveragePool", ends.add("Mul", apart, apart))
        spread = ends.add("Sqrt", ends.add("Add", variance, ends.constant(1e-6)))
        parts += [ends.add("Flatten", mean, axis=1), ends.add("Flatten", spread, axis=1)]
    return ends.add("Concat", *parts, axis=1)


def _boxes(ends: _Ends, output: str, found: Look, plan: Plan) -> str:
    """(n, 4 + classes, anchors): centre, size in input pixels, then probabilities."""

    def part(value: str, start: int, stop: int, axis: int) -> str:
        numbers = ([start], [stop], [axis])
        return ends.add("Slice", value, *(ends.constant(n, np.int64) for n in numbers))

    classes, end = plan.classes, 2**31 - 1
    if plan.outputs == "end2end":  # x1 y1 x2 y2 score class, one row per box
        corners, score, index = part(output, 0, 4, 2), part(output, 4, 5, 2), part(output, 5, 6, 2)
        low, high = part(corners, 0, 2, 2), part(corners, 2, 4, 2)
        centre = ends.add("Mul", ends.add("Add", low, high), ends.constant(0.5))
        number = ends.add("Squeeze", ends.add("Cast", index, to=TensorProto.INT64), *_axes(ends, found, 2))
        if found.opset < 13:
            ends.nodes[-1].attribute.append(helper.make_attribute("axes", [2]))
        hot = ends.add("OneHot", number, ends.constant(classes, np.int64), ends.constant([0.0, 1.0]), axis=-1)
        rows = ends.add("Concat", centre, ends.add("Sub", high, low), ends.add("Mul", hot, score), axis=2)
    elif plan.outputs == "yolov5":  # centre, size, objectness, classes
        chances = ends.add("Mul", part(output, 5, end, 2), part(output, 4, 5, 2))
        rows = ends.add("Concat", part(output, 0, 4, 2), chances, axis=2)
    elif plan.outputs == "boxes-last":
        rows = output
    else:
        rows = ends.add("Transpose", output, perm=[0, 2, 1])
    if plan.normalised_boxes:
        height, width = plan.size_hw
        sizes = ends.constant([width, height, width, height])
        rows = ends.add("Concat", ends.add("Mul", part(rows, 0, 4, 2), sizes), part(rows, 4, end, 2), axis=2)
    return ends.add("Transpose", rows, perm=[0, 2, 1])


def _axes(ends: _Ends, found: Look, axis: int) -> list[str]:
    """Axes are an input from operator set 13 on, an attribute before."""
    return [ends.constant([axis], np.int64)] if found.opset >= 13 else []


def _named(ends: _Ends, value: str, name: str) -> None:
    ends.add("Identity", value, out=name)


def _assembled(
    model: onnx.ModelProto, before: _Ends, behind: _Ends, source: str, fed: str, plan: Plan, *, scan: bool
) -> bytes:
    height, width = plan.size_hw
    nodes = [*before.nodes, *model.graph.node, *behind.nodes]
    weights = [*before.weights, *model.graph.initializer, *behind.weights]
    if scan:
        nodes, weights = _scanned(nodes, weights, opset=_opset(model))
    graph = helper.make_graph(
        nodes,
        "adopted",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, height, width])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", *[None] * (1 if _flat(plan) else 2)]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", None]),
        ],
        weights,
    )
    whole = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=max(model.ir_version, 7))
    whole.functions.extend(model.functions)
    return bytes(whole.SerializeToString())


def _scanned(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], *, opset: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The graph as the body of a Scan: one image in, one row out, so that its batch stays one."""
    zero = numpy_helper.from_array(np.array([0], np.int64), "added/zero")

    def moved(kind: str, value: str, out: str) -> onnx.NodeProto:
        if opset >= 13:
            return helper.make_node(kind, [value, "added/zero"], [out])
        return helper.make_node(kind, [value], [out], axes=[0])

    def renamed(node: onnx.NodeProto) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        names = {"images": "one/images", "scores": "one/scores", "features": "one/features"}
        copy.input[:] = [names.get(n, n) for n in copy.input]
        copy.output[:] = [names.get(n, n) for n in copy.output]
        return copy

    body = helper.make_graph(
        [
            moved("Unsqueeze", "one/image", "one/images"),
            *(renamed(node) for node in nodes),
            moved("Squeeze", "one/scores", "row/scores"),
            moved("Squeeze", "one/features", "row/features"),
        ],
        "one-image",
        [helper.make_tensor_value_info("one/image", TensorProto.FLOAT, None)],
        [
            helper.make_tensor_value_info("row/scores", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("row/features", TensorProto.FLOAT, None),
        ],
        [*weights, zero],
    )
    return [helper.make_node("Scan", ["images"], ["scores", "features"], body=body, num_scan_inputs=1)], []


def _open_batch(model: onnx.ModelProto, source: str) -> None:
    """Reshapes that name a batch of one, of what depends on the images, take the batch from their input (0) instead."""
    graph = model.graph
    weights = {w.name: w for w in graph.initializer}
    moving = {source}
    for node in graph.node:
        if any(name in moving for name in node.input):
            moving.update(node.output)
        if node.op_type == "Reshape" and node.input[0] in moving and node.input[1] in weights:
            shape = numpy_helper.to_array(weights[node.input[1]]).copy()
            if len(shape) > 1 and shape[0] == 1:
                shape[0] = 0
                name = f"{node.input[1]}/open{len(weights)}"
                weights[name] = numpy_helper.from_array(shape, name)
                graph.initializer.append(weights[name])
                node.input[1] = name
    del graph.value_info[:]


def _constants_to_weights(model: onnx.ModelProto) -> None:
    """Constant nodes become weights, and copies of weights give way to the weights themselves, so that both are seen."""
    weights = {w.name: w for w in model.graph.initializer}
    deep = any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute)
    same: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            copy = TensorProto()
            copy.CopyFrom(value)
            copy.name = node.output[0]
            weights[copy.name] = copy
            model.graph.initializer.append(copy)
        elif node.op_type == "Identity" and node.input[0] in weights and not deep:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _shapes(model: onnx.ModelProto, found: Look, plan: Plan) -> dict[str, list[int | None]]:
    """Sizes of all tensors for one image, by their prefixed names; those that cannot be told are missing."""
    one = onnx.ModelProto()
    one.CopyFrom(model)
    for given in one.graph.input:
        if given.name == found.input:
            height, width = plan.size_hw
            sizes = [1, 3, height, width] if found.layout == "nchw" else [1, height, width, 3]
            for dimension, size in zip(given.type.tensor_type.shape.dim, sizes, strict=True):
                dimension.dim_value = size
    for result in one.graph.output:
        result.type.tensor_type.ClearField("shape")
    try:
        one = shape_inference.infer_shapes(one, data_prop=True)
    except shape_inference.InferenceError as error:
        raise ModelError(f"model.onnx: its shapes contradict each other: {str(error).splitlines()[0][:200]}") from error
    return {_PREFIX + v.name: _dimensions(v) for v in [*one.graph.value_info, *one.graph.input]}


def _height(shapes: dict[str, list[int | None]], name: str) -> int | None:
    shape = shapes.get(name, [])
    return shape[2] if len(shape) == 4 else None


def _dimensions(value: onnx.ValueInfoProto) -> list[int | None]:
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim
    ]


def _opset(model: onnx.ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _flat(plan: Plan) -> bool:
    return plan.outputs in ("logits", "probabilities")


def _names(text: str) -> list[str]:
    """`{0: 'cat', 1: 'dog'}` or `['cat', 'dog']` as some exporters write it; empty for anything else."""
    try:
        value = ast.literal_eval(text) if len(text) < 1_000_000 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    if isinstance(value, dict) and all(isinstance(k, int) for k in value):
        return [str(value[k]) for k in sorted(value)]
    return [str(v) for v in value] if isinstance(value, list) else []
