"""Which candidates are queued, and that chance is never overruled."""

from __future__ import annotations

import numpy as np
import pytest
from bridge_rows import add_model, add_sample, add_task, add_tasks, picture
from sqlmodel import select

from labeling_bridge.jobs import HANDLERS
from labeling_bridge.window import room_for_others
from sutdol import jobs
from sutdol.context import Context, open_context
from sutdol.jobs.worker import run_pending
from sutdol.settings import load
from sutdol.tables import Feedback, Job, LabelTask, PredictionRow, StudioProject, now
from tests import tiny_models
from tests.studio_fixture import free_port


def run_window(context: Context) -> None:
    with context.database.begin() as session:
        jobs.send(session, "bridge.window", {})
    run_pending(context, {"bridge.window": HANDLERS["bridge.window"]})


def states(context: Context, arm: str) -> list[str]:
    with context.database.read() as session:
        return sorted(session.exec(select(LabelTask.state).where(LabelTask.arm == arm)))


@pytest.fixture
def small(tmp_path):
    """A budget of ten labels a day, half of it for `drawn`."""
    opened = open_context(load(home=tmp_path / "home", labels_per_day=10, max_open_tasks=8))
    yield opened
    opened.database.close()


def test_drawn_samples_are_never_ranked_out(small):
    """Their budget acted before the draw; leaving some out afterwards would bias the live accuracy."""
    add_model(small, "digits")
    add_tasks(small, "digits", 30)
    add_tasks(small, "digits", 20, first_seed=100, arm="unfamiliar", ood_score=3.0)
    run_window(small)
    assert states(small, "drawn") == ["queued"] * 30
    assert states(small, "unfamiliar") == ["candidate"] * 20


def test_other_arms_share_what_is_left_of_the_budget(small):
    """Labelers' time is what all this saves."""
    add_model(small, "digits")
    for i in range(12):
        add_task(small, "digits", f"s{i}", arm="unfamiliar", ood_score=float(i))
    run_window(small)
    with small.database.read() as session:
        queued = session.exec(select(LabelTask).where(LabelTask.state == "queued")).all()
    assert {t.sample_id for t in queued} == {"s11", "s10", "s9", "s8", "s7"}
    run_window(small)
    assert states(small, "unfamiliar").count("queued") == 5


def test_what_is_queued_is_pushed_once(small):
    """Two windows in a row must not send two writers."""
    add_model(small, "digits")
    add_tasks(small, "digits", 2)
    run_window(small)
    run_window(small)
    with small.database.read() as session:
        pushes = session.exec(select(Job).where(Job.kind == "bridge.push")).all()
    assert [p.payload for p in pushes] == [{"model": "digits"}]


def test_nothing_is_sent_while_a_batch_is_in_quarantine(small):
    """Pushing again too early makes duplicates."""
    add_model(small, "digits")
    add_task(small, "digits", "s", state="queued", queued_at=now(), not_before=now() + 1000)
    run_window(small)
    with small.database.read() as session:
        assert session.exec(select(Job).where(Job.kind == "bridge.push")).all() == []


@pytest.mark.parametrize(
    ("open_tasks", "queued_today", "others_today", "expected"),
    [(0, 0, 0, 5), (0, 5, 5, 0), (0, 8, 2, 2), (7, 0, 0, 1), (9, 0, 0, 0), (0, 20, 0, 0)],
)
def test_room_is_the_tightest_of_three_limits(small, open_tasks, queued_today, others_today, expected):
    """The day's budget, the arm's share of it, and what labelers have not answered yet."""
    found = room_for_others(small.settings, open_tasks=open_tasks, queued_today=queued_today, others_today=others_today)
    assert found == expected


def test_with_nothing_to_push_label_studio_is_not_asked(tmp_path):
    """These jobs run every few seconds, for ever; here nobody answers, so a single request would fail them."""
    context = open_context(load(home=tmp_path / "home", label_studio_url=f"http://127.0.0.1:{free_port()}"))
    add_model(context, "digits")
    add_task(context, "digits", "waits", state="queued", queued_at=now(), not_before=now() + 1000)
    add_task(context, "digits", "open", state="in_studio", studio_task_id=1)
    with context.database.begin() as session:
        session.add(StudioProject(model="digits", project_id=7, label_config=""))
        ids = [
            jobs.send(session, kind, payload)
            for kind in ("bridge.window", "bridge.push")
            for payload in ({}, {"model": "digits"})
        ]
    run_pending(context, {kind: HANDLERS[kind] for kind in ("bridge.window", "bridge.push")})
    with context.database.read() as session:
        assert [session.get_one(Job, job_id).state for job_id in ids] == ["done"] * 4
    context.database.close()


