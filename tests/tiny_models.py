"""Real ONNX models of a few kilobytes, registered as real versions, for tests of whoever needs something that answers.

A tiny classifier averages each third of the image's columns and each colour channel: class 0 is a red image, class 1 a
green one, class 2 a blue one (of `classes` in that order); its features are the three channel means.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sutdol import registry
from sutdol.context import Context
from sutdol.errors import NotFoundError
from sutdol.familiarity import fit_ood
from sutdol.images import encode_png
from sutdol.predictor import Predictor
from sutdol.types import InputSpec, Manifest

SIDE_PX = 32
CLASSES = ("red", "green", "blue")


def classifier_onnx(
    *, sharpness: float = 8.0, poison: bool = False, burden: int = 0, shifted: bool = False, fragile: bool = False
) -> bytes:
    """Images (n, 3, 32, 32) -> scores (n, 3) = sharpness * channel means, features (n, 3) = channel means.

    Args:
        poison: answers NaN for white images, so that a batch can hold a poisonous one.
        shifted: calls red green, green blue, blue red.
        fragile: loads, passes every check on dark images, and fails on bright ones.
        burden: so many 3x3 convolutions more at 512 x 512, to make it slow: about 5 ms each.
    """
    weights = np.roll(np.eye(3, dtype=np.float32), int(shifted), axis=1) * sharpness
    initializers = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.zeros(3, np.float32), "bias"),
    ]
    nodes = []
    source = "images"
    if burden:
        initializers.append(numpy_helper.from_array(np.array([1, 1, 16, 16], np.float32), "scales"))
        nodes.append(helper.make_node("Resize", ["images", "", "scales"], ["large"], mode="nearest"))
        source = "large"
    for i in range(burden):
        kernel = np.zeros((3, 3, 3, 3), np.float32)
        kernel[range(3), range(3), 1, 1] = 1.0
        initializers.append(numpy_helper.from_array(kernel, f"kernel{i}"))
        nodes.append(helper.make_node("Conv", [source, f"kernel{i}"], [f"conv{i}"], pads=[1, 1, 1, 1]))
        source = f"conv{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    if fragile:  # looks a row of a one-row table up by brightness
        initializers.append(numpy_helper.from_array(np.array([4], np.float32), "four"))
        initializers.append(numpy_helper.from_array(np.zeros((1, 1), np.float32), "table"))
        nodes += [
            helper.make_node("ReduceMax", ["features"], ["brightest"], axes=[1], keepdims=0),
            helper.make_node("Mul", ["brightest", "four"], ["quarter"]),
            helper.make_node("Cast", ["quarter"], ["row"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "row"], ["nothing"], axis=0),
            helper.make_node("Gemm", ["features", "weights", "bias"], ["fine"]),
            helper.make_node("Add", ["fine", "nothing"], ["scores"]),
        ]
    elif poison:
        nodes += [
            helper.make_node("ReduceSum", ["features", "axis"], ["brightness"], keepdims=1),
            helper.make_node("Sub", ["limit", "brightness"], ["room"]),
            helper.make_node("Sqrt", ["room"], ["factor"]),
            helper.make_node("Mul", ["features", "factor"], ["relative"]),
            helper.make_node("Gemm", ["relative", "weights", "bias"], ["scores"]),
        ]
        initializers.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
        initializers.append(numpy_helper.from_array(np.array([2.9], np.float32), "limit"))
    else:
        nodes.append(helper.make_node("Gemm", ["features", "weights", "bias"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE_PX, SIDE_PX])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def detector_onnx(rows: list[tuple[float, ...]]) -> bytes:
    """Answers the same anchors (cx, cy, w, h, cat, dog) for every image."""
    anchors = np.array(rows, np.float32).T[None]
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"], start=0, end=1),
        helper.make_node("Concat", ["shape", "ones"], ["repeats"], axis=0),
        helper.make_node("Tile", ["anchors", "repeats"], ["scores"]),
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 64, 64])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 6, len(rows)]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3]),
        ],
        [numpy_helper.from_array(anchors, "anchors"), numpy_helper.from_array(np.array([1, 1], np.int64), "ones")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(model.SerializeToString())


def nan_onnx() -> bytes:
    """A classifier whose weights are not numbers: it loads, and every answer is NaN."""
    return classifier_onnx(sharpness=float("nan"))


def classifier_bundle(
    context: Context,
    model: str = "tiny",
    *,
    onnx_bytes: bytes | None = None,
    golden: str = "right",
    promote: bool = True,
    ood: bool = True,
    state: str = "ready",
    foreign: bool = False,
    more: dict[str, bytes] | None = None,
) -> int:
    """Write, register and (unless told otherwise) promote a new version of `model`, made when there is none. Its number.

    Args:
        foreign: not from a training run of ours, so it is tried in a child before it is loaded.
        more: other files of the bundle.
        golden: `right`, `wrong` (recorded answers of another model) or `none`.
    """
    onnx_bytes = onnx_bytes or classifier_onnx()
    rng = np.random.default_rng(0)
    manifest = Manifest(task="classify", classes=list(CLASSES), input=InputSpec((SIDE_PX, SIDE_PX)), family="tiny")
    files = {"model.onnx": onnx_bytes} | (more or {})
    if ood:
        features = rng.normal(0.5, 0.1, (200, len(CLASSES))).astype(np.float32)
        statistics = fit_ood(features[:100], None, held_out=features[100:], normalise=False)
        files["scoring.npz"] = statistics.to_bytes()
        manifest = Manifest(
            task="classify",
            classes=list(CLASSES),
            input=InputSpec((SIDE_PX, SIDE_PX)),
            family="tiny",
            unfamiliar_at=50.0,
        )
    if golden != "none":
        recorded = onnx_bytes if golden == "right" else classifier_onnx(sharpness=3.0)
        inputs = rng.integers(0, 255, (2, SIDE_PX, SIDE_PX, 3), np.uint8)
        if golden == "right" and onnx_bytes == nan_onnx():
            recorded = classifier_onnx()
        files["golden.npz"] = Predictor.from_parts(recorded, manifest).make_golden(inputs)
    with context.database.begin() as session:
        try:
            registry.get_model(session, model)
        except NotFoundError:
            registry.create_model(session, model, task="classify", classes=list(CLASSES), family="tiny", params={})
        version = registry.allocate_version(session, model)
    written = registry.write_bundle(context.store, model, version, manifest, files)
    with context.database.begin() as session:
        registry.register(
            session,
            model,
            version,
            written,
            size_bytes=len(onnx_bytes),
            metrics={"accuracy": 1.0},
            state=state,
            run_id=None if foreign else "tests",
        )
        if promote:
            registry.promote(session, model, version, who="test", text="first")
    return version


def coloured_png(name: str = "red", *, side_px: int = 40, seed: int | None = None) -> bytes:
    """A PNG of one colour of CLASSES; with a seed it is a little noisy, so that every image has another hash."""
    rgb = np.zeros((side_px, side_px, 3), np.uint8)
    rgb[:, :, CLASSES.index(name)] = 200
    if seed is not None:
        rgb += np.random.default_rng(seed).integers(0, 30, rgb.shape, np.uint8)
    return encode_png(rgb)
