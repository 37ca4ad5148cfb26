"""The ML backend protocol, asked as Label Studio 1.23.2 asks it."""

from __future__ import annotations

import base64
import logging
import threading
import time
from typing import Any

import pytest
from bridge_rows import add_model, add_sample, picture
from bridge_steps import forget_jobs, wait_until
from litestar import Litestar, Request, Response
from litestar.testing import TestClient

from labeling_bridge import backend, routes
from labeling_bridge.backend import predictions, snapped
from labeling_bridge.project import backend_password
from sutdol import images
from sutdol.context import open_context
from sutdol.errors import SutdolError
from sutdol.settings import load
from sutdol.tables import Sample, StudioProject
from sutdol.types import Box, Prediction
from tests.tiny_models import classifier_bundle, classifier_onnx, coloured_png

PROJECT = "13.1795254715"


def problem(_: Request[Any, Any, Any], error: SutdolError) -> Response[dict[str, str]]:
    return Response({"code": error.code, "detail": str(error)}, status_code=error.status)


@pytest.fixture
def asked(tmp_path):
    """(client with the right password, context) of a server with the model `m`, whose project is 13."""
    context = open_context(load(home=tmp_path / "home", ml_backend=True))
    classifier_bundle(context, "m")
    forget_jobs(context)
    with context.database.begin() as session:
        session.add(StudioProject(model="m", project_id=13, label_config=""))
    app = Litestar([routes.build(context)], exception_handlers={SutdolError: problem}, openapi_config=None)
    with TestClient(app) as client:
        word = base64.b64encode(f"sutdol:{backend_password(context)}".encode()).decode()
        client.headers["Authorization"] = f"Basic {word}"
        yield client, context
    context.database.close()


def coloured(context, color: str, seed: int = 0) -> str:
    image = images.admit(coloured_png(color, seed=seed))
    context.store.put(f"samples/{image.sample_id}", image.data)
    with context.database.begin() as session:
        session.add(Sample(id=image.sample_id, width_px=40, height_px=40, media_type="image/png", size_bytes=1))
    return image.sample_id


def test_health_needs_no_password_and_no_model(tmp_path):
    """Label Studio asks within a second on nearly every page, without the password."""
    context = open_context(load(home=tmp_path / "home", ml_backend=True))
    with TestClient(Litestar([routes.build(context)], openapi_config=None)) as client:
        assert client.get("/label-studio/health").json()["status"] == "UP"
        assert client.get("/label-studio").status_code == 200
    context.database.close()


def test_without_the_setting_there_is_no_backend(tmp_path):
    """It costs the labelers Label Studio's time, so it is asked for or not there."""
    context = open_context(load(home=tmp_path / "home"))
    with TestClient(Litestar([routes.build(context)], openapi_config=None)) as client:
        assert client.get("/label-studio/health").status_code == 404
    context.database.close()


def test_setup_names_the_version_and_drops_the_token(asked, caplog):
    """It brings the legacy token of the project's owner along; it must not even reach a log."""
    client, _ = asked
    body = {"project": PROJECT, "schema": "<View/>", "hostname": "http://x", "access_token": "SECRET-TOKEN"}
    with caplog.at_level(logging.DEBUG):
        assert client.post("/label-studio/setup", json=body | {"extra_params": None}).json() == {
            "model_version": "m-v1"
        }
    assert "SECRET-TOKEN" not in caplog.text


def test_each_task_gets_one_result_in_order_also_those_we_do_not_know(asked):
    """Label Studio pairs results with tasks by their place; one too few labels the wrong image."""
    client, context = asked
    red, green = coloured(context, "red"), coloured(context, "green")
    tasks = [{"id": 1, "data": {"sample_id": green}}, {"id": 2, "data": {"image": "/other.png"}}, {"id": 3}]
    tasks += [{"id": 4, "data": {"sample_id": "../../etc/passwd"}}, {"id": 5, "data": {"sample_id": red}}]
    body = {"tasks": tasks, "project": PROJECT, "label_config": "", "params": {"login": None, "context": None}}
    results = client.post("/label-studio/predict", json=body).json()["results"]
    said = [r["result"][0]["value"]["choices"] if r["result"] else None for r in results]
    assert said == [["green"], None, None, None, ["red"]]
    assert {r["model_version"] for r in results} == {"m-v1"}
    assert all(0 <= r["score"] <= 1 for r in results)
    assert client.post("/label-studio/predict", json=body | {"tasks": []}).json() == {"results": []}


@pytest.mark.parametrize("body", [{}, {"tasks": "x"}, {"tasks": {}}])
def test_a_request_of_another_shape_is_a_bad_request(asked, body):
    """A newer Label Studio may ask something else; that must not be our crash."""
    client, _ = asked
    assert client.post("/label-studio/predict", json=body).status_code == 400


