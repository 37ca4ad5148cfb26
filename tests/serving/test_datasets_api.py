"""Data sets over HTTP: a zip goes up, a version comes back down, and everything in between can be looked at."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import httpx
from shared_server import Served, assert_problem

from retrain import datasets
from retrain.jobs import HANDLERS
from sutdol import registry
from sutdol.jobs import worker
from tests.voc_folder import photo

BATCH = {kind: HANDLERS[kind] for kind in ("retrain.import", "retrain.export", "retrain.preview")}


def make_model(served: Served, slug: str) -> None:
    with served.context.database.begin() as session:
        params = {"architecture": "resnet_tiny"}
        registry.create_model(session, slug, task="classify", classes=[], family="timm", params=params)


def upload(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for i in range(count):
            out.writestr(f"{'고양이' if i % 2 else 'dog'}/{i}.png", photo(i))
    return buffer.getvalue()


def test_a_zip_goes_up_and_a_version_comes_down(served: Served, client: httpx.Client, tmp_path: Path) -> None:
    """The whole road of a data set without a shell on the server."""
    others = served.context.store.keys("uploads")  # the server is shared, and nobody works on imports
    make_model(served, "api-data")
    sent = client.post("/v1/models/api-data/imports", content=upload(20), params={"name": "first", "memo": "m"})
    assert sent.status_code == 202, sent.text
    job = sent.json()["id"]
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "queued"
    worker.run_pending(served.context, BATCH)
    done = client.get(f"/v1/jobs/{job}").json()
    assert (done["state"], done["result"]["imported"]) == ("done", 20), done
    assert set(served.context.store.keys("uploads")) <= set(others)
    [made] = client.get("/v1/models/api-data/imports").json()
    assert (made["name"], made["memo"], made["report"]["classes"]) == ("first", "m", {"dog": 10, "고양이": 10})
    with served.context.database.begin() as session:
        datasets.freeze(session, "api-data")
    base = "/v1/models/api-data/dataset-versions"
    changed = client.patch(f"{base}/1", json={"tags": ["b", "a"], "memo": "checked"}).json()
    assert (changed["tags"], changed["memo"], changed["name"]) == (["a", "b"], "checked", "")
    assert [v["number"] for v in client.get(base).json()] == [1]
    assert client.get(f"{base}/1/statistics").json()["images"] == 20
    assert client.get(f"{base}/1/diff", params={"since": 1}).json()["added"] == 0
    out = client.post("/v1/models/api-data/exports", json={"format": "imagefolder"}).json()
    assert_problem(client.get(f"/v1/jobs/{out['id']}/file"), 404, "has no file: it is queued")
    worker.run_pending(served.context, BATCH)
    file = client.get(f"/v1/jobs/{out['id']}/file")
    assert file.headers["content-type"] == "application/zip"
    names = zipfile.ZipFile(io.BytesIO(file.content)).namelist()
    assert sum(name.endswith(".png") for name in names) == 20


def test_what_is_no_zip_is_refused_before_it_is_kept(served: Served, client: httpx.Client) -> None:
    """The first bytes tell; ten gigabytes of something else need not be waited for."""
    others = served.context.store.keys("uploads")  # the server is shared, and nobody works on imports
    make_model(served, "api-nozip")
    assert_problem(client.post("/v1/models/api-nozip/imports", content=b"x" * 100), 415, "expected a zip file")
    assert_problem(client.post("/v1/models/api-nozip/imports", content=b""), 400, "found nothing")
    assert_problem(client.post("/v1/models/nope/imports", content=upload(1)), 404, "unknown model")
    assert_problem(client.get("/v1/models/api-nozip/dataset-versions/3/statistics"), 404, "unknown dataset version")
    assert_problem(client.post("/v1/models/api-nozip/exports", json={"format": "voc"}), 404, "unknown dataset version")
    assert_problem(client.post("/v1/models/api-nozip/previews", json={"count": 99}), 400, "a count of 1 to 16")
    assert_problem(client.get("/v1/jobs/nope"), 404, "unknown job")
    assert set(served.context.store.keys("uploads")) <= set(others)
    with served.client("predict") as reader:
        assert_problem(reader.post("/v1/models/api-nozip/imports", content=upload(1)), 403, "admin")
        assert reader.get("/v1/models/api-nozip/imports").json() == []
