"""`POST /v1/predict/{model}` as a client sees it, over a real port, and what it leaves in the log."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import httpx
import pytest
from shared_server import MAX_BODY, ORIGIN, Served, assert_problem, logged
from sqlmodel import select

from sutdol.images import admit
from sutdol.tables import Feedback, LabelTask, PredictionRow, Sample
from tests.running_server import wait_for
from tests.tiny_models import CLASSES, coloured_png

PNG = {"content-type": "image/png"}


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header asks for width x height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", CLASSES)
def test_the_answer_is_right_and_in_the_log(served: Served, client: httpx.Client, name: str) -> None:
    """The reply and the row are one promise: the id a client got leads to what it was told."""
    data = coloured_png(name)
    reply = client.post("/v1/predict/tiny", content=data, headers=PNG)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert answer["predictions"][0]["name"] == name
    assert answer["predictions"][0]["class"] == CLASSES.index(name)
    assert answer["image"] == {"width": 40, "height": 40}
    assert 0.9 < answer["confidence"] <= 1
    with served.context.database.read() as session:
        row = session.get_one(PredictionRow, answer["prediction_id"])
    assert (row.model, row.version, row.sample_id) == ("tiny", answer["version"], admit(data).sample_id)
    assert row.confidence == answer["confidence"]
    assert row.answer["classes"][0]["label"] == name
    assert 0 <= row.inclusion_probability <= 1
    assert row.key_id == served.keys["admin"].split("_")[1]
    red_minus_blue = {"red": 200, "green": 0, "blue": -200}[name] / 255
    assert (row.brightness, row.sharpness, row.colour) == pytest.approx((200 / 255 / 3, 0, red_minus_blue), abs=1e-5)
    assert len(row.fingerprint or "") == 16


@pytest.mark.parametrize("field", ["file", "image"])
def test_a_form_upload_gets_the_same_answer(client: httpx.Client, field: str) -> None:
    """Browsers send FormData; both names that people use work, and other text fields do not disturb."""
    data = coloured_png("green")
    form = client.post("/v1/predict/tiny", files={field: ("../../x.png", data)}, data={"conf": "0.25"})
    raw = client.post("/v1/predict/tiny", content=data)
    assert form.status_code == 200, form.text
    assert form.json()["predictions"] == raw.json()["predictions"]


def test_a_picked_sample_is_kept_with_its_image_and_one_task(served: Served, client: httpx.Client) -> None:
    """What is worth a human look must still be there when the human looks, once."""
    for seed in range(100):
        data = coloured_png("red", seed=seed)
        answer = client.post("/v1/predict/tiny", content=data).json()
        if answer["queued"] and answer["queued"]["arms"][0] == "drawn":
            break
    else:
        pytest.fail("nothing was drawn")
    client.post("/v1/predict/tiny", content=data)
    image = admit(data)
    assert served.context.store.get(f"samples/{image.sample_id}") == image.data
    with served.context.database.read() as session:
        sample = session.get_one(Sample, image.sample_id)
        tasks = session.exec(select(LabelTask).where(LabelTask.sample_id == image.sample_id)).all()
        row = session.get_one(PredictionRow, answer["prediction_id"])
    assert (sample.width_px, sample.height_px, sample.size_bytes) == (40, 40, len(image.data))
    assert len(tasks) == 1
    assert (tasks[0].arm, tasks[0].state, tasks[0].model) == ("drawn", "candidate", "tiny")
    assert tasks[0].prediction_id == row.id
    assert tasks[0].inclusion_probability == row.inclusion_probability
    assert row.arms == answer["queued"]["arms"]


BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "empty"),
    "text": (b"hello, this is no image", 415, "JPEG, PNG, WebP or GIF"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "JPEG"),
    "truncated": (coloured_png("red", side_px=200, seed=1)[:900], 400, "truncated"),
    "header only": (b"\xff\xd8\xff", 400, "truncated"),
    "bomb": (bomb(30_000, 30_000), 413, "30000 x 30000"),
    "too many bytes": (b"\x89PNG\r\n\x1a\n" + bytes(MAX_BODY), 413, str(MAX_BODY)),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_that_is_no_usable_image_is_refused_in_words(served: Served, client: httpx.Client, name: str) -> None:
    """A 500 or a half-written row for a broken upload is our bug, not the caller's."""
    body, status, words = BAD_BODIES[name]
    before = logged(served)
    assert_problem(client.post("/v1/predict/tiny", content=body, headers=PNG), status, words)
    assert logged(served) == before


