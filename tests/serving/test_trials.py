"""A new version on trial: shadow, canary, and what takes a bad one back by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_server import Served, assert_problem, version_of
from sqlmodel import select

from sutdol import keys, registry
from sutdol.context import open_context
from sutdol.images import encode_png
from sutdol.settings import load
from sutdol.tables import Decision, LabelTask, PredictionRow, Rollout, ShadowRow
from tests.running_server import running, wait_for
from tests.tiny_models import CLASSES, classifier_bundle, classifier_onnx, coloured_png

WITHIN_S = 30.0
"""What a bad version may last."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that compares half of its answers with the version before, and takes back what changes most of them."""
    home: Path = tmp_path_factory.mktemp("watched")
    context = open_context(load(home=home))
    with context.database.begin() as session:
        by_scope = {scope: keys.create(session, scope, [scope]) for scope in keys.SCOPES}
    settings: dict[str, Any] = {"watch_share": 0.5, "rollback_disagreement": 0.5, "label_rate": 1.0}
    with running(home, max_open_tasks=100_000, **settings) as server:
        yield Served(server, context, by_scope)
    context.database.close()


class Traffic:
    """Clients that go on sending images of all colours, dark and white ones among them, and note what came back."""

    def __init__(self, served: Served, model: str, clients: int = 2) -> None:
        white = encode_png(np.full((40, 40, 3), 255, np.uint8))
        self._images = [coloured_png(CLASSES[i % 3], seed=i) for i in range(40)] + [white] * 8
        self.statuses: list[int] = []
        self.versions: list[int] = []
        self._served, self._model = served, model
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(i,)) for i in range(clients)]

    def _send(self, n: int) -> None:
        with self._served.client() as client:
            while not self._ended.is_set():
                n += 1
                reply = client.post(f"/v1/predict/{self._model}", content=self._images[n % len(self._images)])
                self.statuses.append(reply.status_code)
                if reply.status_code == 200:
                    self.versions.append(reply.json()["version"])

    @contextmanager
    def flowing(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()


def decisions(served: Served, model: str, kind: str) -> list[Decision]:
    with served.context.database.read() as session:
        return list(session.exec(select(Decision).where(Decision.model == model, Decision.kind == kind)))


BAD = {
    "fails": ({"fragile": True}, "failed on"),
    "slow": ({"burden": 3}, "ms for an image"),
    "notfinite": ({"poison": True}, "not finite"),
    "disagrees": ({"shifted": True}, "differ"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_champion_is_taken_back_by_itself_and_no_request_fails(watched: Served, name: str) -> None:
    """It passed every check at the door; only traffic shows what it is, and nobody may be awake then."""
    options, words = BAD[name]
    watched.model(name)
    traffic = Traffic(watched, name)
    with traffic.flowing(), watched.client() as client:
        wait_for(lambda: len(traffic.versions) > 60, "traffic")
        bad = classifier_bundle(
            watched.context,
            name,
            onnx_bytes=classifier_onnx(**options),
            golden="none",
            promote=False,  # type: ignore[arg-type]
        )
        began = time.monotonic()
        assert client.post(f"/v1/models/{name}/versions/{bad}:promote").status_code == 200
        wait_for(lambda: version_of(client, name) == 1, "the old version to be back", within_s=WITHIN_S)
        took_s = time.monotonic() - began
    assert took_s < WITHIN_S
    assert set(traffic.statuses) == {200}
    taken = decisions(watched, name, "rollback")[0]
    assert taken.who == "watch"
    assert words in taken.text
    assert taken.record["watch"][str(bad)]


def test_a_healthy_version_under_three_times_the_load_stays(watched: Served) -> None:
    """A full machine makes everything slow; it is no reason to go back."""
    watched.model("healthy", onnx_bytes=classifier_onnx(burden=1))
    traffic = Traffic(watched, "healthy", clients=6)
    with traffic.flowing(), watched.client() as client:
        wait_for(lambda: len(traffic.versions) > 60, "traffic")
        better = classifier_bundle(
            watched.context, "healthy", onnx_bytes=classifier_onnx(burden=1, sharpness=9.0), promote=False
        )
        assert client.post(f"/v1/models/healthy/versions/{better}:promote").status_code == 200
        wait_for(lambda: compared(watched, "healthy") > 60, "comparisons", within_s=60)
        assert version_of(client, "healthy") == better
    assert decisions(watched, "healthy", "rollback") == []
    assert set(traffic.statuses) == {200}


def compared(served: Served, model: str) -> int:
    with served.context.database.read() as session:
        return len(session.exec(select(ShadowRow.prediction_id).where(ShadowRow.model == model)).all())


def asked_about_differences(watched: Served) -> list[LabelTask]:
    """Images on which the versions differ, as far as no other arm had picked them before."""
    with watched.context.database.read() as session:
        wanted = (LabelTask.model == "shadowed", LabelTask.arm == "disagree")
        return list(session.exec(select(LabelTask).where(*wanted)))


def test_a_shadow_answers_nobody_and_its_differences_go_to_people(watched: Served) -> None:
    """Where two models differ, one of them is wrong: a label there teaches most."""
    watched.model("shadowed")
    challenger = classifier_bundle(watched.context, "shadowed", onnx_bytes=classifier_onnx(shifted=True), promote=False)
    with watched.client() as client:
        reply = client.put("/v1/models/shadowed/rollout", json={"version": challenger, "mode": "shadow", "share": 1.0})
        assert reply.status_code == 200, reply.text
        wait_for(lambda: client.get("/v1/models/shadowed").json()["serving"]["challenger"], "the challenger")
        traffic = Traffic(watched, "shadowed")
        with traffic.flowing():
            wait_for(lambda: client.get("/v1/models/shadowed/rollout").json()["different"] > 5, "differences")
            wait_for(lambda: asked_about_differences(watched), "a task about a difference")
        assert set(traffic.versions) == {1}
        seen = client.get("/v1/models/shadowed/rollout").json()
        assert seen["seen"][str(challenger)]["answers"] > 0
        with watched.context.database.read() as session:
            row = session.exec(select(ShadowRow).where(ShadowRow.model == "shadowed")).first()
            assert row is not None
            assert session.get(PredictionRow, row.prediction_id) is not None
        for task in asked_about_differences(watched):
            assert "version 1 says" in task.reason
            assert f"version {challenger} says" in task.reason
        assert client.delete("/v1/models/shadowed/rollout").status_code == 204
        assert_problem(client.get("/v1/models/shadowed/rollout"), 404, "no challenger")
        assert decisions(watched, "shadowed", "rollout")[0].text == "ended by hand"


def test_a_canary_answers_its_share_and_the_same_image_always_meets_the_same_version(watched: Served) -> None:
    """Half of the users must not see their own answers flicker; and who asks for a version by its number gets that one."""
    watched.model("mine")
    challenger = classifier_bundle(watched.context, "mine", onnx_bytes=classifier_onnx(sharpness=9), promote=False)
    with watched.client() as client:
        wanted = {"version": challenger, "mode": "canary", "share": 0.5}
        assert client.put("/v1/models/mine/rollout", json=wanted).status_code == 200
        images = [coloured_png("red", seed=i) for i in range(40)]

        def versions() -> list[int]:
            return [client.post("/v1/predict/mine", content=data).json()["version"] for data in images]

        wait_for(lambda: client.get("/v1/models/mine").json()["serving"]["challenger"], "the challenger")
        first = versions()
        assert versions() == first
        assert 8 < first.count(challenger) < 32
        assert {client.post("/v1/predict/mine@1", content=data).json()["version"] for data in images} == {1}
        assert client.post(f"/v1/models/mine/versions/{challenger}:promote").status_code == 200
        assert set(versions()) == {challenger}
    with watched.context.database.read() as session:
        assert session.get(Rollout, "mine") is None
        assert registry.alias(session, "mine", "challenger") is None


def test_a_bad_canary_is_ended_and_its_requests_are_answered_by_the_champion(watched: Served) -> None:
    """A trial is not an excuse for errors."""
    watched.model("canary")
    bad = classifier_bundle(
        watched.context, "canary", onnx_bytes=classifier_onnx(fragile=True), golden="none", promote=False
    )
    traffic = Traffic(watched, "canary")
    with traffic.flowing(), watched.client() as client:
        wanted = {"version": bad, "mode": "canary", "share": 0.5}
        assert client.put("/v1/models/canary/rollout", json=wanted).status_code == 200
        wait_for(lambda: decisions(watched, "canary", "rollout"), "the canary to be ended", within_s=WITHIN_S)
    assert set(traffic.statuses) == {200}
    assert "failed on" in decisions(watched, "canary", "rollout")[0].text
    with watched.context.database.read() as session:
        assert registry.alias(session, "canary", "champion") == 1


def test_what_cannot_be_tried_is_refused_with_its_reason(watched: Served) -> None:
    """A trial without a champion compares with nothing, one of the champion with itself."""
    watched.model("tried")
    with watched.client() as client:
        url = "/v1/models/tried/rollout"
        assert_problem(client.put(url, json={"version": 1}), 409, "champion already")
        assert_problem(client.put(url, json={"version": 7}), 404, "version of tried")
        assert_problem(client.put(url, json={"version": 1, "share": 2.0}), 400, "share")
        assert_problem(client.put(url, json={"version": 1, "mode": "loud"}), 400, "canary")
        assert_problem(client.put("/v1/models/none/rollout", json={"version": 1}), 404, "unknown model")
    with watched.client("predict") as client:
        assert_problem(client.put(url, json={"version": 1}), 403, "admin")
