"""Several images in one request, answers that admit they are unsure, and answers in another server's words."""

from __future__ import annotations

import base64
import gzip
import zlib
from typing import Any

import httpx
import msgspec
import pytest
from shared_server import MAX_BODY, Served, assert_problem, logged

from serving.answers import Corners, Found, Reply, Size, as_roboflow
from sutdol.tables import PredictionRow
from tests.tiny_models import CLASSES, coloured_png

URL = "/v1/predict/tiny"


def form(*images: bytes, field: str = "file") -> dict[str, Any]:
    return {"files": [(field, (f"{i}.png", data)) for i, data in enumerate(images)]}


def listed(*images: bytes) -> dict[str, Any]:
    return {"json": {"images": [base64.b64encode(data).decode() for data in images]}}


@pytest.mark.parametrize("request_of", [form, listed], ids=["form", "list"])
def test_a_batch_is_answered_in_its_order_and_every_answer_is_in_the_log(
    served: Served, client: httpx.Client, request_of: Any
) -> None:
    """A batch is that many predictions, not a new kind of thing."""
    names = [CLASSES[i % 3] for i in range(20)]
    reply = client.post(f"{URL}/batch", **request_of(*(coloured_png(name) for name in names)))
    assert reply.status_code == 200, reply.text
    answers = [result["answer"] for result in reply.json()["results"]]
    assert [answer["predictions"][0]["name"] for answer in answers] == names
    with served.context.database.read() as session:
        for answer in answers:
            assert session.get_one(PredictionRow, answer["prediction_id"]).confidence == answer["confidence"]


def test_a_broken_image_is_its_own_affair(served: Served, client: httpx.Client) -> None:
    """The other 63 were paid for; and a 200 with a failure inside would be overlooked, so it is a 207."""
    before = logged(served)
    reply = client.post(f"{URL}/batch", **form(coloured_png("red"), b"no image", coloured_png("blue")))
    assert reply.status_code == 207
    first, broken, last = reply.json()["results"]
    assert (first["status"], broken["status"], last["status"]) == (200, 415, 200)
    assert "JPEG" in broken["problem"]["detail"]
    assert last["answer"]["predictions"][0]["name"] == "blue"
    assert logged(served) == before + 2


BAD_BATCHES: dict[str, tuple[dict[str, Any], int, str]] = {
    "none": ({"json": {"images": []}}, 400, "1 to 64 images, found 0"),
    "too many": (listed(*[b"x"] * 65), 400, "found 65"),
    "too many files": (form(*[b"x"] * 97), 400, "multipart"),
    "no base64": ({"json": {"images": ["????"]}}, 400, "images[0]"),
    "other JSON": ({"json": ["a"]}, 400, "body"),
    "raw": ({"content": coloured_png(), "headers": {"content-type": "image/png"}}, 415, "image/png"),
    "nothing": ({}, 415, "no Content-Type"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_that_is_none_is_refused_as_a_whole(served: Served, client: httpx.Client, name: str) -> None:
    """Nothing is predicted before the request is understood."""
    request, status, words = BAD_BATCHES[name]
    before = logged(served)
    assert_problem(client.post(f"{URL}/batch", **request), status, words)
    assert logged(served) == before


def test_an_answer_above_the_accepted_risk_is_unsure(served: Served, client: httpx.Client) -> None:
    """The caller says how often it may be wrong; what was withheld is in the log all the same."""
    sure = client.post(URL, params={"max_risk": 0.9}, content=coloured_png("red")).json()
    assert sure["unsure"] is False
    assert sure["predictions"][0]["name"] == "red"
    unsure = client.post(URL, params={"max_risk": 0}, content=coloured_png("red")).json()
    assert unsure["unsure"] is True
    assert unsure["predictions"] == []
    assert unsure["confidence"] == sure["confidence"]
    with served.context.database.read() as session:
        row = session.get_one(PredictionRow, unsure["prediction_id"])
    assert row.answer["classes"][0]["label"] == "red"
    assert "unsure" not in client.post(URL, content=coloured_png("red")).json()


@pytest.mark.parametrize("params", [{"max_risk": "2"}, {"max_risk": "some"}, {"format": "mystery"}])
def test_a_wish_that_is_not_understood_is_refused(client: httpx.Client, params: dict[str, str]) -> None:
    """Ignoring it would answer another question than the one asked."""
    assert_problem(client.post(URL, params=params, content=coloured_png()), 400, next(iter(params)))


def test_a_client_written_for_roboflow_finds_its_fields(client: httpx.Client) -> None:
    """Moving over means changing a URL, not a parser."""
    answer = client.post(URL, params={"format": "roboflow"}, content=coloured_png("green")).json()
    assert answer["top"] == "green"
    assert answer["predictions"][0] == {"class": "green", "class_id": 1, "confidence": answer["confidence"]}
    assert answer["image"] == {"width": 40, "height": 40}
    assert answer["inference_id"]


def test_boxes_and_labels_in_roboflows_words() -> None:
    """Boxes by centre and size; several labels by name."""
    common: dict[str, Any] = {
        "prediction_id": "p",
        "model": "m",
        "version": 1,
        "confidence": 0.8,
        "ood_score": None,
        "unfamiliar": False,
        "queued": None,
        "image": Size(100, 50),
        "duration_ms": 2.0,
    }
    box = Found("cat", 3, 0.8, Corners(10, 20, 30, 50))
    found = msgspec.json.decode(as_roboflow(Reply(task="detect", predictions=[box], **common)))
    assert found["predictions"] == [
        {
            "x": 20.0,
            "y": 35.0,
            "width": 20.0,
            "height": 30.0,
            "class": "cat",
            "class_id": 3,
            "confidence": 0.8,
            "detection_id": "p-0",
        }
    ]
    labels = msgspec.json.decode(as_roboflow(Reply(task="multilabel", predictions=[Found("cat", 3, 0.8)], **common)))
    assert labels["predictions"] == {"cat": {"class_id": 3, "confidence": 0.8}}
    assert labels["predicted_classes"] == ["cat"]


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [("gzip", gzip.compress(coloured_png("blue"))), ("deflate", zlib.compress(coloured_png("blue")))],
)
def test_a_compressed_body_is_read(client: httpx.Client, encoding: str, packed: bytes) -> None:
    """Some clients and proxies compress everything they send."""
    reply = client.post(URL, content=packed, headers={"content-encoding": encoding})
    assert reply.json()["predictions"][0]["name"] == "blue"


@pytest.mark.parametrize(
    ("encoding", "body", "status", "words"),
    [
        ("gzip", gzip.compress(bytes(50 * MAX_BODY)), 413, "at most"),
        ("gzip", gzip.compress(coloured_png())[:-9], 400, "too early"),
        ("gzip", b"no gzip", 400, "not gzip"),
        ("br", b"x", 415, "gzip"),
    ],
    ids=["bomb", "cut", "not", "unknown"],
)
def test_compression_is_no_way_around_the_limits(
    client: httpx.Client, encoding: str, body: bytes, status: int, words: str
) -> None:
    """50 kilobytes of gzip may stand for 50 megabytes."""
    assert_problem(client.post(URL, content=body, headers={"content-encoding": encoding}), status, words)
