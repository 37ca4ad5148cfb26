"""The story that the console is for, in a real browser with a real training: start it, watch it, approve it, roll it back.

Every number on the pages is compared with what the API says.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page
from shared_server import Served, version_of

from retrain import datasets
from retrain.formats import Record
from retrain.jobs import HANDLERS
from serving.web import text
from sutdol.context import Context, open_context
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.settings import load
from sutdol.types import Label
from tests.tiny_models import CLASSES, classifier_bundle, classifier_onnx

pytestmark = pytest.mark.slow
EPOCHS = 6


def _worker(served: Served) -> Context:
    """A worker's view of the same installation, in which people have the last word."""
    opened = open_context(load(home=served.context.settings.home, promotion="manual"))
    return replace(opened, database=served.context.database)


def _model(served: Served, slug: str) -> None:
    """Version 1 takes every colour for another one; 90 labelled images say so."""
    classifier_bundle(served.context, slug, onnx_bytes=classifier_onnx(sharpness=-8.0), golden="none")
    rng, records = np.random.default_rng(0), []
    for n in range(90):
        rgb = rng.integers(0, 40, (24, 24, 3), np.uint8)
        rgb[:, :, n % 3] += 150
        records.append(Record(f"{n}.png", Label(classes=[CLASSES[n % 3]]), data=encode_png(rgb)))
    datasets.import_records(served.context, slug, records, ratios=(0.4, 0.2, 0.4))


def test_a_training_is_started_watched_approved_and_rolled_back(page: Page, served: Served) -> None:
    """Five minutes of somebody's day; and no number on the way is another one than the API's."""
    width = page.viewport_size["width"] if page.viewport_size else 0
    if width < 1000:
        pytest.skip("once, on the desk; the phone is tried page by page")
    slug = "story"
    _model(served, slug)
    with served.client() as api:
        page.goto(f"{served.server.url}/console/training")
        page.select_option("#model", slug)
        page.click("text=New training")
        page.fill("#epochs", str(EPOCHS))
        page.fill("#lr", "0.01")
        page.click("text=Start the training")
        page.wait_for_url("**/console/training/0*")
        run_id = page.url.rsplit("/", 1)[1]
        assert "It waits for a worker" in page.inner_text("main")

        working = threading.Thread(
            target=worker.run_pending, args=(_worker(served), {"train": HANDLERS["train"]}), daemon=True
        )
        working.start()
        page.wait_for_selector(f"text=/[1-9] \\/ {EPOCHS}/", timeout=120_000)  # an epoch is there, by itself
        page.wait_for_selector("text=Version", timeout=120_000)
        working.join(60)
        _compare_run(page, api, run_id)

        run = api.get(f"/v1/runs/{run_id}").json()
        version = run["version"]
        assert run["params"] == {"epochs": EPOCHS, "warm_epochs": EPOCHS, "lr": 0.01, "warm_lr": 0.01}
        page.click(f"text=v{version}")
        page.wait_for_url(f"**/models/{slug}/versions/{version}")
        _compare_version(page, api, slug, version)
        assert version_of(api, slug) == 1

        page.click("text=Approve")
        page.wait_for_url("**/promote")
        gate = api.get("/v1/decisions", params={"model": slug}).json()[0]
        assert (gate["kind"], gate["verdict"]) == ("gate", "approve")
        assert page.inner_text("pre").split() == gate["text"].split()
        page.click("button.main")
        page.wait_for_url(f"**/models/{slug}")
        assert version_of(api, slug) == version
        assert "waits for approval" not in page.locator(".notice").all_inner_texts()

        page.click("text=Roll back to v1")
        page.wait_for_url("**/rollback")
        page.click("button.main")
        page.wait_for_url(f"**/models/{slug}")
        assert version_of(api, slug) == 1

        page.goto(f"{served.server.url}/console/decisions?model={slug}")
        decided = api.get("/v1/decisions", params={"model": slug}).json()
        assert [d["kind"] for d in decided[:3]] == ["rollback", "promote", "gate"]
        shown = page.locator(".decisions summary").all_inner_texts()
        assert len(shown) == len(decided)
        for line, decision in zip(shown, decided, strict=True):
            assert f"{slug} v{decision['candidate']}" in line
            assert decision["text"].splitlines()[0] in line


def _compare_run(page: Page, api: httpx.Client, run_id: str) -> None:
    """Tiles and the tables behind the charts."""
    run = api.get(f"/v1/runs/{run_id}").json()
    page.goto(page.url)
    tiles = dict(
        zip(page.locator(".tile dt").all_inner_texts(), page.locator(".tile dd").all_inner_texts(), strict=True)
    )
    assert tiles["Epoch"].split("\n")[0].strip() == f"{run['epoch']} / {run['epochs']}"
    assert tiles["Version"] == f"v{run['version']}"
    curve = run["candidates"][0]["curve"]
    machine = curve[-1]["metrics"]
    assert tiles["Speed"].startswith(text.number(machine["machine/images_per_s"]))
    assert tiles["Processor"].startswith(text.number(machine["machine/cores"]))
    for step, seconds in run["timings"].items():
        assert tiles[step] == f"{text.number(seconds)} s"
    for table in page.locator("figure.chart table").all():
        head = table.locator("thead th").all_text_contents()
        rows = [row.locator("td").all_text_contents() for row in table.locator("tbody tr").all()]
        assert len(rows) == len(curve)
        for cells, point in zip(rows, curve, strict=True):
            expected = [f"{float(point['epoch']):.4g}", *(_four(point["metrics"].get(name)) for name in head[1:])]
            assert cells == expected


def _compare_version(page: Page, api: httpx.Client, slug: str, version: int) -> None:
    """Every measured number of the version."""
    info = next(v for v in api.get(f"/v1/models/{slug}/versions").json() if v["version"] == version)
    cells = {
        row.locator("th").inner_text(): row.locator("td").inner_text()
        for row in page.locator("section table tr").all()
        if row.locator("th").count() == 1 and row.locator("td").count() == 1
    }
    numbers = {name: value for name, value in info["metrics"].items() if isinstance(value, int | float)}
    assert len(numbers) >= 3
    for name, value in numbers.items():
        assert cells[name].removesuffix(" ms") == text.number(value), name
    assert cells["Size"] == text.size(info["size_bytes"])


def _four(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
