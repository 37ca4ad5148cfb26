"""The bridge against the real Label Studio: every task once, every answer back, whatever gets lost on the way."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from bridge_rows import CLASSES, add_model, add_sample, add_task, add_tasks, picture
from bridge_steps import (
    choose,
    end_quarantine,
    label,
    project,
    push,
    revisions,
    row,
    run,
    tasks,
    wait_until,
)
from lossy_proxy import LossyProxy
from sqlmodel import select

from labeling_bridge.config import label_config
from labeling_bridge.convert import label_results
from labeling_bridge.jobs import HANDLERS
from labeling_bridge.studio import VIEW_TITLE, Studio
from sutdol import images, jobs
from sutdol.context import Context
from sutdol.errors import StudioError
from sutdol.jobs import lease
from sutdol.jobs.worker import run_pending
from sutdol.tables import Annotation, Event, Job, LabelTask, StudioProject, now
from sutdol.types import Box, Label
from tests.studio_fixture import StudioServer


def test_thirty_samples_appear_once_each_with_their_predictions(bridge, model, studio):
    """The first promise: what was queued is what labelers see, most valuable first."""
    samples = add_tasks(bridge, model, 30)
    blind = add_sample(bridge, picture(1000))
    add_task(bridge, model, blind, blind=True, priority=0.01)
    assert push(bridge, model) == 31
    assert push(bridge, model) == 0
    found = tasks(studio, bridge, model)
    assert set(found) == {*samples, blind}
    (hidden,) = found[blind].predictions
    assert (hidden["result"], hidden["score"]) == ([], pytest.approx(0.99)), "a place in the order, and nothing to see"
    name = f"{model}-v1"
    for sample_id in samples:
        (prediction,) = found[sample_id].predictions
        mine = row(bridge, model, sample_id)
        assert (mine.state, mine.studio_task_id) == ("in_studio", found[sample_id].id)
        assert prediction["model_version"] == name
        assert prediction["score"] == pytest.approx(1 - mine.priority, abs=1e-5)
        assert prediction["result"][0]["value"] == {"choices": ["a"]}
        assert found[sample_id].data["reason"] == mine.reason
    there = studio.project(project(bridge, model).project_id)
    assert there["model_version"] == name
    assert there["sampling"] == "Uncertainty sampling"
    assert there["label_config"] == label_config("classify", CLASSES)


def test_the_stream_and_the_tab_show_the_most_valuable_task_first(bridge, model, studio, labeler):
    """Label Studio has two entrances with two orders; both must be ours."""
    samples = add_tasks(bridge, model, 6)
    push(bridge, model)
    project_id = project(bridge, model).project_id
    assert labeler.next_task(project_id)["data"]["sample_id"] == samples[-1]
    views = studio.ask("GET", "/api/dm/views/", params={"project": project_id}).json()
    (view,) = [v for v in views if v["data"]["title"] == VIEW_TITLE]
    assert view["id"] == project(bridge, model).view_id
    shown = studio.ask("GET", "/api/tasks", params={"project": project_id, "view": view["id"]}).json()["tasks"]
    assert [t["data"]["sample_id"] for t in shown] == samples[::-1]


@pytest.mark.parametrize("early", [False, True])
def test_an_import_that_was_never_confirmed_makes_no_duplicates(studio_server, tmp_path, studio, early):
    """A client that gives up does not stop the server; "look before you import" alone made 599 tasks of 400."""
    with LossyProxy(studio_server.port, lose=1, early=early) as proxy:
        context = studio_server.open(tmp_path / "home", label_studio_url=proxy.url)
        slug = StudioServer.slug()
        add_model(context, slug)
        samples = add_tasks(context, slug, 12)
        assert push(context, slug) == 0
        assert proxy.lost == 1
        waiting = row(context, slug, samples[0])
        assert (waiting.state, waiting.attempts) == ("queued", 1)
        assert waiting.not_before > now()
        assert push(context, slug) == 0, "nothing is tried while the outcome is unknown"
        wait_until(lambda: len(tasks(studio, context, slug)) == 12)
        end_quarantine(context)
        assert push(context, slug) == 12
        assert set(tasks(studio, context, slug)) == set(samples)
        assert all(t.total_predictions == 1 for t in tasks(studio, context, slug).values())
        context.database.close()


def test_a_labeler_at_work_costs_no_predictions(bridge, model, studio, labeler):
    """On SQLite an import beside a submit may lose all its predictions with a 201; measured: 500 sent, 0 kept."""
    add_tasks(bridge, model, 10)
    push(bridge, model)
    project_id = project(bridge, model).project_id
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set() and (task := labeler.next_task(project_id)) is not None:
            with contextlib.suppress(StudioError):  # a submit that Label Studio refused under load is no answer
                labeler.submit(task["id"], {"result": choose("b"), "lead_time": 1.0})

    thread = threading.Thread(target=work)
    thread.start()
    add_tasks(bridge, model, 100, first_seed=100)
    try:
        assert push(bridge, model) == 100
    finally:
        stop.set()
        thread.join(60)
    found = tasks(studio, bridge, model)
    assert len(found) == 110
    assert {t.total_predictions for t in found.values()} == {1}
    run(bridge, "bridge.read")
    answered = {s for s, t in found.items() if t.total_annotations}
    assert answered
    assert all(label(bridge, model, s).value["classes"] == ["b"] for s in answered)


def test_two_writers_do_not_push_at_once(bridge, model):
    """Both would look, find nothing and import."""
    samples = add_tasks(bridge, model, 3)
    assert lease.acquire(bridge.database, f"studio:{model}", "somebody", 100)
    assert push(bridge, model) == 0
    assert row(bridge, model, samples[0]).state == "queued"
    lease.release(bridge.database, f"studio:{model}", "somebody")
    assert push(bridge, model) == 3


def test_no_more_tasks_are_open_than_allowed(studio_server, tmp_path):
    """Labelers drown and Label Studio slows down; the backlog is ours."""
    context = studio_server.open(tmp_path / "home", max_open_tasks=4)
    slug = StudioServer.slug()
    add_model(context, slug)
    add_tasks(context, slug, 6, arm="unfamiliar")
    drawn = add_tasks(context, slug, 2, first_seed=50, priority=0.0)
    assert push(context, slug) == 4
    assert [row(context, slug, s).state for s in drawn] == ["in_studio"] * 2
    context.database.close()


def test_answers_edits_skips_and_deletions_come_back(bridge, model, studio, labeler):
    """No answer is lost, none is trained on after it was taken back."""
    kept, edited, skipped, deleted, empty = samples = add_tasks(bridge, model, 5)
    push(bridge, model)
    ids = {s: row(bridge, model, s).studio_task_id for s in samples}
    labeler.submit(ids[kept], {"result": choose("b"), "lead_time": 2.5})
    edited_id = labeler.submit(ids[edited], {"result": choose("a"), "lead_time": 1.0})
    shown = tasks(studio, bridge, model)[skipped].predictions[0]
    labeler.submit(ids[skipped], {"result": shown["result"], "was_cancelled": True, "lead_time": 1.0})
    deleted_id = labeler.submit(ids[deleted], {"result": choose("c"), "lead_time": 1.0})
    labeler.submit(ids[empty], {"result": [], "lead_time": 1.0})

    assert run(bridge, "bridge.read") == {"labels": {model: 3}}
    assert [row(bridge, model, s).state for s in samples] == [
        "annotated",
        "annotated",
        "skipped",
        "annotated",
        "in_studio",
    ]
    assert label(bridge, model, kept).value["classes"] == ["b"]
    assert label(bridge, model, kept).weight == 4.0
    assert label(bridge, model, skipped) is None
    (revision,) = revisions(bridge, model, kept)
    assert (revision.state, revision.lead_time_s) == ("valid", 2.5)
    assert "exactly one class" in revisions(bridge, model, empty)[0].problem
    splits = {s: row(bridge, model, s).split for s in (kept, edited, deleted)}
    assert Counter(splits.values()) == {"test": 1, "train": 2}
    with bridge.database.read() as session:
        triggers = session.exec(select(Job).where(Job.kind == "retrain.trigger")).all()
    assert [t.payload for t in triggers] == [{"model": model}]

    assert run(bridge, "bridge.read") == {"labels": {model: 0}}, "reading again changes nothing"
    assert len(revisions(bridge, model, kept)) == 1

    labeler.ask("PATCH", f"/api/annotations/{edited_id}/", json={"result": choose("c")})
    labeler.ask("DELETE", f"/api/annotations/{deleted_id}/")
    assert run(bridge, "bridge.read") == {"labels": {model: 2}}
    assert label(bridge, model, edited).value["classes"] == ["c"]
    assert [r.value["classes"] for r in revisions(bridge, model, edited)] == [["a"], ["c"]]
    assert label(bridge, model, deleted) is None
    assert row(bridge, model, deleted).state == "in_studio"
    assert [r.state for r in revisions(bridge, model, deleted)] == ["valid", "deleted"]

    labeler.submit(ids[deleted], {"result": choose("a"), "lead_time": 1.0})
    run(bridge, "bridge.read")
    assert label(bridge, model, deleted).split == splits[deleted], "a split is given once and for ever"


def test_two_people_who_disagree_make_a_conflict_until_one_is_right(bridge, model, studio, labeler):
    """A label that two people contradict must not be trained on by accident of order."""
    (sample_id,) = add_tasks(bridge, model, 1)
    push(bridge, model)
    task_id = row(bridge, model, sample_id).studio_task_id
    labeler.submit(task_id, {"result": choose("a"), "lead_time": 1.0})
    second = studio.submit(task_id, {"result": choose("b"), "lead_time": 1.0})
    run(bridge, "bridge.read")
    assert row(bridge, model, sample_id).state == "conflict"
    assert label(bridge, model, sample_id) is None
    studio.ask("PATCH", f"/api/annotations/{second}/", json={"ground_truth": True})
    run(bridge, "bridge.read")
    assert label(bridge, model, sample_id).value["classes"] == ["b"]


def test_annotations_made_by_a_menu_action_are_no_labels(bridge, model, studio, labeler):
    """Every labeler can turn all predictions into annotations with two clicks; nobody has looked at those."""
    (sample_id,) = add_tasks(bridge, model, 1)
    push(bridge, model)
    query = {"id": "predictions_to_annotations", "project": project(bridge, model).project_id}
    body = {"project": query["project"], "selectedItems": {"all": True, "excluded": []}}
    labeler.ask("POST", "/api/dm/actions", params=query, json=body)
    run(bridge, "bridge.read")
    (revision,) = revisions(bridge, model, sample_id)
    assert (revision.state, "menu action" in revision.problem) == ("empty", True)
    assert label(bridge, model, sample_id) is None
    assert run(bridge, "bridge.reask", model=model) == {"asked": 0, "emptied": 1}
    run_pending(bridge, {"bridge.read": HANDLERS["bridge.read"]})
    assert row(bridge, model, sample_id).state == "in_studio"
    assert labeler.next_task(project(bridge, model).project_id)["data"]["sample_id"] == sample_id


def test_boxes_come_back_in_pixels(bridge, studio, labeler):
    """Shown as a pre-annotation, changed by a person, read back: within a hundredth of a pixel."""
    slug = StudioServer.slug()
    add_model(bridge, slug, "detect", ["cell", 'a "nasty" <one> & 숫'])
    changed, background, rotated = [add_sample(bridge, picture(i, (77, 333))) for i in range(3)]
    box = {"label": 'a "nasty" <one> & 숫', "x1": 10.3, "y1": 20.7, "x2": 100.9, "y2": 50.1, "confidence": 0.8}
    for sample_id in (changed, background, rotated):
        add_task(bridge, slug, sample_id, answer={"classes": [], "boxes": [box]})
    push(bridge, slug)
    found = tasks(studio, bridge, slug)
    (region,) = found[changed].predictions[0]["result"]
    assert region["value"]["x"] == pytest.approx(10.3 / 333 * 100)
    extra = Label(boxes=[Box("cell", 1.25, 2.5, 7.75, 9.125)])
    results = [region, *label_results(extra, "detect", width_px=333, height_px=77)]
    labeler.submit(found[changed].id, {"result": results, "lead_time": 1.0})
    labeler.submit(found[background].id, {"result": [], "lead_time": 1.0})
    turned = region | {"value": region["value"] | {"rotation": 15}}
    labeler.submit(found[rotated].id, {"result": [turned], "lead_time": 1.0})
    run(bridge, "bridge.read")
    boxes = label(bridge, slug, changed).value["boxes"]
    assert [b["label"] for b in boxes] == [box["label"], "cell"]
    for name, expected in (("x1", 10.3), ("y1", 20.7), ("x2", 100.9), ("y2", 50.1)):
        assert abs(boxes[0][name] - expected) < 0.01
    assert label(bridge, slug, background).value == {"classes": [], "boxes": []}
    assert label(bridge, slug, rotated) is None
    assert "15 degrees" in revisions(bridge, slug, rotated)[0].problem


def test_the_sweep_heals_what_others_broke(bridge, model, studio, labeler):
    """Duplicates that appear late, tasks deleted in the interface, predictions lost by SQLite."""
    doubled, answered_twice, deleted, bare = samples = add_tasks(bridge, model, 4)
    push(bridge, model)
    add_tasks(bridge, model, 1, first_seed=90, state="annotated", arm="unfamiliar")  # named in a group, without them
    project_id = project(bridge, model).project_id
    before = tasks(studio, bridge, model)
    studio.import_tasks(project_id, [{"data": before[s].data} for s in (doubled, answered_twice)])
    late = max(t.id for t in studio.find(project_id, [answered_twice]))
    labeler.submit(late, {"result": choose("b"), "lead_time": 1.0})
    assert studio.delete_unanswered(project_id, [before[deleted].id]) == {before[deleted].id}
    studio.ask("DELETE", f"/api/predictions/{before[bare].predictions[0]['id']}/")

    report = run(bridge, "bridge.sweep", model=model)[model]
    assert report == {"duplicates": 2, "requeued": 1, "repaired": 2, "unread": 1}
    run_pending(bridge, {k: HANDLERS[k] for k in ("bridge.push", "bridge.read")})
    after = tasks(studio, bridge, model)
    assert set(after) == set(samples)
    assert after[doubled].id == before[doubled].id
    assert after[answered_twice].id == late, "the answered one stays"
    assert label(bridge, model, answered_twice).value["classes"] == ["b"]
    assert all(t.total_predictions == 1 for s, t in after.items() if s != answered_twice)
    assert run(bridge, "bridge.sweep", model=model)[model] == dict.fromkeys(report, 0)


def test_a_deleted_project_is_made_again(bridge, model, studio, labeler):
    """Any labeler can delete a project; what was answered is put back as it was, the rest is asked again."""
    answered, skipped, _ = samples = add_tasks(bridge, model, 3)
    push(bridge, model)
    labeler.submit(row(bridge, model, answered).studio_task_id, {"result": choose("b"), "lead_time": 1.5})
    labeler.submit(row(bridge, model, skipped).studio_task_id, {"result": [], "was_cancelled": True})
    run(bridge, "bridge.read")
    (before,) = revisions(bridge, model, answered)
    gone = project(bridge, model).project_id
    labeler.ask("DELETE", f"/api/projects/{gone}/")
    assert run(bridge, "bridge.read") == {"labels": {model: 0}}
    for _ in range(4):
        run_pending(bridge, HANDLERS | {"retrain.trigger": lambda running: None})
    assert project(bridge, model).project_id != gone
    found = tasks(studio, bridge, model)
    assert set(found) == set(samples)
    assert [row(bridge, model, s).state for s in samples] == ["annotated", "skipped", "in_studio"]
    assert label(bridge, model, answered).value["classes"] == ["b"]
    (copy,) = found[answered].annotations
    assert (copy["completed_by"], copy["lead_time"], copy["ground_truth"]) == (before.annotator, 1.5, False)
    assert [r.restored for r in revisions(bridge, model, answered)] == [False, True]
    assert [a["was_cancelled"] for a in found[skipped].annotations] == [True]
    labeler.ask("DELETE", f"/api/annotations/{copy['id']}/")
    run(bridge, "bridge.read")
    assert label(bridge, model, answered) is None, "what counts is what stands in the new project"
    with bridge.database.read() as session:
        assert session.exec(select(Event).where(Event.kind == "bridge.project-lost")).one().model == model


def test_a_new_class_reaches_the_label_config(bridge, model, studio):
    """A class nobody can choose would never be labelled."""
    from sutdol import registry

    add_tasks(bridge, model, 1)
    push(bridge, model)
    with bridge.database.begin() as session:
        registry.add_classes(session, model, ['"new" & <odd>'])
    add_tasks(bridge, model, 1, first_seed=10)
    push(bridge, model)
    there = studio.project(project(bridge, model).project_id)
    assert there["label_config"] == label_config("classify", [*CLASSES, '"new" & <odd>'])


def test_the_project_is_found_again_when_our_note_is_lost(bridge, model, studio):
    """A crash between making the project and writing it down must not make a second one."""
    add_tasks(bridge, model, 2)
    push(bridge, model)
    first = project(bridge, model).project_id
    with bridge.database.begin() as session:
        session.delete(session.get_one(StudioProject, model))
        for task in session.exec(select(LabelTask)):
            task.state, task.studio_task_id = "queued", None
            session.add(task)
    assert push(bridge, model) == 2
    assert project(bridge, model).project_id == first
    assert len(tasks(studio, bridge, model)) == 2


def test_a_lost_token_is_made_again(studio_server, tmp_path):
    """Only one token per account can exist and its text is shown once; without this, a lost file needs an administrator."""
    email, password = studio_server.person()
    own = {"label_studio_email": email, "label_studio_password": password, "label_studio_api_key": ""}
    context = studio_server.open(tmp_path / "home", **own)
    kept = context.settings.home / "label-studio.json"
    with Studio.open(context) as first:
        assert first.find_project("no such project") is None
        assert kept.stat().st_mode & 0o777 == 0o600
        before = kept.read_text()
        with Studio.open(context) as other:
            assert other.find_project("no such project") is None
        assert kept.read_text() == before, "the kept token is used again"
        kept.write_text("not JSON")
        with Studio.open(context) as second:
            assert second.find_project("no such project") is None
        assert kept.read_text() != before
        stale = first.authorization()
        assert first.authorization(stale=stale) != stale, "a process with the old token finds the new one"
    context.database.close()


def test_a_wrong_password_is_told(studio_server, tmp_path):
    """The operator needs to know which setting is wrong."""
    context = studio_server.open(tmp_path / "home", label_studio_password="wrong", label_studio_api_key="")
    with Studio.open(context) as studio, pytest.raises(StudioError, match="SUTDOL_LABEL_STUDIO_PASSWORD"):
        studio.find_project("x")
    context.database.close()


def test_a_restart_of_label_studio_is_survived(bridge, model, studio_server, studio):
    """kill -9, then back: the rows wait, the job says what to do, nothing is lost or doubled."""
    first = add_tasks(bridge, model, 3)
    push(bridge, model)
    second = add_tasks(bridge, model, 3, first_seed=10, state="queued", queued_at=now())
    studio_server.kill()
    with bridge.database.begin() as session:
        job_id = jobs.send(session, "bridge.push", {"model": model})
    run_pending(bridge, {"bridge.push": HANDLERS["bridge.push"]})
    with bridge.database.read() as session:
        error = session.get_one(Job, job_id).error
    assert "does not answer" in error
    assert "sutdol up" in error
    assert row(bridge, model, second[0]).state == "queued"
    studio_server.start()
    with bridge.database.begin() as session:
        session.get_one(Job, job_id).not_before = 0.0
    run_pending(bridge, {"bridge.push": HANDLERS["bridge.push"]})
    assert set(tasks(studio, bridge, model)) == {*first, *second}


def test_the_port_is_taken_and_the_environment_is_missing(studio_server, tmp_path):
    """Both happen on every second laptop, and both have a remedy."""
    from labeling_bridge import server
    from sutdol.errors import SetupError

    with pytest.raises(SetupError, match="SUTDOL_LABEL_STUDIO_PORT"):
        server.start(studio_server.context)
    context = studio_server.open(tmp_path / "home", label_studio_venv=tmp_path / "nowhere")
    with pytest.raises(SetupError, match="make setup"):
        server.start(context)
    context.database.close()


@pytest.mark.parametrize("strangers", [1, 2])
def test_answers_of_people_who_have_no_account_any_more_come_back_or_are_asked_anew(
    bridge, model, studio, labeler, strangers
):
    """Label Studio refuses a whole import for one unknown author, and the same answer would be refused for ever."""
    sample_id, other = add_tasks(bridge, model, 2)
    push(bridge, model)
    task_id = row(bridge, model, sample_id).studio_task_id
    labeler.submit(task_id, {"result": choose("b"), "lead_time": 1.0})
    if strangers == 2:
        studio.submit(task_id, {"result": choose("b"), "lead_time": 1.0})
    run(bridge, "bridge.read")
    with bridge.database.begin() as session:
        for number, revision in enumerate(session.exec(select(Annotation)).all()):
            revision.annotator = 10**6 + number
            session.add(revision)
    labeler.ask("DELETE", f"/api/tasks/{task_id}/")
    assert run(bridge, "bridge.sweep", model=model)[model]["requeued"] == 1
    push(bridge, model)
    found = tasks(studio, bridge, model)
    assert set(found) == {sample_id, other}
    assert len(found[sample_id].annotations) == (1 if strangers == 1 else 0)
    assert label(bridge, model, sample_id).value["classes"] == ["b"]


@pytest.fixture
def served(studio_server, tmp_path) -> Iterator[Context]:
    """A bridge whose routes are really served, so that Label Studio and labelers reach them."""
    from bridge_server import serving_routes

    with serving_routes(studio_server, tmp_path / "home") as context:
        yield context


def test_a_webhook_brings_the_answer_without_a_poll(served, labeler):
    """The labeler's answer should count within a second or two, not at the next poll."""
    slug = StudioServer.slug()
    add_model(served, slug)
    (sample_id,) = add_tasks(served, slug, 1)
    push(served, slug)
    assert project(served, slug).webhook_id is not None
    labeler.submit(row(served, slug, sample_id).studio_task_id, {"result": choose("c"), "lead_time": 1.0})

    wait_until(lambda: run_pending(served, {"bridge.hint": HANDLERS["bridge.hint"]}) > 0)
    assert label(served, slug, sample_id).value["classes"] == ["c"]


