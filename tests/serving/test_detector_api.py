"""A detector through every door: boxes in our words, in Roboflow's, as tensors, and fewer of them when little may be risked."""

from __future__ import annotations

import json

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from shared_server import Served, version_of
from tritonclient.http import InferenceServerClient, InferInput

from sutdol import registry
from sutdol.types import InputSpec, Manifest
from tests.running_server import wait_for
from tests.tiny_models import coloured_png

SIDE_PX = 32
BOXES = np.array(  # centre x, centre y, width, height, cat, dog; one column an anchor
    [[8, 8, 8, 8, 0.9, 0.01], [24, 24, 8, 12, 0.02, 0.6], [16, 16, 4, 4, 0.05, 0.05]], np.float32
).T


def detector_onnx() -> bytes:
    """Finds the same cat and the same dog on every image; the features are the channel means."""
    weights = np.zeros((3, BOXES.size), np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "boxes"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["scores"]),
    ]
    known = {"weights": weights, "boxes": BOXES.ravel(), "shape": np.array([-1, *BOXES.shape], np.int64)}
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE_PX, SIDE_PX])
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", *BOXES.shape]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3]),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in known.items()]
    graph = helper.make_graph(nodes, "detector", [images], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def detector(served: Served) -> str:
    """Its name; promoted and answering."""
    manifest = Manifest(
        task="detect", classes=["cat", "dog"], input=InputSpec((SIDE_PX, SIDE_PX), resize="letterbox"), family="tiny"
    )
    context = served.context
    with context.database.begin() as session:
        registry.create_model(session, "finder", task="detect", classes=["cat", "dog"], family="tiny", params={})
        version = registry.allocate_version(session, "finder")
    written = registry.write_bundle(context.store, "finder", version, manifest, {"model.onnx": detector_onnx()})
    with context.database.begin() as session:
        registry.register(session, "finder", version, written, size_bytes=1000, metrics={}, state="ready")
        registry.promote(session, "finder", version, who="test", text="first")
    with served.client() as client:
        wait_for(lambda: version_of(client, "finder") == version, "the detector to answer", within_s=120)
    return "finder"


def test_boxes_are_in_pixels_of_the_image(client: httpx.Client, detector: str) -> None:
    """The image is twice the model's input, so every number is twice the model's."""
    answer = client.post(f"/v1/predict/{detector}", content=coloured_png(side_px=64)).json()
    cat, dog = answer["predictions"]
    assert (cat["name"], dog["name"]) == ("cat", "dog")
    assert cat["box"] == pytest.approx({"x1": 8, "y1": 8, "x2": 24, "y2": 24})
    assert dog["box"] == pytest.approx({"x1": 40, "y1": 36, "x2": 56, "y2": 60})


@pytest.mark.parametrize(("max_risk", "names"), [(0.5, ["cat", "dog"]), (0.2, ["cat"]), (0.05, [])])
def test_boxes_that_are_too_risky_are_left_out(
    client: httpx.Client, detector: str, max_risk: float, names: list[str]
) -> None:
    """And without any the detector is unsure: it cannot vouch for an empty image."""
    answer = client.post(f"/v1/predict/{detector}", params={"max_risk": max_risk}, content=coloured_png()).json()
    assert [found["name"] for found in answer["predictions"]] == names
    assert answer["unsure"] is not bool(names)


def test_boxes_by_centre_and_size_for_clients_of_roboflow(client: httpx.Client, detector: str) -> None:
    """Their drawing code takes x and y for the middle."""
    url = f"/v1/predict/{detector}"
    answer = client.post(url, params={"format": "roboflow"}, content=coloured_png(side_px=64)).json()
    dog = answer["predictions"][1]
    assert (dog["class"], dog["class_id"]) == ("dog", 1)
    assert [dog[k] for k in ("x", "y", "width", "height")] == pytest.approx([48, 48, 16, 24])


def test_boxes_as_tensors(served: Served, detector: str) -> None:
    """The model's own layout for whoever sends tensors, the answer of /v1 for whoever sends images."""
    key = {"Authorization": f"Bearer {served.keys['predict']}"}
    client = InferenceServerClient(served.server.url.removeprefix("http://"))
    outputs = client.get_model_metadata(detector, headers=key)["outputs"]
    assert {"name": "scores", "datatype": "FP32", "shape": [-1, 6, -1]} in outputs
    tensor = InferInput("images", [2, 3, SIDE_PX, SIDE_PX], "FP32")
    tensor.set_data_from_numpy(np.zeros((2, 3, SIDE_PX, SIDE_PX), np.float32))
    scores = client.infer(detector, [tensor], headers=key).as_numpy("scores")
    assert scores.shape == (2, *BOXES.shape)
    assert scores[1] == pytest.approx(BOXES)
    image = InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([coloured_png()], object))
    answer = client.infer(detector, [image], headers=key)
    assert answer.as_numpy("label")[0, 0] == b"cat"
    assert len(json.loads(answer.as_numpy("prediction")[0, 0])["predictions"]) == 2
    client.close()
