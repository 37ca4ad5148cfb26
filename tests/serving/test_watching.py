"""Accuracy and drift over HTTP and as gauges: read from the monitor's rows, by whoever may predict."""

from __future__ import annotations

import dataclasses

import httpx
import msgspec
import pytest
from shared_server import Served, assert_problem

from serving.answers import compose
from serving.engine import Answer, Item
from serving.loading import Loaded
from serving.log import Entry
from serving.metrics import Metrics
from serving.tickets import Ticket
from sutdol import images
from sutdol.appearance import appearance
from sutdol.monitor import drift
from sutdol.predictor import Predictor
from sutdol.sampling import Picked, Sampler
from sutdol.tables import DriftState, Job, Snapshot
from tests.running_server import wait_for
from tests.tiny_models import coloured_png

SHARE = {"accuracy": 0.9, "low": 0.8, "high": 0.95, "labels": 40, "needed": 0, "answers": 900}


@pytest.fixture(scope="module")
def watched(served: Served) -> str:
    """A model whose monitor has written something."""
    served.model("watched")
    window = {
        "overall": SHARE,
        "versions": {"1": SHARE},
        "classes": {"red": SHARE | {"accuracy": None, "low": None, "high": None, "needed": 12}},
        "left_out": {"trained_on": 1, "near_duplicates": 2},
        "drawn": {"labelled": 40, "waiting": 3, "unlabelable": 0},
    }
    data = {
        "version": 1,
        "windows": dict.fromkeys(("1", "7", "30"), window),
        "unlabelled": {"atc": None, "cbpe": None, "hidden": "a drift alarm is on: dark"},
    }
    charts = msgspec.to_builtins(drift.State({"brightness-": drift.Chart(3.0, True)}, seen=600))
    with served.context.database.begin() as session:
        session.add(Snapshot(model="watched", kind="accuracy", at=1000.0, data=data))
        session.add(Snapshot(model="watched", kind="labels", at=1000.0, data={"arms": {}, "promotions": []}))
        row = DriftState(model="watched", version=1, charts=charts, recent=[], alarm=True, alarm_since=900.0)
        row.alarm_text, row.reference = "it is dark", {"size": 500}
        session.add(row)
    return "watched"


def test_accuracy_comes_with_its_interval_and_says_what_is_missing(client: httpx.Client, watched: str) -> None:
    """A class with too few labels shows the number that is missing, not a number that means nothing."""
    found = client.get(f"/v1/models/{watched}/accuracy", params={"days": 30}).json()
    assert found["overall"]["accuracy"] == 0.9
    assert found["classes"]["red"]["accuracy"] is None
    assert found["classes"]["red"]["needed"] == 12
    assert found["label_free"]["hidden"].startswith("a drift alarm")


def test_a_model_that_was_never_measured_says_so(served: Served, client: httpx.Client) -> None:
    """An empty answer would look like a fault."""
    served.model("unmeasured")
    found = client.get("/v1/models/unmeasured/accuracy").json()
    assert (found["at"], found["overall"]["accuracy"], found["overall"]["needed"]) == (None, None, 30)
    assert client.get("/v1/models/unmeasured/drift").json()["state"] == "unknown"


def test_drift_says_what_gives_it_away(client: httpx.Client, watched: str) -> None:
    """State, words, charts."""
    found = client.get(f"/v1/models/{watched}/drift").json()
    assert (found["state"], found["text"], found["alarms"]) == ("alarm", "it is dark", ["brightness-"])
    assert 0 < found["levels"]["brightness-"] < 1


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [("nobody/accuracy", 404, "nobody"), ("nobody/drift", 404, "nobody"), ("tiny/accuracy?days=3", 400, "1, 7, 30")],
)
def test_what_is_not_there_is_a_problem_in_words(client: httpx.Client, path: str, status: int, word: str) -> None:
    """Like everywhere else in this API."""
    assert_problem(client.get(f"/v1/models/{path}"), status, word)


def test_the_gauges_follow(client: httpx.Client, watched: str) -> None:
    """Alert rules are written on these."""

    def lines() -> list[str]:
        return [line for line in client.get("/metrics").text.splitlines() if 'model="watched"' in line]

    wait_for(lambda: 'sutdol_drift_alarm{model="watched"} 1.0' in lines(), "the gauges to follow")
    assert 'sutdol_live_accuracy{bound="low",model="watched"} 0.8' in lines()
    assert 'sutdol_live_accuracy_labels{model="watched"} 40.0' in lines()


def test_auto_labels_are_asked_for_as_a_job_and_refused_in_words(served: Served, client: httpx.Client) -> None:
    """The server does no such work itself; an impossible wish does not even become a job."""
    served.model("lazy")
    assert client.get("/v1/models/lazy/auto-labels").json()["refused"] == "nobody has asked yet"
    sent = client.post("/v1/models/lazy/auto-labels", params={"error": 0.02})
    assert sent.status_code == 202
    with served.context.database.read() as session:
        job = session.get_one(Job, sent.json()["job_id"])
    assert (job.kind, job.payload) == ("retrain.autolabel", {"model": "lazy", "target": 0.02, "limit": 500})
    assert_problem(client.post("/v1/models/lazy/auto-labels", params={"error": 0}), 400, "(0, 0.5]")
    with served.client("label") as labeler:
        assert labeler.post("/v1/models/lazy/auto-labels", params={"error": 0.02}).status_code == 403


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.3, 60), (1.0, 200)])
def test_a_share_of_the_images_that_nobody_picked_is_kept(served: Served, share: float, kept: int) -> None:
    """Labels without people need images; which ones are kept depends on their content alone, picked ones always are."""
    predictor = Predictor.open(served.context.store, "tiny", 1)
    loaded = Loaded("tiny", 1, "", predictor, Sampler("tiny", drawn_rate=0.0, other_rate=0.0), 1, 0, 0.0, 0.0)
    data = coloured_png("red")
    image = images.admit(data)
    prediction = predictor.predict_bytes(data)
    looks = appearance(predictor.prepare(images.decode(data)), predictor.manifest.input)
    ticket = Ticket.__new__(Ticket)  # nobody waits here, so it needs no event loop

    def entry(number: int, *arms: str) -> Entry:
        one = dataclasses.replace(image, sample_id=f"{number:064x}")
        picked = Picked(list(arms), 0.1, "", 0.5)
        answer = Answer(Item("tiny", data, None, ticket), loaded, one, prediction, picked, 1.0, looks, {}, None)
        return compose(answer, Metrics(), share)

    assert sum(entry(i).image is not None for i in range(200)) == pytest.approx(kept, abs=20 if 0 < share < 1 else 0)
    assert entry(0, "drawn").image is not None