def test_the_oracle_answers_everything_by_the_pixels(served, studio_server, tmp_path):
    """The demo's labeler must take Label Studio's own road, or it proves nothing."""
    import json
    import subprocess
    import sys

    from sutdol.settings import child_environment

    slug = StudioServer.slug()
    add_model(served, slug)
    samples = add_tasks(served, slug, 14)
    add_task(served, slug, add_sample(served, picture(99)), priority=0.9)  # the oracle does not know this one
    push(served, slug)
    names = {s: CLASSES[i % 3] for i, s in enumerate(samples)}
    truth = {images.pixel_key(picture(i)): {"classes": [names[s]]} for i, s in enumerate(samples)}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    command = [sys.executable, "-m", "labeling_bridge.oracle", "--url", studio_server.url, "--project-model", slug]
    command += ["--email", f"{slug}@sutdol.local", "--password", "a long password", "--truth", "truth.json"]
    environment = child_environment(served.settings)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 15
    assert sum(r["skipped"] for r in records) == 1
    assert sum(r["accepted"] for r in records) == 5, "those where the pre-annotation `a` is right"
    run(served, "bridge.read")
    assert {s: label(served, slug, s).value["classes"][0] for s in samples} == names
    origins = Counter(o for s in samples for r in revisions(served, slug, s) for o in r.origins)
    assert origins == {"prediction": 5, "prediction-changed": 9}
