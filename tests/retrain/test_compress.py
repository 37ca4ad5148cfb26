"""A faster copy of the champion: all variants measured, the gate asked, and nothing promoted that lost accuracy or is slow."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from sqlmodel import select

from retrain import compress, datasets, gate, quantise, speed
from retrain.evaluate import Evaluated
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol import registry, versions
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, NotFoundError
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.predictor import Predictor
from sutdol.tables import Decision, Evaluation, Job
from sutdol.types import Label
from tests.small_networks import convolutional_onnx
from tests.tiny_models import CLASSES, classifier_bundle


def photo(i: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(i)
    rgb = rng.integers(0, 90, (40, 40, 3), np.uint8)
    rgb[:, :, i % 3] += 100
    return rgb


@pytest.fixture
def champion(context: Context) -> Context:
    """A convolutional champion that knows its colours, and 120 labelled images."""
    classifier_bundle(context, onnx_bytes=convolutional_onnx(), ood=False)
    records = [Record(f"{i}.png", Label(classes=[CLASSES[i % 3]]), data=encode_png(photo(i))) for i in range(120)]
    datasets.import_records(context, "tiny", records, ratios=(0.4, 0.2, 0.4))
    return context


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BLOCK_S", 0.02)


def run(context: Context, how: str, **options: Any) -> Job:
    with context.database.begin() as session:
        job_id = compress.start(session, "tiny", how, **options)
    worker.run_pending(context, {"retrain.compress": HANDLERS["retrain.compress"]})
    with context.database.read() as session:
        return session.get_one(Job, job_id)


def last_gate(context: Context) -> Decision:
    with context.database.read() as session:
        return session.exec(select(Decision).where(Decision.kind == "gate")).all()[-1]


def test_every_variant_is_in_the_record_and_the_copy_is_a_version(
    champion: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted or refused: whoever reads it can check all three."""
    monkeypatch.setattr(speed, "measure", lambda *_, **__: speed.SpeedUp(2.0, 1.8, 2.2, 2.0, 1.0, 2))
    job = run(champion, "int8")
    assert job.state == "done", job.error
    decision = last_gate(champion)
    assert [v["name"] for v in decision.record["variants"]] == ["all", "conv", "sensitive"]
    assert all(v["score"] >= 0.95 and v["speed_up"]["ratio"] == 2.0 for v in decision.record["variants"])
    assert (decision.verdict, decision.alpha, decision.candidate, decision.champion) == ("promote", None, 2, 1)
    assert "2.00 times as fast [1.80, 2.20]" in decision.text
    with champion.database.read() as session:
        assert registry.alias(session, "tiny", "champion") == 2
        found = versions.lineage(session, "tiny", 2)
        judged = session.exec(select(Evaluation).where(Evaluation.version == 2)).one()
    assert found.parents == [1]
    assert found.provenance["compressed"].startswith("int8")
    assert judged.against == 1
    assert champion.store.has(f"evaluations/{judged.id}/report.html")
    copy = Predictor.open(champion.store, "tiny", 2)
    copy.check_golden()
    nodes = onnx.load_model_from_string(champion.store.get("models/tiny/2/model.onnx")).graph.node
    assert any(node.op_type == "QuantizeLinear" for node in nodes)
    assert [copy.predict_rgb(photo(i)).classes[0].label for i in range(6)] == [CLASSES[i % 3] for i in range(6)]


def test_a_copy_that_is_not_faster_is_refused_with_its_figures(champion: Context) -> None:
    """Half precision, asked for ten times the speed: measured for real, and said."""
    job = run(champion, "fp16", min_speed_up=10.0)
    assert job.state == "done", job.error
    decision = last_gate(champion)
    assert decision.verdict == "refuse"
    assert "asked for 10.00" in decision.text
    assert decision.record["variants"][0]["speed_up"]["ratio"] < 10
    with champion.database.read() as session:
        assert registry.get_version(session, "tiny", 2).state == "refused"
        assert registry.alias(session, "tiny", "champion") == 1


