"""The Open Inference Protocol through NVIDIA's own client, unchanged: every call that it has, and what it may send wrongly."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from shared_server import MAX_BODY, Served, assert_problem, logged
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.http.aio import InferenceServerClient as AsyncClient
from tritonclient.utils import InferenceServerException

from serving import statistics
from sutdol import keys
from sutdol.context import Context
from sutdol.images import admit
from sutdol.tables import PredictionRow
from tests.running_server import running
from tests.tiny_models import CLASSES, SIDE_PX, classifier_bundle, coloured_png

CALLS = {name for name in dir(InferenceServerClient) if not name.startswith("_")}
PLAIN = {"plugin", "register_plugin", "unregister_plugin"}
"""Calls that never reach a server."""


@pytest.fixture
def triton(served: Served) -> Iterator[InferenceServerClient]:
    client = InferenceServerClient(served.server.url.removeprefix("http://"), concurrency=4)
    yield client
    client.close()


@pytest.fixture
def key(served: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.keys['admin']}"}


def pictures(*data: bytes, binary: bool = True) -> InferInput:
    """The input `image`; in JSON its strings are base64."""
    found = InferInput("image", [len(data), 1], "BYTES")
    found.set_data_from_numpy(np.array(data, object).reshape(-1, 1), binary_data=binary)
    return found


def tensor(name: str = "red", n: int = 1, *, binary: bool = True) -> InferInput:
    """The input `images` of one colour."""
    values = np.zeros((n, 3, SIDE_PX, SIDE_PX), np.float32)
    values[:, CLASSES.index(name)] = 0.8
    found = InferInput("images", list(values.shape), "FP32")
    found.set_data_from_numpy(values, binary_data=binary)
    return found


def test_health_and_metadata(triton: InferenceServerClient, key: dict[str, str]) -> None:
    """Load balancers and clients look here first."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny", headers=key)
    assert triton.is_model_ready("tiny", "1", headers=key)
    assert not triton.is_model_ready("tiny", "7", headers=key)
    assert not triton.is_model_ready("nope", headers=key)
    server = triton.get_server_metadata()
    assert server["name"] == "sutdol"
    assert "binary_tensor_data" in server["extensions"]
    model = triton.get_model_metadata("tiny", headers=key)
    assert model["versions"] == ["1"]
    assert {"name": "images", "datatype": "FP32", "shape": [-1, 3, SIDE_PX, SIDE_PX]} in model["inputs"]
    assert {"name": "image", "datatype": "BYTES", "shape": [-1, 1]} in model["inputs"]
    assert model == triton.get_model_metadata("tiny", "1", headers=key)
    config = triton.get_model_config("tiny", headers=key)
    assert config["max_batch_size"] == 64
    assert json.loads(config["parameters"]["classes"]["string_value"]) == list(CLASSES)


@pytest.mark.parametrize("version", ["", "1"])
def test_an_encoded_image_is_a_prediction_like_any_other(
    served: Served, triton: InferenceServerClient, key: dict[str, str], version: str
) -> None:
    """Same road, same log, same numbers as /v1; only the words around them differ."""
    data = coloured_png("green")
    result = triton.infer("tiny", [pictures(data)], version, request_id="mine", headers=key)
    prediction_id = result.as_numpy("prediction_id")[0, 0].decode()
    prediction = json.loads(result.as_numpy("prediction")[0, 0])
    assert prediction["prediction_id"] == prediction_id
    assert result.as_numpy("label")[0, 0] == b"green"
    assert result.as_numpy("confidence")[0, 0] == pytest.approx(prediction["confidence"])
    assert result.get_response()["id"] == "mine"
    with served.context.database.read() as session:
        row = session.get_one(PredictionRow, prediction_id)
    assert (row.model, row.sample_id, row.confidence) == ("tiny", admit(data).sample_id, prediction["confidence"])


