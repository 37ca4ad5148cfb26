"""The routes about evaluations, against the shared server; the worker's part is done in this process."""

from __future__ import annotations

import httpx
import numpy as np
from shared_server import Served, assert_problem

from retrain import datasets
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.types import Label
from tests.tiny_models import CLASSES


def test_an_evaluation_is_ordered_followed_and_read(served: Served, client: httpx.Client) -> None:
    """A console needs nothing else: order, state, list, report, and what was wrong, least sure first."""
    served.model("judged")
    rng = np.random.default_rng(0)
    records = []
    for i in range(40):
        rgb = rng.integers(0, 40, (40, 40, 3), np.uint8)
        rgb[:, :, i % 3] += 150
        label = Label(classes=[CLASSES[(i + (i % 4 == 0)) % 3]])
        records.append(Record(f"{i}.png", label, data=encode_png(rgb)))
    datasets.import_records(served.context, "judged", records, ratios=(0.1, 0.1, 0.8))
    ordered = client.post("/v1/models/judged/evaluations", json={"version": 1})
    assert ordered.status_code == 202
    path = f"/v1/evaluations/{ordered.json()['evaluation_id']}"
    assert client.get(path).json()["state"] == "queued"
    assert_problem(client.get(f"{path}/report.html"), 404)
    worker.run_pending(served.context, {"retrain.evaluate": HANDLERS["retrain.evaluate"]})
    assert client.get(path).json()["state"] == "done"
    listed = client.get("/v1/models/judged/evaluations").json()
    assert [(e["version"], e["report"]) for e in listed] == [(1, True)]
    page = client.get(f"{path}/report.html")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get(f"{path}/report.zip").content[:2] == b"PK"
    wrong = client.get(f"{path}/items", params={"correct": False, "order": "confidence", "limit": 3}).json()
    assert wrong["count"] == listed[0]["metrics"]["n"] - sum(
        c["right"] for c in listed[0]["metrics"]["per_class"].values()
    )
    shown = [row["confidence"] for row in wrong["items"]]
    assert shown == sorted(shown)
    assert not any(row["correct"] for row in wrong["items"])
    assert_problem(client.get(f"{path}/../secrets"), 404)
    assert_problem(client.get(f"{path}/passwd"), 404, "report.html")


def test_orders_that_make_no_sense_are_refused(served: Served, client: httpx.Client) -> None:
    """Before anything is queued."""
    path = "/v1/models/tiny/evaluations"
    assert_problem(client.post(path, json={"version": 99}), 404, "unknown version")
    assert_problem(client.post(path, json={"version": 1, "split": "all"}), 400, "split")
    assert_problem(client.post(path, json={}), 400, "version")
    assert_problem(client.post(path, content=b"\xff"), 400)
    assert_problem(client.get("/v1/evaluations/nope"), 404)
    with served.client("predict") as reader:
        assert_problem(reader.post(path, json={"version": 1}), 403)
