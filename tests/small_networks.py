"""A convolutional classifier of red, green and blue as ONNX, large enough to quantise and small enough for tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.tiny_models import SIDE_PX


def convolutional_onnx(*, channels: int = 24, layers: int = 5, seed: int = 0) -> bytes:
    """Random convolutions beside a path that keeps the colours, then the mean of each channel and one linear layer."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    nodes, value, before = [], "images", 3
    for i in range(layers):
        kernel = rng.normal(0, 0.5 / np.sqrt(9 * before), (channels, before, 3, 3)).astype(np.float32)
        kernel[:3] = 0
        kernel[range(3), range(3), 1, 1] = 1.0  # the first three channels are the colours, all the way
        weights[f"w{i}"], weights[f"b{i}"] = kernel, np.zeros(channels, np.float32)
        nodes.append(helper.make_node("Conv", [value, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        value, before = f"r{i}", channels
    linear = rng.normal(0, 0.02, (channels, 3)).astype(np.float32)
    linear[:3] += np.eye(3, dtype=np.float32) * 8
    weights |= {"linear": linear, "bias": np.zeros(3, np.float32)}
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "linear", "bias"], ["scores"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE_PX, SIDE_PX])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", channels]),
        ],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