def test_a_faster_copy_that_lost_accuracy_is_refused(champion: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed buys nothing back, also on a test split too small for significance."""
    monkeypatch.setattr(speed, "measure", lambda *_, **__: speed.SpeedUp(3.0, 2.9, 3.1, 3.0, 1.0, 2))
    blind = convolutional_onnx(seed=1)
    model = onnx.load_model_from_string(blind)
    model.graph.initializer[-2].raw_data = np.random.default_rng(0).normal(0, 1, (24, 3)).astype(np.float32).tobytes()
    monkeypatch.setitem(
        quantise.VARIANTS, "int8", lambda data, images: iter([("all", bytes(model.SerializeToString()))])
    )
    run(champion, "int8")
    decision = last_gate(champion)
    assert decision.verdict == "refuse"
    assert "NO  overall" in decision.text


def test_the_layers_that_lose_most_are_left_alone() -> None:
    """The first, those before the output, and the noisiest."""
    data = convolutional_onnx(layers=8)
    images = [np.random.default_rng(i).random((3, 32, 32)).astype(np.float32) for i in range(12)]
    prepared = quantise._prepared(data)
    names = [n.name for n in onnx.load_model_from_string(prepared).graph.node if n.op_type == "Conv"]
    left = quantise.sensitive_layers(prepared, quantise._quantised(prepared, images, {}), images)
    assert {names[0], names[-1]} <= set(left)
    assert 2 <= len(left) < len(names)
    assert quantise.sensitive_layers(convolutional_onnx(layers=2), data, images) == []


def test_what_comes_behind_the_last_layer_keeps_its_numbers() -> None:
    """Boxes of hundreds of pixels beside chances below one: in eight bits the chances would all be zero."""
    model = onnx.load_model_from_string(convolutional_onnx())
    assert quantise.nodes_behind_the_layers(convolutional_onnx()) == []
    model.graph.node[-1].output[0] = "raw"
    tiny = onnx.numpy_helper.from_array(np.ones((1, 3), np.float32).T.copy(), "tiny")
    model.graph.initializer.append(tiny)
    model.graph.node.extend(
        [
            onnx.helper.make_node("Sigmoid", ["raw"], ["chances"], "closing"),
            onnx.helper.make_node("MatMul", ["chances", "tiny"], ["mixed"], "arithmetic"),
            onnx.helper.make_node("Concat", ["mixed", "raw"], ["scores"], "together", axis=1),
        ]
    )
    behind = quantise.nodes_behind_the_layers(bytes(model.SerializeToString()))
    assert sorted(behind) == ["arithmetic", "closing", "together"]


@pytest.mark.parametrize(
    ("how", "options", "error"),
    [
        ("int4", {}, NotFoundError),
        ("int8", {"min_speed_up": 0.5}, InputError),
        ("int8", {"min_speed_up": 99.0}, InputError),
    ],
)
def test_what_cannot_be_asked_for_is_refused(champion: Context, how: str, options: Any, error: type[Exception]) -> None:
    """Before anything is queued."""
    with pytest.raises(error), champion.database.begin() as session:
        compress.start(session, "tiny", how, **options)


def test_a_model_without_champion_has_nothing_to_compress(context: Context) -> None:
    """And one that is being compressed is not compressed twice."""
    classifier_bundle(context, promote=False)
    with context.database.begin() as session:
        with pytest.raises(ConflictError, match="no champion"):
            compress.start(session, "tiny", "int8")
        registry.promote(session, "tiny", 1, who="t", text="x")
        compress.start(session, "tiny", "int8")
        with pytest.raises(ConflictError, match="already"):
            compress.start(session, "tiny", "int8")


def test_a_speed_claim_is_judged_by_its_lower_end() -> None:
    """A noisy machine must not promote by luck; no gain is asked for, and no alpha is spent."""
    from retrain.metrics import Outcome, classification
    from sutdol.tables import DatasetItem

    outcomes = [Outcome(str(i), True, ["a"], ["a"], 0.9) for i in range(50)]
    judged = Evaluated("classify", ["a"], 0.0, outcomes, classification(outcomes, ["a"]))
    items = [
        DatasetItem(dataset_version_id="v", sample_id=str(i), split="test", value={"classes": ["a"]}, source="imported")
        for i in range(50)
    ]

    def verdict(low: float) -> gate.Verdict:
        faster = gate.Faster(1.6, low, 1.9, 1.25)
        return gate.judge("classify", ["a"], judged, judged, items, recent=set(), looks=0, faster=faster)

    assert (verdict(1.3).verdict, verdict(1.3).alpha) == ("promote", None)
    assert verdict(1.2).verdict == "refuse"
    assert "asked for 1.25" in verdict(1.2).text


def test_a_speed_up_lies_in_its_interval(champion: Context) -> None:
    """However noisy the machine; what it is worth is printed by `tests.benchmarks.export`."""
    predictor = Predictor.open(champion.store, "tiny", 1)
    images = [encode_png(photo(i)) for i in range(6)]
    found = speed.measure(predictor, predictor, images, pairs=12, block_s=0.03, threads=2)
    assert 0 < found.low <= found.ratio <= found.high
    assert found.champion_ms > 0
