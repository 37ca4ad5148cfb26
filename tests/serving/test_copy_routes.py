"""Copies over HTTP: ordered, made by a worker (here in this process), handed out, and refused with the reason."""

from __future__ import annotations

import io
import zipfile

import httpx
from shared_server import Served, assert_problem

from retrain.jobs import HANDLERS
from sutdol.jobs import worker

CONVERT = {"retrain.convert": HANDLERS["retrain.convert"]}


def test_a_version_is_carried_away_or_the_reason_is_told(served: Served, client: httpx.Client) -> None:
    """The bundle as a zip; TensorFlow with the way to get it."""
    served.model("carried")
    path = "/v1/models/carried/versions/1/exports"
    assert_problem(client.get(f"{path}/onnx"), 404, "not there yet", "POST")
    assert client.post(f"{path}/onnx").status_code == 202
    assert_problem(client.get(f"{path}/onnx"), 404, "it is queued")
    assert client.post(f"{path}/tensorflow").status_code == 202
    worker.run_pending(served.context, CONVERT)
    found = client.get(f"{path}/onnx")
    assert found.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(found.content)) as archive:
        assert {"model.onnx", "manifest.json", "README.txt"} <= set(archive.namelist())
    assert_problem(client.get(f"{path}/tensorflow"), 409, "not available because", "onnx2tf")
    assert_problem(client.post(f"{path}/coreml"), 404, "openvino")
    with served.client("predict") as reader:
        assert_problem(reader.post(f"{path}/onnx"), 403)


def test_a_faster_copy_is_ordered_once(served: Served, client: httpx.Client) -> None:
    """And only of a model that has something to copy."""
    served.model("quick")
    path = "/v1/models/quick/copies"
    assert client.post(path, json={"how": "int8", "min_speed_up": 1.2}).status_code == 202
    assert_problem(client.post(path, json={"how": "int8"}), 409, "already")
    assert_problem(client.post(path, json={"how": "int4"}), 400, "int4")
    assert_problem(client.post(path, json={"how": "fp16", "min_speed_up": 0.1}), 400, "min_speed_up")
    assert_problem(client.post("/v1/models/nope/copies", json={"how": "int8"}), 404)