def test_a_body_too_large_is_refused_without_a_length(client: httpx.Client) -> None:
    """Chunked uploads announce no size; the limit holds all the same."""
    chunks = (bytes(64_000) for _ in range(MAX_BODY // 64_000 + 2))
    assert_problem(client.post("/v1/predict/tiny", content=chunks), 413, str(MAX_BODY))


BAD_FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong field": ({"files": {"picture": ("a.png", coloured_png())}}, "'file' or 'image', found fields: 'picture'"),
    "two files": ({"files": [("file", ("a", coloured_png())), ("image", ("b", coloured_png()))]}, "found several"),
    "no body": ({"headers": {"content-type": "multipart/form-data; boundary=x"}}, "multipart"),
    "no boundary": ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
    "cut short": (
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
            "headers": {"content-type": "multipart/form-data; boundary=x"},
        },
        "multipart",
    ),
    "no multipart": (
        {"content": b'{"image": 1}', "headers": {"content-type": "multipart/form-data; boundary=x"}},
        "multipart",
    ),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_form_that_cannot_be_used_names_what_was_expected(served: Served, client: httpx.Client, name: str) -> None:
    """The framework alone would take any field name and answer 500 to some of these."""
    request, words = BAD_FORMS[name]
    before = logged(served)
    assert_problem(client.post("/v1/predict/tiny", **request), 400, words)
    assert logged(served) == before


def test_an_unknown_model_lists_the_known_ones(client: httpx.Client) -> None:
    """A typing error in a URL is found by reading the answer."""
    assert_problem(client.post("/v1/predict/tyni", content=coloured_png()), 404, "tyni", "tiny")


def test_unknown_paths_and_methods_are_problems_too(client: httpx.Client) -> None:
    """One error format for everything, or clients need two parsers."""
    assert_problem(client.get("/v1/nothing"), 404, "/v1/nothing")
    response = client.get("/v1/predict/tiny")
    assert_problem(response, 405, "GET")
    assert "POST" in response.headers["allow"]


def test_a_page_of_an_allowed_origin_may_upload(served: Served) -> None:
    """A shop's own JavaScript calls fetch with FormData and a Bearer key; the browser asks first."""
    url = f"{served.server.url}/v1/predict/tiny"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = httpx.options(url, headers={"Origin": ORIGIN, **asked})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {served.keys['predict']}"}
    reply = httpx.post(url, files={"image": ("blob", coloured_png(), "image/png")}, headers=headers)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == ORIGIN


def test_a_page_of_another_origin_may_not(served: Served) -> None:
    """Otherwise any page in a browser could use a key that lies there."""
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{served.server.url}/v1/predict/tiny", headers=asked)
    assert "access-control-allow-origin" not in preflight.headers


def test_feedback_is_kept_with_its_prediction(served: Served, client: httpx.Client) -> None:
    """The caller often knows the truth later; it must find its way to the prediction it is about."""
    prediction_id = client.post("/v1/predict/tiny", content=coloured_png("blue")).json()["prediction_id"]
    reply = client.post(f"/v1/predictions/{prediction_id}/feedback", json={"class": "green"})
    assert reply.status_code == 201, reply.text
    with served.context.database.read() as session:
        row = session.get_one(Feedback, reply.json()["id"])
    assert row.prediction_id == prediction_id
    assert row.value["classes"] == ["green"]


BAD_FEEDBACK: dict[str, tuple[bytes, str]] = {
    "unknown class": (b'{"class": "purple"}', "purple"),
    "boxes for a classifier": (b'{"boxes": []}', "class"),
    "two answers": (b'{"class": "red", "classes": ["red"]}', "found"),
    "two classes": (b'{"classes": ["red", "blue"]}', "one class"),
    "nothing": (b"{}", "nothing"),
    "unknown field": (b'{"klass": "red"}', "klass"),
    "not JSON": (b"red", "body"),
    "not UTF-8": (b'{"class": "\xff\xfe"}', "body"),
    "too deep": (b"[" * 100_000, "body"),
    "empty": (b"", "body"),
}


@pytest.mark.parametrize("name", BAD_FEEDBACK)
def test_feedback_that_makes_no_sense_is_refused(client: httpx.Client, name: str) -> None:
    """A wrong class name in the log would become a wrong label."""
    prediction_id = client.post("/v1/predict/tiny", content=coloured_png()).json()["prediction_id"]
    body, words = BAD_FEEDBACK[name]
    assert_problem(client.post(f"/v1/predictions/{prediction_id}/feedback", content=body), 400, words)


def test_feedback_for_an_unknown_prediction_is_not_found(client: httpx.Client) -> None:
    """Feedback about nothing is a mistake of the caller that should be seen."""
    assert_problem(client.post("/v1/predictions/nope/feedback", json={"class": "red"}), 404, "nope")


def test_every_reply_has_a_request_id_and_ours_is_taken(client: httpx.Client) -> None:
    """Support starts with the id; a hostile one must not reach the logs."""
    assert client.get("/v1/models", headers={"X-Request-Id": "my-id_7"}).headers["x-request-id"] == "my-id_7"
    assert client.get("/v1/models", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


def test_the_deadline_of_the_caller_is_checked(client: httpx.Client) -> None:
    """A deadline that is no number is refused, one in the future is kept."""
    data = coloured_png()
    assert_problem(client.post("/v1/predict/tiny", content=data, headers={"X-Request-Timeout": "soon"}), 400)
    assert client.post("/v1/predict/tiny", content=data, headers={"X-Request-Timeout": "20"}).status_code == 200


def test_the_schema_names_actions_problems_and_the_key(client: httpx.Client) -> None:
    """Clients are generated from it, so what is not in it does not exist."""
    response = client.get("/schema")
    assert response.status_code == 200
    document = response.json()
    assert document["openapi"].startswith("3.1")
    paths = document["paths"]
    assert {"/v1/models/{model}/versions/{version}:promote", "/v1/models/{model}:rollback"} <= set(paths)
    predict = paths["/v1/predict/{model}"]["post"]
    assert "application/problem+json" in predict["responses"]["503"]["content"]
    assert {"image/jpeg", "multipart/form-data"} <= set(predict["requestBody"]["content"])
    assert predict["security"] == [{"key": []}]
    assert client.get("/schema/openapi.json").json() == document


def test_metrics_have_the_names_that_boards_and_alerts_use(client: httpx.Client) -> None:
    """A renamed metric silences an alert without a word."""
    client.post("/v1/predict/tiny", content=coloured_png())

    def there() -> bool:
        text = client.get("/metrics").text
        names = {
            'sutdol_requests_total{method="POST",route="/v1/predict/{model}",status="200"}',
            'sutdol_predictions_total{model="tiny",version="1"}',
            'sutdol_swap_total{model="tiny",outcome="done"}',
            "sutdol_request_duration_seconds_bucket",
            "sutdol_queue_length",
            "sutdol_log_pending",
            "sutdol_log_commits_total",
        }
        return all(name in text for name in names)

    wait_for(there, "all metrics")
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")
