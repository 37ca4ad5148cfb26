"""ONNX files as other people's exporters write them, a few kilobytes each; all see red, green and blue like `tiny_models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
ANCHORS = 20


def saved(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Any],
    output: Sequence[Any],
    *,
    shape: Sequence[Any] = ("n", 3, SIDE, SIDE),
    element: int = TensorProto.FLOAT,
    source: str = "input.1",
    opset: int = 17,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """A file whose last node gives `out`."""
    graph = helper.make_graph(
        list(nodes),
        "foreign",
        [helper.make_tensor_value_info(source, element, list(shape))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, list(output))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def classifier(
    closing: str | None = None,
    *,
    batch: Any = "n",
    nhwc: bool = False,
    uint8: bool = False,
    bgr: bool = False,
    reshape: bool = False,
    expand: bool = False,
) -> bytes:
    """Channel means, then one linear layer; class i is colour i.

    Args:
        closing: Softmax or Sigmoid.
        reshape: flattens by a reshape that names the batch of one.
        expand: adds a token that is expanded to a batch of one and put beside the image's: cannot be opened.
    """
    matrix = np.eye(3, dtype=np.float32)[::-1].copy() * 6 if bgr else np.eye(3, dtype=np.float32) * 6
    weights: dict[str, Any] = {"fc.weight": matrix, "fc.bias": np.array([0.1, 0.2, -0.3], np.float32)}
    nodes, value = [], "input.1"
    if uint8:
        nodes.append(helper.make_node("Cast", [value], ["real"], to=TensorProto.FLOAT))
        weights["scale"] = np.float32(1 / 255)
        nodes.append(helper.make_node("Mul", ["real", "scale"], ["scaled"]))
        value = "scaled"
    if nhwc:
        nodes.append(helper.make_node("Transpose", [value], ["chw"], perm=[0, 3, 1, 2]))
        value = "chw"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    if reshape or expand:
        weights["flat"] = np.array([1, 3], np.int64)
        nodes.append(helper.make_node("Reshape", ["pooled", "flat"], ["features"]))
    else:
        nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    if expand:
        weights |= {"token": np.zeros((1, 1, 3), np.float32), "one": np.array([1, 1, 3], np.int64)}
        weights |= {"axis": np.array([1], np.int64), "second": np.array(1, np.int64)}
        nodes += [
            helper.make_node("Expand", ["token", "one"], ["tokens"]),
            helper.make_node("Unsqueeze", ["features", "axis"], ["patch"]),
            helper.make_node("Concat", ["tokens", "patch"], ["sequence"], axis=1),
            helper.make_node("Gather", ["sequence", "second"], ["picked"], axis=1),
        ]
    nodes.append(helper.make_node("Gemm", ["picked" if expand else "features", "fc.weight", "fc.bias"], ["linear"]))
    nodes.append(helper.make_node(closing or "Identity", ["linear"], ["out"]))
    shape = [batch, SIDE, SIDE, 3] if nhwc else [batch, 3, SIDE, SIDE]
    return saved(nodes, weights, [batch, 3], shape=shape, element=TensorProto.UINT8 if uint8 else TensorProto.FLOAT)


BOXES = np.array([[20, 24, 16, 12], [40, 40, 20, 24]], np.float32)
"""Centre and size in pixels of the two boxes that every detector here sees, one per class."""


def detector(layout: str, *, normalised: bool = False) -> bytes:
    """Two convolutions for the look of it, then always the same boxes: class 0 with .9, class 1 with .8."""
    boxes = np.zeros((ANCHORS, 4), np.float32)
    boxes[:2] = BOXES / SIDE if normalised else BOXES
    chances = np.zeros((ANCHORS, 2), np.float32)
    chances[0, 0], chances[1, 1] = 0.9, 0.8
    if layout == "yolov5":
        objectness = np.full((ANCHORS, 1), 0.5, np.float32)
        objectness[:2] = 1.0
        rows = np.concatenate([boxes, objectness, chances], axis=1)
    elif layout == "end2end":
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        rows = np.concatenate([corners, chances.max(axis=1, keepdims=True), chances.argmax(axis=1)[:, None]], axis=1)
    else:
        rows = np.concatenate([boxes, chances], axis=1)
    answer = rows.T[None] if layout == "boxes" else rows[None]
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "w1": rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
        "w2": rng.normal(0, 0.3, (6, 4, 3, 3)).astype(np.float32),
        "w3": rng.normal(0, 0.3, (8, 6, 3, 3)).astype(np.float32),
        "answer": answer.astype(np.float32),
        "nothing": np.float32(0),
    }
    nodes, value = [], "input.1"
    for i in (1, 2, 3):
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        value = f"r{i}"
    nodes += [
        helper.make_node("ReduceMean", [value], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Squeeze", ["zero", "last"], ["zero3"]),
        helper.make_node("Add", ["answer", "zero3"], ["out"]),
    ]
    weights["last"] = np.array([3], np.int64)
    return saved(nodes, weights, ["n", *answer.shape[1:]], metadata={"names": "{0: 'cell', 1: 'platelet'}"})