def test_a_batch_of_images_keeps_its_order(triton: InferenceServerClient, key: dict[str, str]) -> None:
    """Answers that change places are wrong answers."""
    names = [CLASSES[i % 3] for i in range(20)]
    wanted = [InferRequestedOutput("label", binary_data=False), InferRequestedOutput("confidence")]
    result = triton.infer("tiny", [pictures(*(coloured_png(n) for n in names))], outputs=wanted, headers=key)
    assert result.as_numpy("label").ravel().tolist() == names
    assert result.as_numpy("confidence").shape == (20, 1)
    assert result.as_numpy("prediction") is None


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_a_raw_tensor_gets_the_models_own_outputs(
    served: Served, triton: InferenceServerClient, key: dict[str, str], binary: bool, compression: str | None
) -> None:
    """For callers who prepare their own input; there is no image to look at, so nothing is logged."""
    before = logged(served)
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in ("scores", "features")]
    result = triton.infer(
        "tiny",
        [tensor("blue", 3, binary=binary)],
        outputs=wanted,
        headers=key,
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert result.as_numpy("scores").shape == (3, 3)
    assert result.as_numpy("scores").argmax(axis=1).tolist() == [2, 2, 2]
    assert result.as_numpy("features")[0] == pytest.approx([0, 0, 0.8], abs=1e-4)
    assert logged(served) == before


def test_classification_names_the_classes(triton: InferenceServerClient, key: dict[str, str]) -> None:
    """Triton's classification extension: value, index and name, best first."""
    result = triton.infer(
        "tiny", [tensor("green")], outputs=[InferRequestedOutput("scores", class_count=2)], headers=key
    )
    best, second = result.as_numpy("scores")[0]
    assert best.decode().split(":")[1:] == ["1", "green"]
    assert float(best.decode().split(":")[0]) > float(second.decode().split(":")[0])


def test_a_request_made_by_hand_with_the_clients_own_tools(
    served: Served, triton: InferenceServerClient, key: dict[str, str]
) -> None:
    """Proxies build the body with the client and send it themselves."""
    body, length = triton.generate_request_body([pictures(coloured_png("blue"))])
    headers = key | {"Inference-Header-Content-Length": str(length)}
    reply = httpx.post(f"{served.server.url}/v2/models/tiny/infer", content=body, headers=headers)
    assert reply.status_code == 200, reply.text
    end = int(reply.headers["inference-header-content-length"])
    assert triton.parse_response_body(reply.content, header_length=end).as_numpy("label")[0, 0] == b"blue"


def test_a_body_that_is_the_image_itself(served: Served, key: dict[str, str]) -> None:
    """The protocol's raw binary request: no JSON at all."""
    headers = key | {"Inference-Header-Content-Length": "0"}
    reply = httpx.post(f"{served.server.url}/v2/models/tiny/infer", content=coloured_png("red"), headers=headers)
    assert reply.status_code == 200, reply.text
    assert b"red" in reply.content


def test_several_requests_at_once_and_a_deadline(triton: InferenceServerClient, key: dict[str, str]) -> None:
    """`async_infer`, with the caller's own patience and accepted risk."""
    waiting = [
        triton.async_infer("tiny", [pictures(coloured_png(n))], headers=key, timeout=20_000_000) for n in CLASSES
    ]
    assert [r.get_result().as_numpy("label")[0, 0].decode() for r in waiting] == list(CLASSES)
    unsure = triton.infer("tiny", [pictures(coloured_png("red"))], headers=key, parameters={"max_risk": 0})
    assert unsure.as_numpy("label")[0, 0] == b""
    assert json.loads(unsure.as_numpy("prediction")[0, 0])["unsure"] is True


def test_the_repository_lists_what_answers(served: Served, triton: InferenceServerClient, key: dict[str, str]) -> None:
    """A deployment tool loads before it sends traffic; what it cannot do here is said in words."""
    index = triton.get_model_repository_index(headers=key)
    assert {"name": "tiny", "version": "1", "state": "READY", "reason": ""} in index
    triton.load_model("tiny", headers=key)
    with pytest.raises(InferenceServerException, match="training or import"):
        triton.load_model("tiny", headers=key, config="{}")
    with pytest.raises(InferenceServerException, match="unknown model 'nope'"):
        triton.load_model("nope", headers=key)
    with pytest.raises(InferenceServerException, match="not loaded on demand"):
        triton.unload_model("tiny", headers=key)
    assert triton.is_model_ready("tiny", headers=key)
    with pytest.raises(InferenceServerException, match="scope"):
        triton.load_model("tiny", headers={"Authorization": f"Bearer {served.keys['predict']}"})


def test_a_model_that_is_loaded_on_demand_comes_and_goes(context: Context) -> None:
    """`load` and `unload` do what a Triton in explicit mode would do."""
    for slug in ("one", "two"):
        classifier_bundle(context, slug)
    with context.database.begin() as session:
        key = {"Authorization": f"Bearer {keys.create(session, 'test', ['admin'])}"}
    with (
        running(context.settings.home, models_memory_bytes=1_000_000_000) as server,
        closing(InferenceServerClient(server.url.removeprefix("http://"))) as client,
    ):

        def state(slug: str) -> tuple[str, str]:
            index = client.get_model_repository_index(headers=key)
            return next((entry["state"], entry["reason"]) for entry in index if entry["name"] == slug)

        assert state("two") == ("UNAVAILABLE", "loaded when asked for")
        client.load_model("two", headers=key)
        assert state("two") == ("READY", "")
        client.unload_model("two", headers=key)
        assert state("two") == ("UNAVAILABLE", "loaded when asked for")
        answer = client.infer("two", [pictures(coloured_png("blue"))], "1", headers=key)
        assert answer.as_numpy("label")[0, 0] == b"blue"
        assert state("two") == ("READY", "")


def test_statistics_count_what_was_done(triton: InferenceServerClient, key: dict[str, str]) -> None:
    """Triton's boards read these names."""
    before = triton.get_inference_statistics("tiny", headers=key)["model_stats"][0]
    triton.infer("tiny", [pictures(coloured_png("red"), coloured_png("blue"))], headers=key)
    triton.infer("tiny", [tensor()], headers=key)
    after = triton.get_inference_statistics("tiny", "1", headers=key)["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 3
    assert 0 < after["execution_count"] - before["execution_count"] <= 3
    for name in ("queue", "compute_input", "compute_infer", "compute_output", "success"):
        assert after["inference_stats"][name]["ns"] > before["inference_stats"][name]["ns"]
    everything = triton.get_inference_statistics(headers=key)["model_stats"]
    assert "tiny" in [entry["name"] for entry in everything]


def test_settings_and_shared_memory_are_answered(triton: InferenceServerClient, key: dict[str, str]) -> None:
    """Clients tidy up when they start; only what would really change something is refused, with the reason."""
    assert triton.get_trace_settings(headers=key)["trace_level"] == ["OFF"]
    assert triton.get_trace_settings("tiny", headers=key)["trace_level"] == ["OFF"]
    assert triton.update_trace_settings(settings={"trace_level": "OFF"}, headers=key)["trace_level"] == ["OFF"]
    with pytest.raises(InferenceServerException, match="not supported"):
        triton.update_trace_settings("tiny", {"trace_level": ["TIMESTAMPS"]}, headers=key)
    settings = triton.get_log_settings(headers=key)
    assert triton.update_log_settings(settings, headers=key) == settings
    with pytest.raises(InferenceServerException, match="SUTDOL_LOG_LEVEL"):
        triton.update_log_settings({"log_verbose_level": 5}, headers=key)
    assert triton.get_system_shared_memory_status(headers=key) == []
    assert triton.get_cuda_shared_memory_status(headers=key) == []
    for name in ("", "mine"):
        triton.unregister_system_shared_memory(name, headers=key)
        triton.unregister_cuda_shared_memory(name, headers=key)
    with pytest.raises(InferenceServerException, match="not supported"):
        triton.get_system_shared_memory_status("mine", headers=key)
    with pytest.raises(InferenceServerException, match="not supported"):
        triton.get_cuda_shared_memory_status("mine", headers=key)
    with pytest.raises(InferenceServerException, match="not supported"):
        triton.register_system_shared_memory("mine", "/mine", 64, headers=key)
    with pytest.raises(InferenceServerException, match="not supported"):
        triton.register_cuda_shared_memory("mine", b"handle", 0, 64, headers=key)
    far = InferInput("images", [1, 3, SIDE_PX, SIDE_PX], "FP32")
    far.set_shared_memory("mine", 64)
    with pytest.raises(InferenceServerException, match="shared memory is not supported"):
        triton.infer("tiny", [far], headers=key)


@pytest.mark.parametrize("call", sorted(CALLS - PLAIN))
def test_no_call_of_the_client_was_forgotten(call: str) -> None:
    """A new version of the client with a new call fails here."""
    assert f".{call}(" in Path(__file__).read_text()


def test_the_asynchronous_client_works_too(served: Served, key: dict[str, str]) -> None:
    """Another HTTP library below the same protocol."""

    async def run() -> Any:
        async with AsyncClient(served.server.url.removeprefix("http://")) as client:
            assert await client.is_model_ready("tiny", headers=key)
            return await client.infer("tiny", [pictures(coloured_png("blue"))], headers=key)

    assert asyncio.run(run()).as_numpy("label")[0, 0] == b"blue"


def binary(head: dict[str, Any], tail: bytes = b"", *, length: object = None) -> dict[str, Any]:
    start = json.dumps(head).encode()
    return {"content": start + tail, "headers": {"inference-header-content-length": str(length or len(start))}}


def image(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]} | changes


def numbers(**changes: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "FP32", "shape": [1, 3, SIDE_PX, SIDE_PX], "data": [0.5]} | changes


PNG = coloured_png()
WHOLE = struct.pack("<I", len(PNG)) + PNG
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no JSON": ({"content": b"{"}, 400, "body"),
    "no inputs": ({"json": {"inputs": []}}, 400, "'image'"),
    "no body": ({}, 400, "body"),
    "both inputs": ({"json": {"inputs": [image(), numbers(data=[0.0] * 3072)]}}, 400, "found image, images"),
    "twice": ({"json": {"inputs": [image(), image()]}}, 400, "twice"),
    "unknown input": ({"json": {"inputs": [image(name="x")]}}, 400, "found x"),
    "no image": ({"json": {"inputs": [image()]}}, 415, "JPEG"),
    "no base64": ({"json": {"inputs": [image(data=["?"])]}}, 400, "base64"),
    "no strings": ({"json": {"inputs": [image(data=[1])]}}, 400, "strings"),
    "no data": ({"json": {"inputs": [image(data=None)]}}, 400, "found neither"),
    "unknown datatype": ({"json": {"inputs": [numbers(datatype="INT8")]}}, 400, "INT8"),
    "swapped datatype": ({"json": {"inputs": [image(datatype="FP32", data=[1.0])]}}, 400, "expected BYTES"),
    "wrong count": ({"json": {"inputs": [numbers()]}}, 400, "3072 numbers"),
    "wrong shape": ({"json": {"inputs": [numbers(shape=[1])]}}, 400, "expected FP32 of shape"),
    "negative shape": ({"json": {"inputs": [numbers(shape=[-1, 1])]}}, 400, "shape"),
    "no rows": ({"json": {"inputs": [numbers(shape=[0, 3, SIDE_PX, SIDE_PX], data=[])]}}, 400, "1 to 64"),
    "huge shape": ({"json": {"inputs": [image(shape=[10**12])]}}, 400, "image"),
    "too many": ({"json": {"inputs": [image(shape=[65], data=["AAAA"] * 65)]}}, 400, "1 to 64"),
    "ragged": ({"json": {"inputs": [numbers(data=[[1], [1, 2]])]}}, 400, "numbers in a list"),
    "text for numbers": ({"json": {"inputs": [numbers(data=["a"])]}}, 400, "numbers in a list"),
    "too deep": ({"content": b'{"inputs":[{"name":"images","data":' + b"[" * 50_000}, 400, "body"),
    "unknown output": ({"json": {"inputs": [image()], "outputs": [{"name": "scores"}]}}, 400, "prediction"),
    "no classifier": (
        {"json": {"inputs": [image()], "outputs": [{"name": "label", "parameters": {"classification": 1}}]}},
        400,
        "classification",
    ),
    "negative patience": ({"json": {"inputs": [image()], "parameters": {"timeout": -1}}}, 400, "timeout"),
    "wrong risk": ({"json": {"inputs": [image()], "parameters": {"max_risk": "x"}}}, 400, "max_risk"),
    "length no number": (binary({"inputs": []}, length="x"), 400, "Inference-Header"),
    "length too large": (binary({"inputs": []}, length=999), 400, "Inference-Header"),
    "bytes too few": (binary({"inputs": [image(parameters={"binary_data_size": 9})]}, b"ab"), 400, "binary_data_size"),
    "bytes too many": (binary({"inputs": [image()]}, b"ab"), 400, "belong to none"),
    "size no number": (binary({"inputs": [image(parameters={"binary_data_size": True})]}), 400, "binary_data_size"),
    "length inside lies": (
        binary({"inputs": [image(parameters={"binary_data_size": 6})]}, b"\xff\xff\xff\xffab"),
        400,
        "too early",
    ),
    "half a number": (binary({"inputs": [numbers(parameters={"binary_data_size": 5})]}, b"abcde"), 400, "4 bytes"),
    "two where one is said": (
        binary({"inputs": [image(parameters={"binary_data_size": 2 * len(WHOLE)})]}, 2 * WHOLE),
        400,
        "found 2",
    ),
    "not a number": (
        binary({"inputs": [numbers(parameters={"binary_data_size": 12288})]}, struct.pack("<f", float("nan")) * 3072),
        400,
        "finite",
    ),
    "too large": ({"content": bytes(MAX_BODY + 1)}, 413, str(MAX_BODY)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused_in_words_of_both_worlds(
    served: Served, client: httpx.Client, name: str
) -> None:
    """A problem as everywhere, and `error` where the protocol's clients look."""
    request, status, words = BAD[name]
    before = logged(served)
    problem = assert_problem(client.post("/v2/models/tiny/infer", **request), status, words)
    assert words in problem["error"]
    assert logged(served) == before


def test_numbers_beyond_the_models_reach_are_the_callers_mistake(served: Served, client: httpx.Client) -> None:
    """3e38 is a finite number; that the answer is none is no failure of the model, which must not be rolled back for it."""
    values = np.full((1, 3, SIDE_PX, SIDE_PX), 3e38, np.float32).tobytes()
    request = binary({"inputs": [numbers(parameters={"binary_data_size": len(values)})]}, values)
    assert_problem(client.post("/v2/models/tiny/infer", **request), 400, "no answer for this tensor")


def test_a_version_that_does_not_answer_is_named(client: httpx.Client) -> None:
    """A client that was pinned must not get another model silently."""
    assert_problem(client.post("/v2/models/tiny/versions/9/infer", content=b"{}"), 404, "9")
    assert_problem(client.get("/v2/models/tiny/versions/blue/ready"), 404, "blue", "champion")


def test_the_sums_forget_the_version_that_is_longest_unused() -> None:
    """A process that lives for a year sees thousands of versions."""
    sums = statistics.Statistics()
    for version in range(statistics.MAX_VERSIONS + 5):
        sums.ran("m", version, items=2, ran_s=0.5, finished_s=0.1)
    assert len(sums.of("m")) == statistics.MAX_VERSIONS
    assert 0 not in sums.of("m")
    assert sums.of("m")[9].ran_s == 1.0
