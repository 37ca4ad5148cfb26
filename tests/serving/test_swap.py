"""The pointer moves: under load, to bad models, back again, and by somebody else's hand."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import pytest
from shared_server import Served, assert_problem, version_of
from sqlmodel import select

from sutdol import registry
from sutdol.tables import Event, Replica
from tests.running_server import wait_for
from tests.tiny_models import classifier_bundle, classifier_onnx, coloured_png, nan_onnx


class Traffic:
    """Clients that send one image after the other until they are told to stop; everything they saw."""

    def __init__(self, served: Served, model: str, clients: int) -> None:
        self.versions: list[int] = []
        self.failures: list[str] = []
        self._served, self._model = served, model
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(seed,)) for seed in range(clients)]

    def _send(self, seed: int) -> None:
        data = coloured_png("red", seed=seed)
        with self._served.client() as client:
            while not self._ended.is_set():
                try:
                    reply = client.post(f"/v1/predict/{self._model}", content=data)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if reply.status_code == 200 and reply.json()["predictions"][0]["name"] == "red":
                    self.versions.append(reply.json()["version"])
                else:
                    self.failures.append(reply.text)

    def wait_for_more(self, answers: int) -> None:
        """Until so many more have come."""
        wanted = len(self.versions) + answers
        wait_for(lambda: len(self.versions) > wanted, "traffic")

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


def events(served: Served, model: str, kind: str) -> list[Event]:
    with served.context.database.read() as session:
        return list(session.exec(select(Event).where(Event.model == model, Event.kind == kind)))


def champion(served: Served, model: str) -> int | None:
    with served.context.database.read() as session:
        return registry.alias(session, model, "champion")


def test_no_request_fails_while_versions_are_swapped(served: Served, client: httpx.Client) -> None:
    """The promise of the whole product: a better model arrives and nobody notices."""
    served.model("busy")
    traffic = Traffic(served, "busy", clients=4)
    with traffic.flowing():
        for n in count(2):
            traffic.wait_for_more(30)
            if n == 6:
                break
            version = classifier_bundle(
                served.context, "busy", onnx_bytes=classifier_onnx(sharpness=8.0 + n), promote=False
            )
            reply = client.post(f"/v1/models/busy/versions/{version}:promote")
            assert reply.status_code == 200, reply.text
            assert (reply.json()["version"], reply.json()["previous"]) == (version, version - 1)
        reply = client.post("/v1/models/busy:rollback")
        assert reply.status_code == 200, reply.text
    assert traffic.failures == []
    assert set(traffic.versions) == {1, 2, 3, 4, 5}
    assert len(events(served, "busy", "swap.done")) == 6


BAD_VERSIONS = {
    "answers that are not numbers": ({"onnx_bytes": nan_onnx(), "golden": "none"}, "not finite"),
    "another model's golden record": ({"golden": "wrong"}, "golden check"),
    "not an ONNX file": ({"onnx_bytes": b"no model at all", "golden": "none"}, "cannot be loaded"),
}


@pytest.mark.parametrize("name", BAD_VERSIONS)
def test_a_bad_version_is_refused_with_its_reason_and_the_old_one_answers(
    served: Served, client: httpx.Client, name: str
) -> None:
    """Whoever promotes must learn why not, and traffic must not learn anything."""
    bundle, words = BAD_VERSIONS[name]
    model = f"refuses-{list(BAD_VERSIONS).index(name)}"
    served.model(model)
    bad = classifier_bundle(served.context, model, promote=False, **bundle)  # type: ignore[arg-type]
    problem = assert_problem(client.post(f"/v1/models/{model}/versions/{bad}:promote"), 409, words)
    assert "version 1 serves on" in problem["hint"]
    assert champion(served, model) == 1
    assert client.post(f"/v1/predict/{model}", content=coloured_png()).json()["version"] == 1
    refused = events(served, model, "swap.refused")
    assert len(refused) == 1
    assert words in refused[0].text


def test_bytes_that_are_not_the_registered_ones_are_refused(served: Served, client: httpx.Client) -> None:
    """A store can rot or be tampered with; weights flipped by one bit load without a word."""
    served.model("rotten")
    bad = classifier_bundle(served.context, "rotten", onnx_bytes=classifier_onnx(sharpness=9), promote=False)
    key = registry.bundle_key("rotten", bad, "model.onnx")
    served.context.store.delete(key)
    served.context.store.put(key, classifier_onnx(sharpness=-9))
    assert_problem(client.post(f"/v1/models/rotten/versions/{bad}:promote"), 409, "sha256")
    assert version_of(client, "rotten") == 1


def test_a_version_that_is_not_ready_is_not_even_loaded(served: Served, client: httpx.Client) -> None:
    """What the gate refused cannot be promoted past it by a typing error."""
    served.model("gated")
    candidate = classifier_bundle(served.context, "gated", promote=False, state="refused")
    assert_problem(client.post(f"/v1/models/gated/versions/{candidate}:promote"), 409, "refused", "ready")
    assert_problem(client.post("/v1/models/gated/versions/99:promote"), 404, "99", "known")
    assert_problem(client.post("/v1/models/gated/versions/x:promote"), 400, "number")
    assert_problem(client.post("/v1/models/gated/versions/1:explode"), 404, "1:promote")
    assert_problem(client.post("/v1/models/gated:rollback"), 409, "no previous version")


def test_a_champion_set_elsewhere_is_followed(served: Served, client: httpx.Client) -> None:
    """The gate promotes from a worker; every replica finds out by itself."""
    served.model("followed")
    version = classifier_bundle(served.context, "followed", onnx_bytes=classifier_onnx(sharpness=5))
    wait_for(lambda: version_of(client, "followed") == version, "the new champion to answer")
    with served.context.database.read() as session:
        replica = session.exec(select(Replica).where(Replica.role == "serve")).one()
    assert replica.pid == served.server.process.pid
    wait_for(lambda: replica_version(served, "followed") == version, "the replica's row to say so")


def replica_version(served: Served, model: str) -> object:
    with served.context.database.read() as session:
        return session.exec(select(Replica).where(Replica.role == "serve")).one().serving[model]["version"]


def test_a_bad_champion_set_elsewhere_leaves_the_old_one_and_is_told_once(served: Served, client: httpx.Client) -> None:
    """A replica that cannot load must say so and keep answering, without hammering the store."""
    served.model("unlucky")
    bad = classifier_bundle(served.context, "unlucky", onnx_bytes=nan_onnx(), golden="none")

    def error() -> str | None:
        found: str | None = client.get("/v1/models/unlucky").json()["serving"]["error"]
        return found

    assert f"version {bad} refused" in str(wait_for(error, "the refusal to be shown"))
    assert version_of(client, "unlucky") == 1
    assert client.post("/v1/predict/unlucky", content=coloured_png()).status_code == 200
    follows = followed_ticks(served)
    wait_for(lambda: followed_ticks(served) > follows, "the replica to look again")
    assert len(events(served, "unlucky", "swap.refused")) == 1
    good = classifier_bundle(served.context, "unlucky", onnx_bytes=classifier_onnx(sharpness=4))
    wait_for(lambda: version_of(client, "unlucky") == good, "the next good champion")
    assert error() is None


def followed_ticks(served: Served) -> float:
    with served.context.database.read() as session:
        return session.exec(select(Replica).where(Replica.role == "serve")).one().heartbeat_at


def test_a_model_without_a_version_says_so(served: Served, client: httpx.Client) -> None:
    """Created, not trained yet: not an unknown model, and not an error of ours."""
    with served.context.database.begin() as session:
        registry.create_model(session, "unborn", task="classify", classes=["a"], family="tiny", params={})
    wait_for(lambda: client.get("/v1/models/unborn").json()["serving"], "the model to be seen")
    response = client.post("/v1/predict/unborn", content=coloured_png())
    assert_problem(response, 503, "no promoted version")
    assert int(response.headers["retry-after"]) >= 1


def test_versions_are_listed_with_their_aliases(served: Served, client: httpx.Client) -> None:
    """What serves, what served, and what could: one look."""
    served.model("listed")
    served.model("listed", onnx_bytes=classifier_onnx(sharpness=7))
    versions = client.get("/v1/models/listed/versions").json()
    assert [(v["version"], v["aliases"]) for v in versions] == [(2, ["champion"]), (1, ["previous"])]
    model = client.get("/v1/models/listed").json()
    assert model["aliases"] == {"champion": 2, "previous": 1}
    assert model["serving"]["provider"].endswith("ExecutionProvider")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority per thread")
def test_loading_runs_at_the_lowest_priority(served: Served) -> None:
    """A big model that loads must not be felt by those who wait for answers."""
    served.model("quiet")
    nice = []
    for folder in Path(f"/proc/{served.server.process.pid}/task").iterdir():
        nice.append(int((folder / "stat").read_text().rpartition(")")[2].split()[16]))
    assert nice.count(19) == 2, "the loader and the shadow"
    assert set(nice) - {19} == {os.nice(0)}


def test_a_request_that_waits_for_the_old_version_gets_it(served: Served, client: httpx.Client) -> None:
    """The old one drains: an answer that began with it ends with it, and names it."""
    served.model("drains", onnx_bytes=classifier_onnx(burden=10))
    replies: list[httpx.Response] = []
    data = coloured_png()

    def ask() -> None:
        with served.client() as own:
            replies.append(own.post("/v1/predict/drains", content=data))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    version = classifier_bundle(served.context, "drains", promote=False)
    assert client.post(f"/v1/models/drains/versions/{version}:promote").status_code == 200
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * 6
    assert {reply.json()["version"] for reply in replies} <= {1, 2}
    assert client.post("/v1/predict/drains", content=data).json()["version"] == 2
