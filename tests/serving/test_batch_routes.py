"""Batches over HTTP, against the shared server; the worker's part is done in this process."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import httpx
from shared_server import MAX_BODY, Served, assert_problem
from test_batch_sources import write_video

from serving.jobs import HANDLERS
from sutdol.jobs import worker
from tests.tiny_models import coloured_png


def archive(count: int, *, ballast: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(count):
            file.writestr(f"{i}.png", coloured_png(seed=i))
        file.writestr("ballast.bin", b"\1" * ballast)
    return buffer.getvalue()


def test_an_uploaded_archive_comes_back_as_results(served: Served, client: httpx.Client) -> None:
    """Larger than any body that a prediction may have; followed, fetched, and refused a second start."""
    served.model("bulk")
    data = archive(20, ballast=2 * MAX_BODY)
    started = client.post("/v1/batches/upload", params={"model": "bulk", "name": "../photos"}, content=data)
    assert started.status_code == 202, started.text
    path = f"/v1/batches/{started.json()['id']}"
    assert started.json()["source"] == {"kind": "zip", "name": "photos.zip"}
    worker.run_pending(served.context, HANDLERS)
    done = client.get(path).json()
    assert (done["state"], done["done"], done["failed"]) == ("done", 20, 0)
    found = [json.loads(line) for line in client.get(f"{path}/results").text.splitlines()]
    assert {line["predictions"][0]["name"] for line in found} == {"red"}
    whole = client.get(f"{path}/results", params={"format": "zip"})
    assert "attachment" in whole.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(whole.content)) as packed:
        assert packed.testzip() is None
    assert_problem(client.post(f"{path}/resume"), 409, "is done")
    assert_problem(client.get(f"{path}/results", params={"format": "xml"}), 404, "jsonl")
    assert done["id"] in [b["id"] for b in client.get("/v1/batches", params={"model": "bulk"}).json()]


def test_an_uploaded_video_becomes_frames(served: Served, client: httpx.Client, tmp_path: Path) -> None:
    """Frames by scene; a cancelled one goes on."""
    served.model("film")
    video = write_video(tmp_path / "film.avi", [(0, 0, 200), (0, 200, 0)])
    query = {"model": "film", "kind": "video", "name": "film.avi", "scene": 0.5}
    run = client.post("/v1/batches/upload", params=query, content=video.read_bytes()).json()  # type: ignore[arg-type]
    path = f"/v1/batches/{run['id']}"
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert client.post(f"{path}/resume").status_code == 202
    worker.run_pending(served.context, HANDLERS)
    found = [json.loads(line) for line in client.get(f"{path}/results").text.splitlines()]
    assert [(line["at_s"], line["predictions"][0]["name"]) for line in found] == [(0.0, "red"), (1.0, "green")]


def test_what_cannot_be_started_is_refused(served: Served, client: httpx.Client) -> None:
    """Nobody names files of the server unless its owner named a folder."""
    path = "/v1/batches"
    assert_problem(client.post(path, json={"model": "tiny", "path": "/etc"}), 400, "lets nobody name its files")
    assert_problem(client.post(f"{path}/upload", params={"model": "nope"}, content=b"x"), 404, "nope")
    assert_problem(client.post(f"{path}/upload", params={"model": "tiny", "kind": "pdf"}, content=b"x"), 400, "kind")
    assert_problem(
        client.post(f"{path}/upload", params={"model": "tiny", "scene": 7}, content=archive(1)), 400, "scene"
    )
    assert_problem(client.get(f"{path}/nope"), 404)
    broken = client.post(f"{path}/upload", params={"model": "tiny"}, content=b"no archive").json()
    worker.run_pending(served.context, HANDLERS)
    state = client.get(f"{path}/{broken['id']}").json()
    assert state["state"] == "failed"
    assert "not a zip archive" in state["error"]
