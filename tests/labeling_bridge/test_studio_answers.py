"""What the bridge does with answers it cannot use, with several people, and with people it measures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bridge_rows import CLASSES, add_model, add_sample, add_task, add_tasks, picture
from bridge_steps import choose, forget_jobs, label, project, push, revisions, row, run, tasks
from sqlmodel import select

from labeling_bridge.studio import VIEW_TITLE, Studio
from sutdol.context import Context
from sutdol.tables import Event, LabelRow, LabelTask
from tests.studio_fixture import StudioServer


@pytest.fixture
def second(studio_server: StudioServer) -> Iterator[Studio]:
    with studio_server.annotator() as opened:
        yield opened


@pytest.fixture
def third(studio_server: StudioServer) -> Iterator[Studio]:
    with studio_server.annotator() as opened:
        yield opened


def tab(studio: Studio, context: Context, model: str) -> list[str]:
    """Sample ids as our tab shows them."""
    project_id = project(context, model).project_id
    views = studio.ask("GET", "/api/dm/views/", params={"project": project_id}).json()
    (view,) = [v["id"] for v in views if v["data"]["title"] == VIEW_TITLE]
    shown = studio.ask("GET", "/api/tasks", params={"project": project_id, "view": view}).json()["tasks"]
    return [t["data"]["sample_id"] for t in shown]


def settle(context: Context, model: str) -> None:
    """Read, ask again, read."""
    run(context, "bridge.read")
    run(context, "bridge.reask", model=model)
    run(context, "bridge.read")
    forget_jobs(context)


def test_a_conflict_is_put_before_a_third_person_and_settled(bridge, model, studio, labeler, second, third):
    """Two people's work is lost for as long as nobody decides between them."""
    contested, other = add_tasks(bridge, model, 2)
    push(bridge, model)
    task_id = row(bridge, model, contested).studio_task_id
    labeler.submit(task_id, {"result": choose("a"), "lead_time": 1.0})
    second.submit(task_id, {"result": choose("b"), "lead_time": 1.0})
    settle(bridge, model)
    assert (row(bridge, model, contested).state, row(bridge, model, contested).overlap) == ("conflict", 3)
    assert label(bridge, model, contested) is None
    assert tab(studio, bridge, model) == [contested, other]
    assert third.next_task(project(bridge, model).project_id)["data"]["sample_id"] == contested
    assert run(bridge, "bridge.reask", model=model) == {"asked": 0, "emptied": 0}, "once is enough"
    third.submit(task_id, {"result": choose("b"), "lead_time": 1.0})
    settle(bridge, model)
    assert row(bridge, model, contested).state == "annotated"
    assert label(bridge, model, contested).value["classes"] == ["b"]
    assert tab(studio, bridge, model) == [other]


def test_an_empty_choice_is_asked_again_and_takes_no_place_for_ever(bridge, model, studio, labeler):
    """A slip of the mouse blocked one of the open places until somebody noticed."""
    (sample_id,) = add_tasks(bridge, model, 1)
    push(bridge, model)
    labeler.submit(row(bridge, model, sample_id).studio_task_id, {"result": [], "lead_time": 1.0})
    settle(bridge, model)
    assert row(bridge, model, sample_id).state == "in_studio"
    assert [r.state for r in revisions(bridge, model, sample_id)] == ["empty", "deleted"]
    assert tasks(studio, bridge, model)[sample_id].annotations == []
    assert labeler.next_task(project(bridge, model).project_id)["data"]["sample_id"] == sample_id
    labeler.submit(row(bridge, model, sample_id).studio_task_id, {"result": choose("c"), "lead_time": 1.0})
    settle(bridge, model)
    assert label(bridge, model, sample_id).value["classes"] == ["c"]


def test_an_answer_outside_the_classes_is_reported_and_another_person_asked(bridge, model, labeler, second):
    """Somebody edited the labels in the interface; what they wrote must neither be trained on nor thrown away."""
    (sample_id,) = add_tasks(bridge, model, 1)
    push(bridge, model)
    task_id = row(bridge, model, sample_id).studio_task_id
    labeler.submit(task_id, {"result": choose("zebra"), "lead_time": 1.0})
    settle(bridge, model)
    assert (row(bridge, model, sample_id).state, row(bridge, model, sample_id).overlap) == ("conflict", 2)
    assert label(bridge, model, sample_id) is None
    with bridge.database.read() as session:
        (event,) = session.exec(select(Event).where(Event.kind == "bridge.unbelievable")).all()
    assert "'zebra'" in event.text
    assert second.next_task(project(bridge, model).project_id)["data"]["sample_id"] == sample_id
    second.submit(task_id, {"result": choose("a"), "lead_time": 1.0})
    settle(bridge, model)
    assert label(bridge, model, sample_id).value["classes"] == ["a"]


def test_what_everybody_skips_is_unlabelable_and_never_trained_on(bridge, model, labeler, second):
    """A black frame must not come back to the same people until they guess."""
    (sample_id,) = add_tasks(bridge, model, 1)
    push(bridge, model)
    task_id = row(bridge, model, sample_id).studio_task_id
    for person, state in ((labeler, "skipped"), (second, "unlabelable")):
        person.submit(task_id, {"result": choose("a"), "was_cancelled": True, "lead_time": 1.0})
        settle(bridge, model)
        assert row(bridge, model, sample_id).state == state
    assert label(bridge, model, sample_id) is None