def log(context: Context, sample_id: str, *, fingerprint: str | None = None, label: str = "a") -> str:
    """A row of the prediction log; its id."""
    with context.database.begin() as session:
        row = PredictionRow(
            id=f"p-{sample_id[:20]}",
            at=now(),
            model="digits",
            version=1,
            sample_id=sample_id,
            width_px=32,
            height_px=24,
            answer={"classes": [{"label": label, "index": 0, "confidence": 0.9}], "boxes": []},
            confidence=0.9,
            raw_confidence=0.9,
            margin=0.8,
            inclusion_probability=0.1,
            arms=[],
            duration_ms=1.0,
            fingerprint=fingerprint,
        )
        session.add(row)
        return row.id


def test_a_picture_that_is_shown_already_is_merged_and_comes_back(small):
    """Nobody labels one picture twice, and none is forgotten when the other one brings no label."""
    add_model(small, "digits")
    first, again, other = ("00ff00ff00ff00ff", "00ff00ff00ff00fe", "0123456789abcdef")
    kept = add_task(
        small, "digits", "s0", arm="unfamiliar", state="in_studio", prediction_id=log(small, "s0", fingerprint=first)
    )
    twin = add_task(small, "digits", "s1", arm="unfamiliar", prediction_id=log(small, "s1", fingerprint=again))
    add_task(small, "digits", "s2", arm="unfamiliar", prediction_id=log(small, "s2", fingerprint=other))
    add_task(small, "digits", "s3", arm="drawn", prediction_id=log(small, "s3", fingerprint=first))
    run_window(small)
    assert states(small, "unfamiliar") == ["in_studio", "merged", "queued"]
    assert states(small, "drawn") == ["queued"]
    with small.database.begin() as session:
        merged = session.get_one(LabelTask, twin)
        assert merged.merged_into in (kept, session.exec(select(LabelTask.id).where(LabelTask.sample_id == "s3")).one())
        merged.merged_into = kept
        session.get_one(LabelTask, kept).state = "withdrawn"
        session.exec(select(LabelTask).where(LabelTask.sample_id == "s3")).one().state = "withdrawn"
    run_window(small)
    with small.database.read() as session:
        assert session.get_one(LabelTask, twin).state == "queued"
        assert session.get_one(LabelTask, twin).merged_into is None


def test_a_caller_who_says_otherwise_is_a_reason_to_ask(small):
    """Only of kept images, and never twice; a caller who agrees is none."""
    add_model(small, "digits")
    wrong, right = (add_sample(small, picture(seed)) for seed in (1, 2))
    for sample_id in (wrong, right, "not-kept"):
        log(small, sample_id)
    with small.database.begin() as session:
        for sample_id, said in ((wrong, "b"), (right, "a"), ("not-kept", "b")):
            session.add(Feedback(prediction_id=f"p-{sample_id[:20]}", value={"classes": [said], "boxes": []}))
    run_window(small)
    run_window(small)
    with small.database.read() as session:
        tasks = session.exec(select(LabelTask)).all()
    assert [(t.sample_id, t.arm, t.state) for t in tasks] == [(wrong, "disagree", "queued")]
    assert "caller says otherwise: b" in tasks[0].reason


def test_candidates_are_ranked_as_the_champion_sees_them(small):
    """A version that learned something else would otherwise go on asking yesterday's questions."""
    version = tiny_models.classifier_bundle(small, "tiny")
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[:, :, 0] = 200
    clear = add_sample(small, rgb)
    doubtful = add_sample(small, np.full((32, 32, 3), 128, np.uint8))
    for sample_id in (clear, doubtful):
        add_task(small, "tiny", sample_id, arm="diverse", version=version - 1, uncertainty=0.5)
    add_task(small, "tiny", "image-is-gone", arm="diverse", version=version - 1)
    run_window(small)
    with small.database.read() as session:
        tasks = {t.sample_id: t for t in session.exec(select(LabelTask)).all()}
    assert tasks[clear].state == "withdrawn"
    assert (tasks[doubtful].state, tasks[doubtful].version) == ("queued", version)
    assert tasks[doubtful].scores is not None
    assert tasks[doubtful].features is not None
    assert tasks["image-is-gone"].version == version - 1
