"""Many models in one process: by reference, loaded when asked for, let go when memory is short, pinned, limited."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from shared_server import Served, assert_problem

from sutdol import keys, registry
from sutdol.context import open_context
from sutdol.settings import load
from tests.running_server import running, wait_for
from tests.tiny_models import classifier_bundle, classifier_onnx, coloured_png, nan_onnx

SIZE = 2 * len(classifier_onnx())
"""What one tiny model is counted with."""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Six models, room for three, one of them pinned, one with a limit of its own."""
    home: Path = tmp_path_factory.mktemp("crowded")
    context = open_context(load(home=home))
    for name in ("anchor", "a", "b", "c", "d"):
        classifier_bundle(context, name)
    classifier_bundle(context, "few", onnx_bytes=classifier_onnx(burden=10))
    with context.database.begin() as session:
        by_scope = {scope: keys.create(session, scope, [scope]) for scope in keys.SCOPES}
    with running(
        home,
        models_memory_bytes=3 * SIZE + SIZE // 2,
        pinned_models="anchor",
        model_queue_limits="few=2",
        inference_threads=1,
    ) as server:
        yield Served(server, context, by_scope)
    context.database.close()


@pytest.fixture
def crowd(crowded: Served) -> Iterator[httpx.Client]:
    with crowded.client() as client:
        yield client


def loaded(client: httpx.Client) -> set[str]:
    models = client.get("/readyz").json()["models"]
    return {name for name, about in models.items() if about["version"] is not None}


def test_a_model_is_loaded_when_somebody_asks_and_the_least_used_one_goes(crowd: httpx.Client) -> None:
    """A hundred models with one visitor each must fit into the memory of three."""
    ready = crowd.get("/readyz").json()
    assert ready["ready"] is True
    assert ready["models"]["a"]["resting"] is True
    assert ready["models"]["anchor"]["version"] == 1
    for name in ("a", "b", "c", "d", "a"):
        assert crowd.post(f"/v1/predict/{name}", content=coloured_png("red")).json()["predictions"][0]["name"] == "red"
        assert len(loaded(crowd)) <= 3
    assert loaded(crowd) == {"anchor", "a", "d"}
    text = crowd.get("/metrics").text
    memory = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("sutdol_models_memory_bytes"))
    assert SIZE <= memory <= 3 * SIZE + SIZE // 2
    assert 'sutdol_evicted_total{model="anchor"}' not in text


def test_many_clients_of_a_resting_model_share_one_load(crowded: Served, crowd: httpx.Client) -> None:
    """The first rush must not load a model eight times."""
    for name in ("a", "b"):
        crowd.post(f"/v1/predict/{name}", content=coloured_png())
    statuses: list[int] = []

    def ask(seed: int) -> None:
        with crowded.client() as own:
            statuses.append(own.post("/v1/predict/c", content=coloured_png(seed=seed)).status_code)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8


def test_a_reference_names_the_version(crowded: Served, crowd: httpx.Client) -> None:
    """MLflow's words work, in a path as well."""
    second = classifier_bundle(crowded.context, "b", onnx_bytes=classifier_onnx(sharpness=9))
    third = classifier_bundle(crowded.context, "b", onnx_bytes=classifier_onnx(sharpness=7), promote=False)
    with crowded.context.database.begin() as session:
        registry.set_alias(session, "b", "challenger", third)

    def answered(reference: str) -> int | None:
        reply = crowd.post(f"/v1/predict/{reference}", content=coloured_png())
        version: int | None = reply.json()["version"] if reply.status_code == 200 else None
        return version

    wait_for(lambda: answered("b@challenger") == third, "the challenger to be known")
    expected = {"b": second, "b@champion": second, "models:/b@champion": second, "b@1": 1, f"models:/b@{third}": third}
    assert {reference: answered(reference) for reference in expected} == expected
    assert answered("models:/b@previous") == 1
    assert_problem(crowd.post("/v1/predict/b@nobody", content=coloured_png()), 404, "b@nobody", "b@champion")
    assert_problem(crowd.post("/v1/predict/b@99", content=coloured_png()), 404, "99")
    assert_problem(crowd.post("/v1/predict/b@@1", content=coloured_png()), 400, "reference")
    form = crowd.post("/v1/predict/models:/b@1", files={"file": coloured_png()})
    assert form.json()["version"] == 1


def test_a_version_that_does_not_load_says_why(crowded: Served, crowd: httpx.Client) -> None:
    """Whoever names a version must learn what is wrong with it, and the champion must not mind."""
    bad = classifier_bundle(crowded.context, "d", onnx_bytes=nan_onnx(), golden="none", promote=False)
    assert crowd.post(f"/v1/predict/d@{bad}", content=coloured_png()).status_code >= 400
    assert crowd.post("/v1/predict/d", content=coloured_png()).status_code == 200


def test_one_model_cannot_take_the_whole_queue(crowded: Served, crowd: httpx.Client) -> None:
    """Its own callers are told to slow down; those of other models do not notice."""
    crowd.post("/v1/predict/few", content=coloured_png())
    replies: list[httpx.Response] = []

    def ask() -> None:
        with crowded.client() as own:
            replies.append(own.post("/v1/predict/few", content=coloured_png()))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [reply for reply in replies if reply.status_code != 200]
    assert 0 < len(refused) < 12
    for reply in refused:
        assert_problem(reply, 429, "few")
        assert reply.headers["retry-after"] == "1"
    assert crowd.post("/v1/predict/anchor", content=coloured_png()).status_code == 200
