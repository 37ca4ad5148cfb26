"""Adopting over HTTP: what is assumed is told first, what is hostile is refused with the reason, what is adopted answers."""

from __future__ import annotations

import httpx
import pytest
from shared_server import Served, assert_problem, version_of

from sutdol.images import encode_png
from tests.foreign_models import classifier, detector
from tests.hostile_models import HOSTILE
from tests.running_server import wait_for


def test_a_file_is_looked_at_adopted_and_answers(served: Served, client: httpx.Client) -> None:
    """Two requests are the whole dialogue; then it is a model like any other."""
    import numpy as np

    path, data = "/v1/models/foreign/adoptions", classifier("Softmax")
    looked = client.post(path, params={"dry_run": True}, content=data).json()
    assert (looked["version"], looked["task"], looked["outputs"]) == (None, "classify", "probabilities")
    assert {"task", "classes", "normalise", "resize"} == set(looked["assumed"])
    said = {"classes": "red,green,blue", "normalise": "none", "resize": "stretch"}
    adopted = client.post(path, params=said, content=data).json()
    assert (adopted["version"], adopted["classes"]) == (1, ["red", "green", "blue"])
    wait_for(lambda: version_of(client, "foreign") == 1, "the adopted version to serve")
    green = np.zeros((30, 50, 3), np.uint8)
    green[:, :, 1] = 220
    answer = client.post("/v1/predict/foreign", content=encode_png(green)).json()
    assert answer["predictions"][0]["name"] == "green"
    with served.client("predict") as reader:
        assert_problem(reader.post(path, content=data), 403)
    assert_problem(client.post(path, content=detector("boxes")), 409, "is a classify model")


@pytest.mark.parametrize(
    "name", ["text", "an operator of its own", "weights at an absolute path", "weights that lie about their size"]
)
def test_a_hostile_file_is_refused_and_nobody_notices(served: Served, client: httpx.Client, name: str) -> None:
    """422 with the reason, and the server answers on."""
    data, words = HOSTILE[name]
    assert_problem(client.post("/v1/models/evil/adoptions", content=data), 422, words)
    assert_problem(client.get("/v1/models/evil"), 404)
    assert client.get("/livez").status_code == 200
