"""After a swap, against the real Label Studio: who is shown what, in which order, and what is asked no more."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
from bridge_rows import add_task
from bridge_steps import choose, forget_jobs, project, push, row, run, tasks, wait_until
from lossy_proxy import LossyProxy
from sqlmodel import select

from labeling_bridge.studio import VIEW_TITLE, Studio
from sutdol import images
from sutdol.context import Context
from sutdol.jobs import lease
from sutdol.tables import Job, LabelTask, Sample
from tests.studio_fixture import StudioServer
from tests.tiny_models import classifier_bundle, classifier_onnx, coloured_png

OLD = {"classes": [{"label": "red", "index": 0, "confidence": 0.5}], "boxes": []}


@dataclass
class Swapped:
    """A model whose champion is swapped from `old` to `new` by `swap`; the new one is sure of everything green."""

    context: Context
    slug: str
    old: int
    seeds: int = 0

    def add(self, **more: object) -> str:
        """A sample that waits for a label, scored by the old version; its id."""
        self.seeds += 1
        image = images.admit(coloured_png("green", seed=self.seeds))
        self.context.store.put(f"samples/{image.sample_id}", image.data)
        with self.context.database.begin() as session:
            session.add(Sample(id=image.sample_id, width_px=40, height_px=40, media_type="image/png", size_bytes=1))
        values = {"version": self.old, "answer": OLD, "priority": 0.5} | more
        add_task(self.context, self.slug, image.sample_id, **values)
        return image.sample_id

    def swap(self) -> int:
        new = classifier_bundle(self.context, self.slug, onnx_bytes=classifier_onnx(sharpness=20.0))
        forget_jobs(self.context)
        return new

    def row(self, sample_id: str) -> LabelTask:
        return row(self.context, self.slug, sample_id)

    def queue(self, *sample_ids: str) -> None:
        with self.context.database.begin() as session:
            for task in session.exec(select(LabelTask).where(LabelTask.sample_id.in_(sample_ids))):
                task.state = "queued"
                session.add(task)


@pytest.fixture
def model(bridge) -> Swapped:
    slug = StudioServer.slug()
    version = classifier_bundle(bridge, slug)
    forget_jobs(bridge)
    return Swapped(bridge, slug, version)


def tab(studio: Studio, project_id: int) -> list[str]:
    """Sample ids as our tab shows them."""
    views = studio.ask("GET", "/api/dm/views/", params={"project": project_id}).json()
    (view,) = [v["id"] for v in views if v["data"]["title"] == VIEW_TITLE]
    shown = studio.ask("GET", "/api/tasks", params={"project": project_id, "view": view}).json()["tasks"]
    return [t["data"]["sample_id"] for t in shown]


def test_open_tasks_are_scored_again_after_a_swap(bridge, model, studio, labeler):
    """People must see the new model's opinion, and not be asked what it is sure of now."""
    drawn, gold = model.add(), model.add(arm="gold")
    certain, blind, answered = model.add(arm="empty"), model.add(arm="empty", blind=True), model.add(arm="empty")
    push(bridge, model.slug)
    labeler.submit(model.row(answered).studio_task_id, {"result": choose("green"), "lead_time": 1.0})
    new = model.swap()
    assert run(bridge, "bridge.refresh", model=model.slug, version=new) == {"scored": 3, "withdrawn": 1}
    found = tasks(studio, bridge, model.slug)
    assert set(found) == {drawn, blind, gold, answered}
    assert model.row(certain).state == "withdrawn"
    mine = model.row(drawn)
    assert (mine.version, mine.answer["classes"][0]["label"]) == (new, "green")
    assert mine.priority == 0.5, "the order of `drawn` depends on time alone"
    assert model.row(gold).priority == 0.5, "a gold task that stood last would give itself away"
    shown = {p["model_version"]: p for p in found[drawn].predictions}
    name = f"{model.slug}-v{new}"
    assert shown[name]["result"][0]["value"]["choices"] == ["green"]
    assert shown[name]["score"] == pytest.approx(1 - mine.priority, abs=1e-5)
    assert [p["result"] for p in found[blind].predictions] == [[], []]
    project_id = project(bridge, model.slug).project_id
    assert studio.project(project_id)["model_version"] == name
    order = tab(studio, project_id)
    assert set(order) == {drawn, gold, blind}
    priorities = [round(model.row(s).priority, 6) for s in order]
    assert priorities == sorted(priorities, reverse=True)
    assert run(bridge, "bridge.refresh", model=model.slug, version=new) == {"scored": 0, "withdrawn": 0}
    assert "skipped" in run(bridge, "bridge.refresh", model=model.slug, version=model.old)


def test_a_refresh_costs_label_studio_a_handful_of_requests(studio_server, tmp_path, monkeypatch):
    """One request per task held the project for minutes, and no new question could be asked meanwhile."""
    with LossyProxy(studio_server.port) as proxy:
        context = studio_server.open(tmp_path / "home", label_studio_url=proxy.url)
        slug = StudioServer.slug()
        model = Swapped(context, slug, classifier_bundle(context, slug))
        forget_jobs(context)
        for i in range(40):
            model.add(arm="empty" if i % 2 else "drawn")
        push(context, slug)
        new = model.swap()
        proxy.requests.clear()
        assert run(context, "bridge.refresh", model=slug, version=new) == {"scored": 20, "withdrawn": 20}
        asked = [r.split("?")[0] for r in proxy.requests if "token" not in r]
        assert len(asked) == 4, asked
        context.database.close()


