"""Trainings in the console: the form says what would be done, what it starts is what was typed, and runs stand side by side."""

from __future__ import annotations

import re

import numpy as np
from shared_server import Served
from visits import Visit, token

from retrain import datasets
from retrain.formats import Record
from retrain.jobs import HANDLERS
from serving.training import FORM, SWITCHES
from sutdol import registry
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.types import Label


def _model(served: Served, slug: str) -> None:
    with served.context.database.begin() as session:
        registry.create_model(
            session, slug, task="classify", classes=["cat", "dog"], family="timm", params={"epochs": 7}
        )


def test_the_form_shows_what_a_run_would_have(served: Served, visit: Visit) -> None:
    """Every field's grey value is the API's: the family's default, or the model's own."""
    _model(served, "formed")
    page = visit("admin").get("/console/training/new?model=formed").text
    with served.client() as api:
        families = api.get("/v1/models/formed/families").json()
    assert families[0]["name"] == "timm"
    assert families[0]["params"]["epochs"] == 7
    for name in FORM:
        found = re.search(rf'name="{name}" [^>]*placeholder="([^"]*)"', page)
        assert (found is not None) == (name in families[0]["params"]), name
        if found is not None:
            assert found[1] == str(families[0]["params"][name])
    for name in SWITCHES:
        assert f'name="{name}"' in page
    for preset in families[0]["presets"]:
        assert f'value="{preset}"' in page
    other = visit("admin").get("/console/training/new?model=formed&family=yolo").text
    assert '<input type="hidden" name="family" value="yolo">' in other


def test_what_is_typed_is_what_is_trained(served: Served, visit: Visit) -> None:
    """And nothing that was left empty; one who waits says so, and is stopped."""
    _model(served, "typed")
    admin = visit("admin")
    data = {"csrf": token(admin), "model": "typed", "preset": "fast", "epochs": "3", "lr": "0.01", "head_only": "on"}
    assert admin.post("/console/training", data=data | {"epochs": "three"}).status_code == 400
    begun = admin.post("/console/training", data=data | {"batch": "", "family": "yolo"})
    run_id = begun.headers["location"].rsplit("/", 1)[1]
    with served.client() as api:
        run = api.get(f"/v1/runs/{run_id}").json()
        expected = {"preset": "fast", "epochs": 3, "warm_epochs": 3, "lr": 0.01, "warm_lr": 0.01, "head_only": True}
        assert run["params"] == expected
        assert run["candidates"][0]["family"] == "yolo"
        assert "It waits for a worker" in admin.get(f"/console/training/{run_id}").text
        again = admin.post("/console/training", data=data)
        assert (again.status_code, "being trained already" in again.text) == (409, True)
        assert admin.post(f"/console/training/{run_id}/cancel", data={"csrf": token(admin)}).status_code == 303
        assert api.get(f"/v1/runs/{run_id}").json()["state"] == "cancelled"


def test_augmentation_is_looked_at_before_it_is_used(served: Served, visit: Visit) -> None:
    """The sheet appears, and the form still holds what was typed."""
    _model(served, "sheeted")
    rng = np.random.default_rng(0)
    records = [
        Record(f"{n}.png", Label(classes=["cat"]), data=encode_png(rng.integers(0, 255, (24, 24, 3), np.uint8)))
        for n in range(8)
    ]
    datasets.import_records(served.context, "sheeted", records, ratios=(0.8, 0.1, 0.1))
    admin = visit("admin")
    data = {"csrf": token(admin), "model": "sheeted", "rotate_deg": "30", "head_only": "on"}
    path = admin.post("/console/training/preview", data=data).headers["location"]
    waiting = admin.get(path).text
    assert "A worker makes the sheet" in waiting
    worker.run_pending(served.context, {"retrain.preview": HANDLERS["retrain.preview"]})
    done = admin.get(path).text
    assert f'src="{path}/sheet.jpg"' in done
    assert 'value="30"' in done
    assert 'name="head_only" checked' in done
    assert admin.get(f"{path}/sheet.jpg").content[:2] == b"\xff\xd8"


def test_runs_stand_side_by_side(visit: Visit) -> None:
    """One chart a number with a line per run, and the numbers as a table."""
    client = visit("label")
    page = client.get("/console/training/compare?run=a-run&run=b-run").text
    assert page.count("<figure") == 2  # val/loss and val/accuracy
    assert "0.7" in page
    assert "0.8" in page
    assert client.get("/console/training/compare?run=a-run").status_code == 400
    assert client.get("/console/training/compare?run=a-run&run=nope").status_code == 404


def test_a_run_tells_how_it_uses_the_machine(visit: Visit) -> None:
    """Images a second, cores, memory; hints in words."""
    page = visit("label").get("/console/training/a-run").text
    for word in ("321", "images a second", "cores busy", "812.0 MB", "over-fitting"):
        assert word in page
