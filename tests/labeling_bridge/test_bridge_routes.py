"""Images for the labeler's browser, and hints from Label Studio."""

from __future__ import annotations

from typing import Any

import pytest
from bridge_rows import add_model, add_sample, picture
from litestar import Litestar, Request, Response
from litestar.testing import TestClient
from sqlmodel import select

from labeling_bridge import routes
from labeling_bridge.pictures import image_url
from labeling_bridge.studio import SECRET_HEADER
from sutdol import keys
from sutdol.context import open_context
from sutdol.errors import SutdolError
from sutdol.jobs import rows
from sutdol.settings import load
from sutdol.tables import Job, StudioProject


def problem(_: Request[Any, Any, Any], error: SutdolError) -> Response[dict[str, str]]:
    return Response({"code": error.code, "detail": str(error)}, status_code=error.status)


@pytest.fixture
def bridge(tmp_path):
    """(client, context) of an app with nothing but the bridge's routes."""
    context = open_context(
        load(home=tmp_path / "home", label_studio_url="http://localhost:8080", cors_origins="https://label.example")
    )
    app = Litestar([routes.build(context)], exception_handlers={SutdolError: problem}, openapi_config=None)
    with TestClient(app) as client:
        yield client, context
    context.database.close()


def signed(context, sample_id):
    return image_url(context, sample_id).removeprefix(context.settings.url)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:8080", True),
        ("http://127.0.0.1:8080", True),
        ("https://label.example", True),
        ("http://127.0.0.1:9999", False),
        ("https://evil.example", False),
    ],
)
def test_label_studio_may_read_the_image_and_strangers_may_not(bridge, origin, allowed):
    """Without these headers labelers see an error box and still submit, blindly."""
    client, context = bridge
    sample_id = add_sample(context, picture(1))
    response = client.get(signed(context, sample_id), headers={"Origin": origin})
    assert response.status_code == 200
    assert response.content == context.store.get(f"samples/{sample_id}")
    assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert response.headers["vary"] == "Origin"
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in response.headers["cache-control"]


def test_head_says_the_same_without_the_image(bridge):
    """Start-up checks and proxies ask this way."""
    client, context = bridge
    sample_id = add_sample(context, picture(1))
    response = client.head(signed(context, sample_id))
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "image/png"
    assert int(response.headers["content-length"]) == len(context.store.get(f"samples/{sample_id}"))


def test_a_wrong_signature_shows_nothing(bridge):
    """The signature is the only thing between a stranger and the pictures."""
    client, context = bridge
    mine, other = add_sample(context, picture(1)), add_sample(context, picture(2))
    stolen = signed(context, mine).split("sig=")[1]
    for url in (
        f"/v1/samples/{mine}/image",
        f"/v1/samples/{mine}/image?sig=",
        f"/v1/samples/{other}/image?sig={stolen}",
        f"/v1/samples/{mine}/image?sig=%C3%A9",
    ):
        response = client.get(url)
        assert response.status_code == 403
        assert response.json()["code"] == "unauthorized"


def test_a_signed_sample_that_is_not_there_is_not_found(bridge):
    """Retention may have removed it; that is no server error."""
    client, context = bridge
    assert client.get(signed(context, "0" * 64)).status_code == 404


def hook(client, context, body, secret=None):
    secret = secret if secret is not None else keys.secret(context.database, "label-studio-webhook")
    return client.post("/v1/label-studio/webhook", json=body, headers={SECRET_HEADER: secret})


def reads(context):
    with context.database.read() as session:
        return [
            j.payload
            for j in session.exec(select(Job).where(Job.kind.in_(("bridge.read", "bridge.hint"))).order_by(Job.id))
        ]


def test_hints_that_come_together_become_one_reading_job(bridge):
    """Each reading takes Label Studio's time from the labelers, and the hint is answered inside the labeler's submit."""
    client, context = bridge
    add_model(context, "digits")
    with context.database.begin() as session:
        session.add(StudioProject(model="digits", project_id=7, label_config=""))
    one = {"action": "ANNOTATION_CREATED", "task": {"id": 3}, "annotation": {"id": 1}, "project": {"id": 7}}
    assert hook(client, context, one).status_code == 200
    assert hook(client, context, one).status_code == 200
    many = {"action": "ANNOTATIONS_CREATED", "task": [{"id": 5}, {"id": 4}], "annotation": [], "project": {"id": 7}}
    assert hook(client, context, many).status_code == 200
    gone = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 9}], "project": {"id": 7}}
    assert hook(client, context, gone).status_code == 200
    first, second = reads(context)
    assert (first["model"], first["project_id"], first["studio_task_ids"]) == ("digits", 7, [3, 4, 5])
    assert second == {"model": "digits"}


def test_a_hint_keeps_the_answer_it_announces_and_nothing_else(bridge):
    """The task may be deleted before it is read; and the payload holds the project's invite token and more."""
    client, context = bridge
    add_model(context, "digits")
    with context.database.begin() as session:
        session.add(StudioProject(model="digits", project_id=7, label_config=""))
    answer = {"id": 1, "result": [{"value": {"choices": ["a"]}}], "updated_at": "2026-01-01", "completed_by": 3}
    task = {"id": 3, "data": {"sample_id": "s", "image": "http://secret"}, "inner": "x"}
    body = {"task": task, "annotation": answer | {"unique_id": "x"}, "project": {"id": 7, "token": "invite"}}
    hook(client, context, body)
    (job,) = reads(context)
    assert job["hinted"] == [{"id": 3, "data": {"sample_id": "s"}, "annotations": [answer]}]


def test_a_hint_that_comes_while_others_are_read_is_read_afterwards(bridge):
    """The running job has asked already; an answer put into its payload now would be lost until the poll."""
    client, context = bridge
    add_model(context, "digits")
    with context.database.begin() as session:
        session.add(StudioProject(model="digits", project_id=7, label_config=""))
    hook(client, context, {"task": {"id": 3}, "project": {"id": 7}})
    with context.database.begin() as session:
        job = session.exec(select(Job).where(Job.kind.in_(("bridge.read", "bridge.hint")))).one()
        job.not_before = 0.0
        job_id = job.id
    assert rows.claim(context.database, job_id, "worker", lease_s=60) is not None
    hook(client, context, {"task": {"id": 4}, "project": {"id": 7}})
    hook(client, context, {"task": {"id": 5}, "project": {"id": 7}})
    assert [p["studio_task_ids"] for p in reads(context)] == [[3], [4, 5]]


def test_hints_about_other_projects_are_nothing_to_us(bridge):
    """People have projects of their own on the same Label Studio."""
    client, context = bridge
    response = hook(client, context, {"action": "ANNOTATION_CREATED", "task": {"id": 3}, "project": {"id": 99}})
    assert response.json() == {"known": False}
    assert reads(context) == []


@pytest.mark.parametrize("secret", ["", "wrong", "näh".encode()])
def test_a_hint_without_the_secret_is_refused(bridge, secret):
    """Anybody can reach this route."""
    client, context = bridge
    assert hook(client, context, {"project": {"id": 7}}, secret=secret).status_code == 401
    assert reads(context) == []


@pytest.mark.parametrize("body", [{"task": "x", "project": 1}, {"task": {}, "project": {}}, {"project": {"id": "x"}}])
def test_a_hint_of_another_shape_is_a_bad_request(bridge, body):
    """A newer Label Studio may send something else; that must not be our crash."""
    client, context = bridge
    assert hook(client, context, body).status_code == 400
