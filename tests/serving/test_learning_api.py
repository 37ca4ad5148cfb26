"""Asking for more samples over HTTP, what a risk costs, and how picked samples carry what they were picked for."""

from __future__ import annotations

import httpx
import pytest
from shared_server import Served, assert_problem
from sqlmodel import select

from sutdol.familiarity import unpack
from sutdol.tables import LabelTask
from tests.tiny_models import coloured_png


def test_a_collection_is_opened_listed_and_closed(served: Served, client: httpx.Client) -> None:
    """ "Collect 50 more like this cell" is one request."""
    url = "/v1/models/tiny/collections"
    made = client.post(url, json={"truth": "red", "taken_for": "blue", "wanted": 5})
    assert made.status_code == 201
    assert made.json()["who"].startswith("key ")
    assert [c["id"] for c in client.get(url).json()] == [made.json()["id"]]
    assert client.delete(f"{url}/{made.json()['id']}").status_code == 204
    assert client.get(url).json() == []


def test_a_collection_of_nothing_is_refused_in_words(served: Served, client: httpx.Client) -> None:
    """A misspelt class would wait for ever."""
    url = "/v1/models/tiny/collections"
    assert_problem(client.post(url, json={"truth": "rde"}), 404, "rde", "red")
    assert_problem(client.post(url, json={"truth": "red", "taken_for": "red"}), 400, "itself")
    assert_problem(client.post(url, json={"truth": "red", "wanted": 0}), 400, "at least 1")
    assert_problem(client.get("/v1/models/none/collections"), 404, "none")
    assert_problem(client.delete(f"{url}/none"), 404, "none")
    with served.client("predict") as caller:
        assert caller.post(url, json={"truth": "red"}).status_code == 403


def test_a_picked_sample_carries_its_scores_and_features(served: Served, client: httpx.Client) -> None:
    """Near-duplicates, variety and later questions need what was known when it was picked."""
    for seed in range(500, 700):
        answer = client.post("/v1/predict/tiny", content=coloured_png("green", seed=seed)).json()
        if answer["queued"]:
            break
    else:
        pytest.fail("nothing was picked")
    with served.context.database.read() as session:
        task = session.exec(select(LabelTask).where(LabelTask.prediction_id == answer["prediction_id"])).one()
    assert task.scores is not None
    assert task.scores["unfamiliar"] == pytest.approx(answer["ood_score"])
    assert {"margin", "entropy", "mahalanobis", "nearest"} <= set(task.scores)
    features = unpack(task.features)
    assert features is not None
    assert features.shape == (3,)


def test_a_version_without_a_study_says_so(served: Served, client: httpx.Client) -> None:
    """Versions that were brought in from elsewhere have none."""
    assert_problem(client.get("/v1/models/tiny/versions/1/thresholds"), 404, "no threshold study")
    assert_problem(client.get("/v1/models/tiny/versions/99/thresholds"), 404, "99")
