"""The routes about versions, against the shared server: what is refused, what is written down."""

from __future__ import annotations

import httpx
from shared_server import Served, assert_problem
from sqlmodel import select

from sutdol.tables import Event
from tests.tiny_models import classifier_bundle


def test_a_version_is_renamed_tagged_and_deleted_by_two_requests(served: Served, client: httpx.Client) -> None:
    """A console needs nothing else; each change names the key that made it."""
    served.model("kept")
    version = classifier_bundle(served.context, "kept", promote=False)
    path = f"/v1/models/kept/versions/{version}"
    changed = client.patch(path, json={"name": "for line 2", "tags": {"line": "2"}}).json()
    assert (changed["name"], changed["tags"]) == ("for line 2", {"line": "2"})
    assert client.put("/v1/models/kept/aliases/staging", json={"version": version}).json()["version"] == version
    assert_problem(client.delete(path), 409, "it is the staging")
    assert client.delete("/v1/models/kept/aliases/staging").status_code == 200
    problem = assert_problem(client.delete(path), 409, "must be confirmed")
    token = problem["hint"].split("confirm=")[1]
    assert_problem(client.delete(path, params={"confirm": "guess"}), 409)
    assert client.delete(path, params={"confirm": token}).status_code == 200
    assert client.get(path).json()["state"] == "deleted"
    assert [v["version"] for v in client.get("/v1/models/kept/versions").json()] == [1]
    with served.context.database.read() as session:
        events = session.exec(select(Event).where(Event.model == "kept", Event.kind != "model.promote")).all()
    made = [e for e in events if e.kind.startswith(("version.", "alias."))]
    assert len(made) == 5
    assert all(str(e.data["who"]).startswith("key ") for e in made)


def test_what_serves_cannot_be_deleted_over_http_either(served: Served, client: httpx.Client) -> None:
    """Nor renamed by somebody who may only predict."""
    served.model("in-use")
    assert_problem(client.delete("/v1/models/in-use/versions/1"), 409, "it is the champion")
    assert_problem(client.delete("/v1/models/in-use/versions/7"), 404, "unknown version of in-use")
    with served.client("predict") as reader:
        assert reader.get("/v1/models/in-use/versions/1").json()["aliases"] == ["champion"]
        assert_problem(reader.patch("/v1/models/in-use/versions/1", json={"name": "x"}), 403)
        assert_problem(reader.delete("/v1/models/in-use/versions/1"), 403)


def test_bodies_that_are_no_changes_are_refused(client: httpx.Client) -> None:
    """A misspelt field that is silently dropped looks like success."""
    path = "/v1/models/tiny/versions/1"
    assert_problem(client.patch(path, json={"nam": "x"}), 400, "nam")
    assert_problem(client.patch(path, content=b"\xff"), 400)
    assert_problem(client.put("/v1/models/tiny/aliases/champion", json={"version": 1}), 409, "promote a version")
    assert_problem(client.delete("/v1/models/tiny/aliases/nope"), 404)
