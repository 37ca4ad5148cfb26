"""What reading asks of Label Studio: little, and still everything comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bridge_rows import add_model, add_tasks
from bridge_steps import choose, label, push, row, run
from lossy_proxy import LossyProxy
from sqlmodel import select

from sutdol.context import Context
from sutdol.tables import LabelTask, now
from tests.studio_fixture import StudioServer


@pytest.fixture
def watched(studio_server, tmp_path) -> Iterator[tuple[Context, LossyProxy, str]]:
    """A bridge whose requests are seen, with five tasks in Label Studio and nothing left unread."""
    with LossyProxy(studio_server.port) as proxy:
        context = studio_server.open(tmp_path / "home", label_studio_url=proxy.url)
        slug = StudioServer.slug()
        add_model(context, slug)
        add_tasks(context, slug, 5)
        push(context, slug)
        yield context, proxy, slug
        context.database.close()


def whole(proxy: LossyProxy) -> list[str]:
    """The requests for whole tasks since the last look."""
    found = [r for r in proxy.requests if r.startswith("GET /api/tasks") and "fields=all" in r]
    proxy.requests.clear()
    return found


def ours(context: Context, slug: str) -> list[LabelTask]:
    with context.database.read() as session:
        return list(session.exec(select(LabelTask).where(LabelTask.model == slug)))


def test_a_poll_reads_whole_only_what_has_changed(watched, labeler, monkeypatch):
    """Reading hundreds of recent tasks whole, every few seconds, made the labelers wait."""
    monkeypatch.setattr("labeling_bridge.read.SETTLE_S", 0.0)
    context, proxy, slug = watched
    run(context, "bridge.read")
    run(context, "bridge.read")
    whole(proxy)
    assert run(context, "bridge.read") == {"labels": {slug: 0}}
    assert whole(proxy) == []
    edited, other = [t.sample_id for t in ours(context, slug)][:2]
    first = labeler.submit(row(context, slug, edited).studio_task_id, {"result": choose("a"), "lead_time": 1.0})
    assert run(context, "bridge.read") == {"labels": {slug: 1}}
    assert len(whole(proxy)) == 1
    run(context, "bridge.read")
    labeler.ask("PATCH", f"/api/annotations/{first}/", json={"result": choose("b")})
    labeler.submit(row(context, slug, other).studio_task_id, {"result": choose("c"), "lead_time": 1.0})
    assert run(context, "bridge.read") == {"labels": {slug: 2}}
    assert [label(context, slug, s).value["classes"] for s in (edited, other)] == [["b"], ["c"]]
    labeler.ask("DELETE", f"/api/annotations/{first}/")
    assert run(context, "bridge.read") == {"labels": {slug: 1}}
    assert label(context, slug, edited) is None


def test_tasks_that_were_only_just_pushed_are_not_read_whole(watched, labeler):
    """Reading two thousand of them, twice, took five minutes, and what people answered meanwhile waited as long."""
    context, proxy, slug = watched
    whole(proxy)
    assert run(context, "bridge.read") == {"labels": {slug: 0}}
    assert whole(proxy) == []
    sample_id = ours(context, slug)[0].sample_id
    labeler.submit(row(context, slug, sample_id).studio_task_id, {"result": choose("a"), "lead_time": 1.0})
    assert run(context, "bridge.read") == {"labels": {slug: 1}}
    assert label(context, slug, sample_id).value["classes"] == ["a"]


def test_a_task_read_while_its_answer_was_being_stored_is_read_again(watched, studio, labeler):
    """Label Studio stores answer and stamp one after the other; a reading in between has the stamp and not the answer."""
    context, _, slug = watched
    task = ours(context, slug)[0]
    labeler.submit(task.studio_task_id, {"result": choose("c"), "lead_time": 1.0})
    (now_there,) = studio.whole(task.project_id, [task.studio_task_id])
    with context.database.begin() as session:
        task.studio_seen, task.studio_seen_at = f"{task.studio_task_id} {now_there.updated_at}", now() - 1000
        session.add(task)
    assert run(context, "bridge.read") == {"labels": {slug: 1}}
    assert label(context, slug, task.sample_id).value["classes"] == ["c"]


def test_many_hints_are_read_with_one_request(watched, labeler):
    """One request for each answer slowed the labelers down."""
    context, proxy, slug = watched
    ids = [t.studio_task_id for t in ours(context, slug)]
    for task_id in ids:
        labeler.submit(task_id, {"result": choose("b"), "lead_time": 1.0})
    proxy.requests.clear()
    assert run(context, "bridge.read", model=slug, studio_task_ids=ids) == {"labels": {slug: 5}}
    assert len(proxy.requests) == 1, "the access token is kept between jobs"