@pytest.mark.parametrize("authorization", ["", "Basic", "Basic d3Jvbmc6d3Jvbmc=", "Bearer x", "Basic näh"])
def test_strangers_get_no_predictions(asked, authorization):
    """Predictions show what is in the pictures."""
    client, _ = asked
    headers = {"Authorization": authorization.encode()}
    for method, path in (("POST", "setup"), ("POST", "predict"), ("GET", "versions")):
        assert client.request(method, f"/label-studio/{path}", headers=headers, json={}).status_code == 401


def test_events_and_the_train_button_are_taken_and_ignored(asked):
    """They come without the password, and an error here is an error in the labeler's page."""
    client, _ = asked
    del client.headers["Authorization"]
    for body in ({"action": "START_TRAINING", "project": {"id": 13}}, {"action": "ANNOTATION_CREATED"}):
        assert client.post("/label-studio/webhook", json=body).status_code == 200


def test_a_swap_changes_the_version_and_never_the_waiting(asked, monkeypatch):
    """Label Studio asks inside the labeler's request; loading takes seconds, and the old model answers meanwhile."""
    client, context = asked
    green = coloured(context, "green")
    body = {"tasks": [{"data": {"sample_id": green}}], "project": PROJECT}

    def version() -> str:
        return client.post("/label-studio/predict", json=body).json()["results"][0]["model_version"]

    assert version() == "m-v1"
    gate, load_model = threading.Event(), backend.Champions._load

    def slow(self, model, number):
        assert gate.wait(30)
        return load_model(self, model, number)

    monkeypatch.setattr(backend.Champions, "_load", slow)
    classifier_bundle(context, "m", onnx_bytes=classifier_onnx(sharpness=20.0))
    began = time.monotonic()
    assert version() == "m-v1"
    assert time.monotonic() - began < 3
    gate.set()
    wait_until(lambda: version() == "m-v2")
    assert client.get("/label-studio/versions", params={"project": PROJECT}).json() == {"versions": ["m-v2", "m-v1"]}


def test_a_foreign_project_is_answered_only_when_there_is_no_doubt(asked):
    """With one model the project may be anybody's; with two, a guess would label with the wrong classes."""
    client, context = asked
    body = {"tasks": [], "project": "99.1"}
    assert client.post("/label-studio/predict", json=body).status_code == 200
    add_model(context, "other")
    assert client.post("/label-studio/predict", json=body).status_code == 404


BOXES = [Box("cell", 10, 10, 30, 30, 0.9), Box("cell", 60, 60, 90, 90, 0.8)]
SEEN = Prediction([], BOXES, 0.9, 0.9, 0.5, ood_score=None, height_px=100, width_px=200)


def region(x: float, y: float, width: float = 0.0, height: float = 0.0, kind: str = "rectanglelabels") -> dict:
    value = {"x": x, "y": y, "width": width, "height": height, kind: ["dust"]}
    return {"result": [{"type": kind, "value": value}]}


@pytest.mark.parametrize(
    ("drawn", "found"),
    [
        (region(4, 8, 12, 24), (10, 10, 20, 20)),
        (region(28, 58, 16, 30), (60, 60, 30, 30)),
        (region(10, 20, kind="keypointlabels"), (10, 10, 20, 20)),
        (region(90, 5, kind="keypointlabels"), None),
        (region(80, 0, 5, 5), None),
        (region(4, 8), None),
        ({"result": []}, None),
        ({}, None),
    ],
)
def test_a_drawn_box_snaps_to_the_models_box_and_keeps_its_class(drawn, found):
    """A rough box costs a person a second and an exact one ten; what was meant is theirs to say."""
    results = snapped(SEEN, drawn, "detect")
    if found is None:
        assert results == []
        return
    (result,) = results
    x, y, width, height = found
    value = result["value"]
    assert value["rectanglelabels"] == ["dust"]
    assert (value["x"], value["y"]) == (x / 2, y)
    assert (value["width"], value["height"]) == pytest.approx((width / 2, height))


def test_an_image_that_cannot_be_read_is_an_empty_result(asked):
    """One broken file must not cost the whole page its predictions."""
    _, context = asked
    broken = "f" * 64
    context.store.put(f"samples/{broken}", b"no image")
    whole = add_sample(context, picture(1))
    predictor = backend.Champions(context).predictor("m")
    found = predictions(context, predictor, [{"data": {"sample_id": s}} for s in (broken, whole)])
    assert [bool(f["result"]) for f in found] == [False, True]
