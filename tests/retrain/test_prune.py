"""A pruned copy: made from the champion's own weights, trained a little, measured, and judged like every other copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlmodel import select

from retrain import compress, datasets, prune, speed, train
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol import registry, versions
from sutdol.context import Context
from sutdol.errors import ConflictError
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.tables import Decision, Job
from sutdol.types import InputSpec, Label, Manifest

MANIFEST = Manifest(
    "classify", ["a", "b"], InputSpec((32, 32)), "timm", files={"model.onnx": "x", "weights.safetensors": "x"}
)


def photo(i: int) -> bytes:
    rgb = np.random.default_rng(i).integers(0, 90, (40, 40, 3), np.uint8)
    rgb[:, :, i % 2] += 120
    return encode_png(rgb)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_channels_go_the_rest_learns_on_and_the_gate_decides(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both shares stand in the record; the copy serves without weights, so nothing is trained from it."""
    monkeypatch.setattr(speed, "measure", lambda *_, **__: speed.SpeedUp(2.0, 1.8, 2.2, 2.0, 1.0, 2))
    params = {"epochs": 3, "warm_epochs": 2}
    with context.database.begin() as session:
        registry.create_model(session, "pair", task="classify", classes=[], family="timm", params=params)
    records = [Record(f"{i}.png", Label(classes=["ab"[i % 2]]), data=photo(i)) for i in range(60)]
    datasets.import_records(context, "pair", records, ratios=(0.4, 0.2, 0.4))
    with context.database.begin() as session:
        train.start(session, "pair", cause="test")
    worker.run_pending(context, {"train": HANDLERS["train"]})
    with context.database.begin() as session:
        job_id = compress.start(session, "pair", "prune")
    worker.run_pending(context, {"retrain.compress": HANDLERS["retrain.compress"]})
    with context.database.read() as session:
        job = session.get_one(Job, job_id)
        assert job.state == "done", job.error
        decision = session.exec(select(Decision).where(Decision.candidate == 2, Decision.kind == "gate")).one()
        found = versions.lineage(session, "pair", 2)
        sizes = [registry.get_version(session, "pair", n).size_bytes for n in (1, 2)]
    assert [v["name"] for v in decision.record["variants"]] == ["25% of the channels", "50% of the channels"]
    assert all(v["score"] is not None and v["champion_score"] is not None for v in decision.record["variants"])
    assert (decision.verdict, decision.alpha, decision.champion) == ("promote", None, 1), decision.text
    assert "2.00 times as fast [1.80, 2.20]" in decision.text
    assert sizes[1] < 0.75 * sizes[0]
    assert (found.parents, found.provenance["compressed"].split(",")[0]) == ([1], "prune")
    assert not context.store.has("models/pair/2/weights.safetensors")
    assert not list((context.settings.home / "prunings").iterdir())
    with context.database.begin() as session, pytest.raises(ConflictError, match="is a compressed copy"):
        compress.start(session, "pair", "prune")


@pytest.mark.parametrize(
    ("change", "missing", "told"),
    [
        ({}, "", None),
        ({"files": {"model.onnx": "x"}, "provenance": {"adopted": "today"}}, "", "was adopted from ONNX"),
        ({"files": {"model.onnx": "x"}, "provenance": {"compressed": "int8"}}, "", "is a compressed copy"),
        ({"family": "somebody's"}, "", 'family "somebody\'s" is not known'),
        ({}, "timm", "timm is not installed here"),
        ({}, "torch_pruning", r"pip install 'sutdol\[prune\]'"),
    ],
)
def test_what_cannot_be_pruned_is_told_why(
    change: dict[str, Any], missing: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody waits for it."""
    import importlib.util

    import msgspec

    from retrain import networks

    def there(name: str) -> object:
        return None if name == missing else importlib.util.find_spec(name)

    monkeypatch.setattr(prune, "find_spec", there)
    monkeypatch.setattr(networks, "find_spec", there)
    reason = prune.unavailable(msgspec.structs.replace(MANIFEST, **change))
    if told is None:
        assert reason is None
    else:
        with pytest.raises(AssertionError, match=told):
            raise AssertionError(reason)
