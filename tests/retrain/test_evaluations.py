"""The evaluation job and its report: from labelled images to files that can be mailed, by job, command and route."""

from __future__ import annotations

import io
import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import select

from retrain import datasets, evaluations
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol import cli
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, NotFoundError
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.tables import Evaluation, Job, ModelVersion
from sutdol.types import Label
from tests.tiny_models import CLASSES, classifier_bundle, classifier_onnx


@pytest.fixture
def judged(context: Context) -> Context:
    """`tiny` with 60 labelled images of which every fifth is labelled wrongly, and a second version that is blind to blue."""
    classifier_bundle(context)
    classifier_bundle(context, onnx_bytes=classifier_onnx(sharpness=0.01), promote=False)
    rng, records = np.random.default_rng(0), []
    for i in range(60):
        rgb = rng.integers(0, 40, (40, 40, 3), np.uint8)
        rgb[:, :, i % 3] += 150
        name = CLASSES[(i + (i % 5 == 0)) % 3]
        records.append(Record(f"{i}.png", Label(classes=[name]), data=encode_png(rgb)))
    datasets.import_records(context, "tiny", records, ratios=(0.2, 0.1, 0.7))
    return context


def run(context: Context, **order: object) -> str:
    with context.database.begin() as session:
        job_id = evaluations.start(session, "tiny", 2, **order)  # type: ignore[arg-type]
    worker.run_pending(context, {"retrain.evaluate": HANDLERS["retrain.evaluate"]})
    return job_id


class _Checker(HTMLParser):
    """Every tag closed, nothing loaded, nothing run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in attrs}
        if tag not in ("meta", "br", "line", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect", "polyline"):
            assert self.open.pop() == tag


def test_a_report_is_whole_self_contained_and_comparable(judged: Context) -> None:
    """It is mailed to people who have no access here."""
    key = run(judged, against=1)
    with judged.database.read() as session:
        row = session.get_one(Evaluation, key)
        assert session.get_one(Job, key).state == "done"
    assert (row.version, row.against, row.split, row.report) == (2, 1, "test", True)
    shown = json.loads(judged.store.get(f"evaluations/{key}/report.json"))
    found, compared = shown["analysis"], shown["comparison"]
    assert found["n"] == compared["n"] == row.metrics["n"] > 30
    assert found["headline"]["accuracy"]["value"] == row.metrics["accuracy"]
    assert sum(compared[k] for k in ("both_right", "both_wrong", "fixed", "broken")) == found["n"]
    page = judged.store.get(f"evaluations/{key}/report.html").decode()
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.seen
    assert {"svg", "table"} <= checker.seen
    assert not re.search(r"https?://", page)
    with zipfile.ZipFile(io.BytesIO(judged.store.get(f"evaluations/{key}/report.zip"))) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            "report.json", "report.html", "items.jsonl", "comparison.jsonl", "per_class.csv", "confusion.csv",
        }  # fmt: skip
        lines = archive.read("comparison.jsonl").splitlines()
    assert len(lines) == found["n"]


def test_class_names_are_text_in_every_file() -> None:
    """A class called like a tag or a formula is a prank that must not work."""
    from retrain import analysis, metrics, reports
    from retrain.evaluate import Evaluated
    from retrain.metrics import Outcome
    from sutdol.tables import DatasetItem

    names = ["<script>alert(1)</script>", "=HYPERLINK(1)"]
    outcomes = [Outcome("a", False, [names[0]], [names[1]], 0.9, scores=[(names[1], 0.9)])]
    item = DatasetItem(
        dataset_version_id="v", sample_id="a", split="test", value={"classes": [names[0]]}, source="imported"
    )
    found = analysis.analyse(
        Evaluated("classify", names, 0.0, outcomes, metrics.classification(outcomes, names)), [item]
    )
    page = reports.to_html({"title": names[0], "made_at": 0.0, "analysis": found})
    assert "<script>" not in page
    with zipfile.ZipFile(io.BytesIO(reports.to_zip({}, found))) as archive:
        assert "\n=" not in archive.read("per_class.csv").decode()


def test_an_evaluation_that_cannot_be_is_refused_before_it_is_queued(judged: Context) -> None:
    """The person who asked is still there."""
    with judged.database.begin() as session:
        with pytest.raises(NotFoundError, match="unknown version"):
            evaluations.start(session, "tiny", 9)
        with pytest.raises(InputError, match="split 'all'"):
            evaluations.start(session, "tiny", 1, split="all")
        with pytest.raises(NotFoundError, match="dataset version"):
            evaluations.start(session, "tiny", 1, dataset_version_id="nope")
        session.get_one(ModelVersion, ("tiny", 2)).state = "deleted"
        session.flush()
        with pytest.raises(ConflictError, match="deleted"):
            evaluations.start(session, "tiny", 1, against=2)
    with judged.database.read() as session:
        assert session.exec(select(Job).where(Job.kind == "retrain.evaluate")).all() == []


def test_a_second_attempt_replaces_what_the_first_left(judged: Context) -> None:
    """A worker that was killed while it wrote leaves half a report."""
    with judged.database.begin() as session:
        key = evaluations.start(session, "tiny", 2)
    judged.store.put(f"evaluations/{key}/report.html", b"half")
    judged.store.put(f"evaluations/{key}.jsonl", b"half")
    worker.run_pending(judged, {"retrain.evaluate": HANDLERS["retrain.evaluate"]})
    assert judged.store.get(f"evaluations/{key}/report.html").startswith(b"<!doctype html>")
    assert judged.store.get(f"evaluations/{key}.jsonl").startswith(b"{")


def test_the_command_writes_the_report_into_a_folder(
    judged: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickest way to know what one deploys."""
    monkeypatch.setenv("SUTDOL_HOME", str(judged.settings.home))
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "tiny@1", "--against", "2", "--out", str(tmp_path / "out")])
    assert not ended.value.code
    assert "accuracy" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.json", "report.html", "report.zip"}