def test_an_interrupted_refresh_goes_on_without_doubling_predictions(bridge, model, studio):
    """A worker may die between Label Studio's answer and our commit."""
    first, second = model.add(), model.add()
    push(bridge, model.slug)
    new = model.swap()
    run(bridge, "bridge.refresh", model=model.slug, version=new)
    with bridge.database.begin() as session:
        for task in session.exec(select(LabelTask).where(LabelTask.model == model.slug)):
            task.version = model.old
            session.add(task)
    assert run(bridge, "bridge.refresh", model=model.slug, version=new) == {"scored": 2, "withdrawn": 0}
    found = tasks(studio, bridge, model.slug)
    assert [found[s].total_predictions for s in (first, second)] == [2, 2]


def test_new_questions_go_out_before_old_ones_are_scored_again(bridge, model, studio, labeler):
    """Labelers went on with yesterday's questions for minutes after a swap."""
    old = [model.add() for _ in range(3)]
    push(bridge, model.slug)
    new = model.swap()
    fresh = model.add(version=new, priority=0.9)
    model.queue(fresh)
    assert run(bridge, "bridge.refresh", model=model.slug, version=new) == {"scored": 3, "withdrawn": 0}
    assert [model.row(s).state for s in (fresh, *old)] == ["in_studio"] * 4
    assert model.row(fresh).pushed_at is not None
    assert labeler.next_task(project(bridge, model.slug).project_id)["data"]["sample_id"] == fresh


def test_a_task_pushed_after_a_swap_comes_first_with_its_pre_annotation(bridge, model, studio, labeler):
    """Label Studio hides predictions of other versions than the project's and hands such tasks out last."""
    for _ in range(3):
        model.add(priority=0.99)
    push(bridge, model.slug)
    new = model.swap()
    fresh = model.add(
        version=new, priority=0.2, answer={"classes": [{"label": "blue", "confidence": 0.7}], "boxes": []}
    )
    push(bridge, model.slug)
    shown = labeler.next_task(project(bridge, model.slug).project_id)
    assert shown["data"]["sample_id"] == fresh
    (prediction,) = shown["predictions"]
    assert prediction["model_version"] == f"{model.slug}-v{new}"
    assert prediction["result"][0]["value"]["choices"] == ["blue"]


def test_a_task_scored_before_the_swap_goes_out_with_the_champions_opinion(bridge, model, studio, labeler):
    """It would stand last and without a pre-annotation until the next refresh; and what is certain now is not asked."""
    new = model.swap()
    stale, certain = model.add(), model.add(arm="unfamiliar")
    assert push(bridge, model.slug) == 1
    assert (model.row(stale).version, model.row(stale).state) == (new, "in_studio")
    gone = model.row(certain)
    assert (gone.state, gone.queued_at, gone.studio_task_id) == ("withdrawn", None, None)
    shown = labeler.next_task(project(bridge, model.slug).project_id)
    assert [p["result"][0]["value"]["choices"] for p in shown["predictions"]] == [["green"]]


def test_a_refresh_waits_for_another_writer_without_new_jobs(bridge, model):
    """It came back every few seconds as a new row, and the job table grew."""
    sample_id = model.add()
    push(bridge, model.slug)
    new = model.swap()
    assert lease.acquire(bridge.database, f"studio:{model.slug}", "somebody", 100)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(run(bridge, "bridge.refresh", model=model.slug, version=new))
    )
    thread.start()

    def count(*states: str) -> int:
        with bridge.database.read() as session:
            statement = select(Job).where(Job.kind == "bridge.refresh", Job.state.in_(states))
            return len(session.exec(statement).all())

    wait_until(lambda: count("running") == 1)
    assert model.row(sample_id).version == model.old
    lease.release(bridge.database, f"studio:{model.slug}", "somebody")
    thread.join(60)
    assert results == [{"scored": 1, "withdrawn": 0}]
    assert count("queued", "running", "done") == 1


def test_an_answered_task_is_never_deleted(bridge, model, studio, labeler):
    """A label is worth more than a tidy list; and when all is answered the tab is empty, not broken."""
    answered, unanswered = model.add(), model.add()
    push(bridge, model.slug)
    project_id = project(bridge, model.slug).project_id
    ids = {s: model.row(s).studio_task_id for s in (answered, unanswered)}
    labeler.submit(ids[answered], {"result": choose("green"), "was_cancelled": True})
    assert studio.delete_unanswered(project_id, ids.values()) == {ids[unanswered]}
    assert [t.id for t in studio.whole(project_id, ids.values())] == [ids[answered]]
    labeler.submit(ids[answered], {"result": choose("green"), "lead_time": 1.0})
    assert tab(studio, project_id) == []


def test_the_tab_outlives_the_last_task(bridge, model, studio):
    """Label Studio deletes all tabs with a project's last task, and labelers would be back at the order of import."""
    first = model.add(arm="unfamiliar")
    push(bridge, model.slug)
    new = model.swap()
    assert run(bridge, "bridge.refresh", model=model.slug, version=new) == {"scored": 0, "withdrawn": 1}
    assert tasks(studio, bridge, model.slug) == {}
    assert model.row(first).state == "withdrawn"
    run(bridge, "bridge.sweep", model=model.slug)
    second = model.add(version=new)
    assert push(bridge, model.slug) == 1
    assert tab(studio, project(bridge, model.slug).project_id) == [second]
