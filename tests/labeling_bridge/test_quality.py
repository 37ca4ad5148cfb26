"""The figures about labeling, from small sets that can be counted by hand."""

from __future__ import annotations

import pytest
from bridge_rows import add_model, add_sample, picture
from sqlmodel import select

from labeling_bridge.quality import agreement, anchoring, read_pairs, report_of, share
from sutdol.tables import Annotation, LabelTask

MODEL_SAYS = {"classes": [{"label": "a", "index": 0, "confidence": 0.6}], "boxes": []}


def pair(number: int, who: int, name: str, *, task: int | None = None, origin: str = "manual", **more: object):
    """An answer `name` of person `who` to task `task` (its own when none is given), whose model said `a`."""
    wanted = {"blind": False, "arm": "drawn", "truth": None} | {
        k: v for k, v in more.items() if k in ("blind", "truth")
    }
    if wanted["truth"] is not None:
        wanted["arm"] = "gold"
    task_id = str(task if task is not None else number)
    row = Annotation(
        project_id=1,
        annotation_id=number,
        updated_at=f"2026-01-01T00:00:{number:02d}Z",
        label_task_id=task_id,
        studio_task_id=1,
        value={"classes": [name], "boxes": []},
        state=str(more.get("state", "valid")),
        annotator=who,
        origins=[origin],
        lead_time_s=float(number),
    )
    label_task = LabelTask(
        id=task_id,
        model="m",
        sample_id=task_id,
        prediction_id="p",
        version=1,
        reason="",
        priority=0.5,
        uncertainty=0.5,
        answer=MODEL_SAYS,
        **wanted,
    )
    return row, label_task


def test_acceptance_counts_only_what_was_shown_and_left_untouched():
    """It is the model's quality as people see it; blind tasks have nothing to accept."""
    pairs = [
        pair(1, 1, "a", origin="prediction"),
        pair(2, 1, "a", origin="prediction"),
        pair(3, 1, "b", origin="prediction-changed"),
        pair(4, 1, "a", blind=True),
        pair(5, 1, "a", state="skipped"),
    ]
    report = report_of(pairs)
    assert (report["accepted"]["k"], report["accepted"]["n"]) == (2, 3)
    assert report["regions"] == {"prediction": 2, "prediction-changed": 1}
    assert (report["answers"], report["skips"]) == (4, 1)
    assert report["lead_time_s"] == {"shown": 2, "blind": 4}


def test_anchoring_is_the_difference_between_shown_and_blind():
    """People who follow the model whatever it says make its errors look right."""
    shown = [pair(i, 1, "a") for i in range(40)]
    blind = [pair(100 + i, 1, "a" if i % 2 else "b", blind=True) for i in range(40)]
    found = anchoring(shown, blind)
    assert found["difference"] == 0.5
    assert 0.3 < found["interval"][0] < 0.5 < found["interval"][1] < 0.7
    assert anchoring(shown, [])["difference"] is None


def test_agreement_counts_pairs_of_people_on_the_same_task():
    """One person who answers twice agrees with nobody but themselves."""
    pairs = [pair(1, 1, "a", task=1), pair(2, 2, "a", task=1), pair(3, 3, "b", task=1), pair(4, 1, "a", task=2)]
    found = agreement(pairs)
    assert (found["k"], found["n"]) == (1, 3)
    assert agreement(pairs, of=1)["n"] == 2


def test_a_labelers_gold_accuracy_has_an_interval():
    """Three right of four is no verdict on a person."""
    truth = {"classes": ["a"], "boxes": []}
    pairs = [pair(i, 7, "a" if i else "b", truth=truth) for i in range(4)]
    (labeler,) = report_of(pairs)["labelers"]
    assert (labeler["annotator"], labeler["gold"]["k"], labeler["gold"]["n"]) == (7, 3, 4)
    assert labeler["gold"]["interval"] == pytest.approx([0.30, 0.95], abs=0.01)


def test_nothing_counted_is_no_share():
    """Zero of zero is not zero percent."""
    assert share(0, 0)["share"] is None
    assert report_of([])["accepted"]["share"] is None


def test_only_the_newest_revision_counts_and_copies_do_not(context):
    """An edited answer is one answer, and a project made again doubles nobody's work."""
    add_model(context, "m")
    sample_id = add_sample(context, picture(1))
    row, task = pair(1, 1, "a")
    task.sample_id = sample_id
    edited = Annotation(**(row.model_dump() | {"updated_at": "2026-01-02", "value": {"classes": ["b"], "boxes": []}}))
    copy = Annotation(**(edited.model_dump() | {"project_id": 2, "restored": True}))
    with context.database.begin() as session:
        session.add_all([task, row, edited, copy])
    with context.database.read() as session:
        pairs, _ = read_pairs(session, "m")
        assert len(session.exec(select(Annotation)).all()) == 3
    assert [p[0].value["classes"] for p in pairs] == [["b"]]