def test_where_two_are_asked_one_answer_is_no_label_yet(studio_server, tmp_path, labeler, second):
    """`SUTDOL_ANNOTATORS_PER_TASK` buys certainty; a label used before the second look would not have it."""
    context = studio_server.open(tmp_path / "home", annotators_per_task=2)
    slug = StudioServer.slug()
    add_model(context, slug)
    (sample_id,) = add_tasks(context, slug, 1)
    push(context, slug)
    task_id = row(context, slug, sample_id).studio_task_id
    labeler.submit(task_id, {"result": choose("b"), "lead_time": 1.0})
    settle(context, slug)
    assert (row(context, slug, sample_id).state, label(context, slug, sample_id)) == ("in_studio", None)
    assert second.next_task(project(context, slug).project_id)["id"] == task_id
    second.submit(task_id, {"result": choose("b"), "lead_time": 1.0})
    settle(context, slug)
    assert label(context, slug, sample_id).value["classes"] == ["b"]
    context.database.close()


def test_gold_tasks_are_mixed_in_and_measure_people_without_making_labels(studio_server, tmp_path, studio, labeler):
    """People do not know which task measures them, and a wrong answer to one must not spoil a known label."""
    context = studio_server.open(tmp_path / "home", gold_share=0.25)
    slug = StudioServer.slug()
    add_model(context, slug)
    known = [add_sample(context, picture(500 + i)) for i in range(4)]
    with context.database.begin() as session:
        for sample_id in known:
            value = {"classes": ["a"], "boxes": []}
            row_ = LabelRow(model=slug, sample_id=sample_id, value=value, source="imported", split="train")
            session.add(row_)
    add_tasks(context, slug, 9)
    push(context, slug)
    found = tasks(studio, context, slug)
    gold = [s for s in known if s in found]
    assert (len(found), len(gold)) == (12, 3)
    assert {found[s].data["arm"] for s in gold} == {"drawn"}
    labeler.submit(found[gold[0]].id, {"result": choose("b"), "lead_time": 1.0})
    settle(context, slug)
    assert row(context, slug, gold[0]).state == "annotated"
    assert label(context, slug, gold[0]).value["classes"] == ["a"]
    context.database.close()


def test_the_blind_share_is_the_same_at_every_attempt(studio_server, tmp_path, studio):
    """A task first shown with and then without the model's answer measures nothing."""
    context = studio_server.open(tmp_path / "home", blind_share=0.5)
    slug = StudioServer.slug()
    add_model(context, slug)
    add_tasks(context, slug, 20)
    push(context, slug)
    with context.database.read() as session:
        blind = {t.sample_id for t in session.exec(select(LabelTask).where(LabelTask.model == slug)) if t.blind}
    found = tasks(studio, context, slug)
    assert 4 <= len(blind) <= 16
    assert {s for s, t in found.items() if t.predictions[0]["result"] == []} == blind
    context.database.close()


def test_an_answer_whose_task_was_deleted_before_it_was_read_is_kept_from_the_hint(bridge, model, studio, labeler):
    """We said "got it" to Label Studio; after that it must not be lost."""
    (sample_id,) = add_tasks(bridge, model, 1)
    push(bridge, model)
    where = project(bridge, model).project_id
    task_id = row(bridge, model, sample_id).studio_task_id
    annotation_id = labeler.submit(task_id, {"result": choose("c"), "lead_time": 1.0})
    (task,) = studio.whole(where, [task_id])
    (answer,) = task.annotations
    labeler.ask("DELETE", f"/api/tasks/{task_id}/")
    hinted = [{"id": task_id, "data": {"sample_id": sample_id}, "annotations": [answer]}]
    payload = {"model": model, "project_id": where, "studio_task_ids": [task_id], "hinted": hinted}
    assert run(bridge, "bridge.read", **payload) == {"labels": {model: 1}}
    assert label(bridge, model, sample_id).value["classes"] == ["c"]
    assert [r.annotation_id for r in revisions(bridge, model, sample_id)] == [annotation_id]
    run(bridge, "bridge.sweep", model=model)
    push(bridge, model)
    settle(bridge, model)
    (again,) = tasks(studio, bridge, model)[sample_id].annotations
    assert again["result"][0]["value"] == {"choices": ["c"]}
    assert label(bridge, model, sample_id).value["classes"] == ["c"]
    assert CLASSES


def test_two_people_at_once_get_the_two_most_valuable_tasks(bridge, model, labeler, second):
    """The order must hold for a team too, and nobody waits for another."""
    samples = add_tasks(bridge, model, 6)
    push(bridge, model)
    where = project(bridge, model).project_id
    shown = [person.next_task(where)["data"]["sample_id"] for person in (labeler, second)]
    assert shown == [samples[5], samples[4]]
    for person in (labeler, second):
        person.submit(person.next_task(where)["id"], {"result": choose("a"), "lead_time": 1.0})
    shown = [person.next_task(where)["data"]["sample_id"] for person in (labeler, second)]
    assert shown == [samples[3], samples[2]]
    add_task(bridge, model, add_sample(bridge, picture(77)), priority=0.99)
