"""Training runs over HTTP: started, looked at, cancelled; nothing is trained in the server."""

from __future__ import annotations

import httpx
from shared_server import Served, assert_problem
from sqlmodel import select

from sutdol.tables import Job, RunCandidate, RunProgress, TrainingRun


def start(client: httpx.Client, model: str, **more: object) -> dict[str, object]:
    response = client.post("/v1/runs", json={"model": model, **more})
    assert response.status_code == 202, response.text
    found: dict[str, object] = response.json()
    return found


def test_a_run_is_started_compared_and_cancelled(served: Served, client: httpx.Client) -> None:
    """What the command line can do, a console and a script can do."""
    served.model("api-run")
    wanted = [{"family": "timm", "params": {"lr": 0.01}}, {"params": {"architecture": "resnet50"}}]
    run = start(client, "api-run", params={"epochs": 3}, candidates=wanted)
    assert run["state"] == "queued"
    assert [(c["number"], c["params"]) for c in run["candidates"]] == [  # type: ignore[attr-defined]
        (1, {"lr": 0.01}),
        (2, {"architecture": "resnet50"}),
    ]
    assert_problem(client.post("/v1/runs", json={"model": "api-run"}), 409, "is being trained already")
    with served.context.database.begin() as session:
        for number, (score, state) in {1: (0.5, "eliminated"), 2: (0.8, "training")}.items():
            row = session.get_one(RunCandidate, (run["id"], number))
            row.score, row.state = score, state
            session.add(row)
        for attempt, epoch in ((1, 1), (1, 2), (2, 2)):
            session.add(
                RunProgress(run_id=str(run["id"]), candidate=2, attempt=attempt, epoch=epoch, metrics={"a": attempt})
            )
    found = client.get(f"/v1/runs/{run['id']}").json()
    assert [c["number"] for c in found["candidates"]] == [2, 1], "the best first"
    assert [(p["epoch"], p["metrics"]) for p in found["candidates"][0]["curve"]] == [(1, {"a": 1}), (2, {"a": 2})]
    assert [r["id"] for r in client.get("/v1/runs", params={"model": "api-run"}).json()] == [run["id"]]
    cancelled = client.post(f"/v1/runs/{run['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    assert_problem(client.post(f"/v1/runs/{run['id']}/cancel"), 409, "has ended: cancelled")
    assert start(client, "api-run")["id"] != run["id"]


def test_what_is_wrong_is_said_and_nothing_is_queued(served: Served, client: httpx.Client) -> None:
    """A typo must not become a job."""
    served.model("api-wrong")
    assert_problem(client.post("/v1/runs", json={"model": "nope"}), 404, "unknown model")
    many = [{"params": {}}] * 17
    assert_problem(client.post("/v1/runs", json={"model": "api-wrong", "candidates": many}), 400, "expected 1 to 16")
    assert_problem(client.get("/v1/runs/nope"), 404, "unknown training run")
    assert_problem(client.post("/v1/runs/nope/cancel"), 404, "unknown training run")
    with served.context.database.read() as session:
        assert session.exec(select(TrainingRun).where(TrainingRun.model == "api-wrong")).all() == []
        runs = {run.id for run in session.exec(select(TrainingRun))}
        sent = session.exec(select(Job).where(Job.kind == "train")).all()
        assert {job.payload["run_id"] for job in sent} <= runs


def test_readers_may_look_and_admins_may_start(served: Served) -> None:
    """A camera's key must not be able to keep the GPU busy."""
    served.model("api-scope")
    with served.client("predict") as client:
        assert client.get("/v1/runs").status_code == 200
        assert_problem(client.post("/v1/runs", json={"model": "api-scope"}), 403, "admin")
