"""Which candidates are queued, and that chance is never overruled."""

from __future__ import annotations

import pytest
from bridge_rows import add_model, add_task, add_tasks
from sqlmodel import select

from labeling_bridge.jobs import HANDLERS
from labeling_bridge.window import room_for_others
from sutdol import jobs
from sutdol.context import Context, open_context
from sutdol.jobs.worker import run_pending
from sutdol.settings import load
from sutdol.tables import Job, LabelTask, StudioProject, now
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
