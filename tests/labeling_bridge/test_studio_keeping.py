"""What is kept, copied and taken over: exports and restores, image addresses, imported labels for review, whole projects."""

from __future__ import annotations

import base64

import pytest
from bridge_rows import add_model, add_sample, add_task, add_tasks, picture
from bridge_steps import choose, forget_jobs, label, project, push, row, run, tasks
from sqlmodel import select

from labeling_bridge import backup, doctor, routes
from labeling_bridge.config import label_config
from labeling_bridge.convert import label_results
from labeling_bridge.pictures import image_url, signing_keys
from sutdol import images, keys, registry
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError
from sutdol.tables import LabelRow, LabelTask, Sample
from sutdol.types import Box, Label
from tests.studio_fixture import StudioServer
from tests.tiny_models import classifier_bundle, coloured_png


def test_an_export_brings_everything_back_into_an_empty_house(studio_server, tmp_path, bridge, model, studio, labeler):
    """A labeler deletes the project and a disk takes the database; the images' store is all that is left."""
    answered, skipped, waiting = add_tasks(bridge, model, 3)
    drawn = add_sample(bridge, picture(40))
    add_task(bridge, model, drawn, arm="drawn", inclusion_probability=0.2, priority=0.1)
    push(bridge, model)
    ids = {s: row(bridge, model, s).studio_task_id for s in (answered, skipped, waiting, drawn)}
    labeler.submit(ids[answered], {"result": choose("b"), "lead_time": 1.0})
    labeler.submit(ids[drawn], {"result": choose("c"), "lead_time": 1.0})
    labeler.submit(ids[skipped], {"result": [], "was_cancelled": True})
    run(bridge, "bridge.read")
    split = row(bridge, model, drawn).split
    report = run(bridge, "bridge.export", model=model)[model]
    assert report["tasks"] == 3
    labeler.ask("DELETE", f"/api/projects/{project(bridge, model).project_id}/")

    fresh = studio_server.open(tmp_path / "fresh", store_url=f"file://{bridge.settings.home.absolute()}/store")
    result = run(fresh, "bridge.restore", model=model)
    assert (result["key"], result["tasks"], result["samples"], result["labels"]) == (report["key"], 3, 3, 2)
    push(fresh, model)
    found = tasks(studio, fresh, model)
    assert set(found) == {answered, skipped, drawn}
    assert [a["result"][0]["value"]["choices"] for a in found[answered].annotations] == [["b"]]
    assert found[skipped].cancelled_annotations == 1
    run(fresh, "bridge.read")
    assert label(fresh, model, answered).value["classes"] == ["b"]
    kept = row(fresh, model, drawn)
    assert (kept.inclusion_probability, kept.split, label(fresh, model, drawn).weight) == (0.2, split, 5.0)
    again = run(fresh, "bridge.restore", model=model)
    assert (again["tasks"], again["labels"], again["sent_again"]) == (0, 0, 0), "a second restore changes nothing"
    fresh.database.close()


def test_a_restore_without_an_export_or_from_a_strange_file_says_so(context):
    """It is run on the worst day; it must not end in a traceback."""
    with pytest.raises(NotFoundError, match="labels export"):
        backup.newest(context.store, "nothing")
    with pytest.raises(InputError, match="cannot be read"):
        backup.read(b"no gzip")


def test_old_exports_are_deleted_after_a_new_one(bridge, model, monkeypatch):
    """One file a night fills a disk in the end."""
    monkeypatch.setattr(backup, "KEPT", 2)
    add_tasks(bridge, model, 1)
    push(bridge, model)
    for day in range(3):
        bridge.store.put(f"labels/{model}/2020010{day}T000000Z.json.gz", b"old")
    run(bridge, "bridge.export", model=model)
    kept = bridge.store.keys(f"labels/{model}/")
    assert len(kept) == 2
    assert "20200102" in kept[0]


def test_a_new_signing_key_gives_every_task_a_new_address_and_revokes_the_old(bridge, model, studio):
    """An address that was posted somewhere must stop working without losing a task."""
    samples = add_tasks(bridge, model, 3)
    push(bridge, model)
    before = {s: t.data["image"] for s, t in tasks(studio, bridge, model).items()}
    (old,) = signing_keys(bridge.database)
    assert run(bridge, "bridge.rotate") == {"changed": 3}
    (new,) = signing_keys(bridge.database)
    after = {s: t.data for s, t in tasks(studio, bridge, model).items()}
    for sample_id in samples:
        assert after[sample_id]["image"] == image_url(bridge, sample_id) != before[sample_id]
        assert after[sample_id]["sample_id"] == sample_id
        signature = before[sample_id].split("sig=")[1]
        assert keys.signature_is_right(sample_id, signature, old)
        assert not keys.signature_is_right(sample_id, signature, new)


def test_images_may_be_copied_into_label_studio(studio_server, tmp_path, studio):
    """For labelers whose browsers cannot reach us."""
    context = studio_server.open(tmp_path / "home", image_mode="upload")
    slug = StudioServer.slug()
    add_model(context, slug)
    samples = add_tasks(context, slug, 3)
    push(context, slug)
    for sample_id, task in tasks(studio, context, slug).items():
        assert task.data["image"].startswith("/data/upload/")
        assert studio.ask("GET", task.data["image"]).content == context.store.get(f"samples/{sample_id}")
    assert set(tasks(studio, context, slug)) == set(samples)
    context.database.close()


def imported(context: Context, slug: str, color: str, said: str, seed: int) -> str:
    image = images.admit(coloured_png(color, seed=seed))
    context.store.put(f"samples/{image.sample_id}", image.data)
    value = {"classes": [said], "boxes": []}
    with context.database.begin() as session:
        session.add(Sample(id=image.sample_id, width_px=40, height_px=40, media_type="image/png", size_bytes=1))
        session.add(LabelRow(model=slug, sample_id=image.sample_id, value=value, source="imported", split="test"))
    return image.sample_id


def test_suspicious_labels_go_before_people_and_come_back_corrected(bridge, studio, labeler):
    """Every data set has wrong labels, and a test set that has them promotes the wrong model."""
    slug = StudioServer.slug()
    classifier_bundle(bridge, slug)
    right, wrong = imported(bridge, slug, "red", "red", 1), imported(bridge, slug, "green", "blue", 2)
    assert run(bridge, "bridge.review", model=slug, which="suspicious")["queued"] == 1
    push(bridge, slug)
    (task,) = tasks(studio, bridge, slug).values()
    assert task.sample_id == wrong
    assert task.data["reason"] == "the label says blue, the model green"
    assert [p["result"][0]["value"]["choices"] for p in task.predictions] == [["blue"]], "what the data set says"
    labeler.submit(task.id, {"result": choose("green"), "lead_time": 1.0})
    run(bridge, "bridge.read")
    mended = label(bridge, slug, wrong)
    assert (mended.value["classes"], mended.split, mended.source) == (["green"], "test", "imported")
    assert label(bridge, slug, right).value["classes"] == ["red"]
    assert run(bridge, "bridge.review", model=slug, which="all")["queued"] == 1, "the other one, and none twice"


def data_uri(seed: int, size_hw: tuple[int, int] = (40, 60)) -> str:
    return "data:image/png;base64," + base64.b64encode(images.encode_png(picture(seed, size_hw))).decode()


def test_a_project_that_people_have_already_is_taken_over(bridge, studio, labeler):
    """Nobody labels again what is labelled; what we cannot take is named, and their project stays as it is."""
    config = label_config("detect", ["cat", "dog"]).replace('"bbox"', '"theirs"').replace('"image"', '"pic"')
    config = config.replace("$image", "$photo").replace('  <Header value="$reason" size="5"/>\n', "")
    theirs = studio.create_project("theirs", "not ours", config.replace("$photo", "$image"))
    studio.import_tasks(theirs, [{"data": {"image": data_uri(i)}} for i in range(4)])
    studio.import_tasks(theirs, [{"data": {"image": "http://10.0.0.1/x.png"}}])
    ids = sorted(studio.changed_since(theirs, ""))
    box = label_results(Label(boxes=[Box("dog", 6, 4, 30, 20)]), "detect", width_px=60, height_px=40)
    box = [r | {"from_name": "theirs", "to_name": "pic"} for r in box]
    turned = [r | {"value": r["value"] | {"rotation": 30}} for r in box]
    labeler.submit(ids[0], {"result": box, "lead_time": 1.0})
    labeler.submit(ids[1], {"result": [], "lead_time": 1.0})
    labeler.submit(ids[2], {"result": turned, "lead_time": 1.0})
    labeler.submit(ids[4], {"result": box, "lead_time": 1.0})
    slug = StudioServer.slug()
    with bridge.database.begin() as session:
        registry.create_model(session, slug, task="detect", classes=[], family="yolo")
    result = run(bridge, "bridge.adopt", model=slug, project_id=theirs)
    assert (result["tasks"], result["labelled"]) == (5, 2)
    assert {k.split(":")[0] for k in result["left_out"]} == {"not annotated", "image", "box 'b0'"}
    with bridge.database.read() as session:
        rows = session.exec(select(LabelRow).where(LabelRow.model == slug)).all()
        assert registry.get_model(session, slug).classes == ["cat", "dog"]
    (found,) = [r.value["boxes"] for r in rows if r.value["boxes"]]
    assert [found[0][k] for k in ("label", "x1", "y1", "x2", "y2")] == ["dog", *map(pytest.approx, (6, 4, 30, 20))]
    assert run(bridge, "bridge.adopt", model=slug, project_id=theirs)["labelled"] == 0, "a second time adds nothing"
    studio.delete_project(theirs)


def test_annotations_of_others_may_be_pre_annotations(bridge, studio, labeler):
    """Not every data set is to be believed."""
    config = label_config("classify", ["a", "b"]).replace('  <Header value="$reason" size="5"/>\n', "")
    theirs = studio.create_project("theirs", "not ours either", config)
    studio.import_tasks(theirs, [{"data": {"image": data_uri(9)}}])
    labeler.submit(min(studio.changed_since(theirs, "")), {"result": choose("b"), "lead_time": 1.0})
    slug = StudioServer.slug()
    add_model(bridge, slug)
    assert run(bridge, "bridge.adopt", model=slug, project_id=theirs, trust=False)["labelled"] == 1
    forget_jobs(bridge)
    push(bridge, slug)
    (task,) = tasks(studio, bridge, slug).values()
    assert task.predictions[0]["result"][0]["value"] == {"choices": ["b"]}
    assert label(bridge, slug, task.sample_id) is None
    studio.delete_project(theirs)


def test_a_retired_class_is_offered_no_more_and_comes_back_with_its_colour(bridge, model, studio, labeler):
    """Classes are never removed: their labels and their index stay."""
    (sample_id,) = add_tasks(bridge, model, 1)
    push(bridge, model)
    before = studio.project(project(bridge, model).project_id)["label_config"]
    with bridge.database.begin() as session:
        registry.retire_class(session, model, "b")
    add_tasks(bridge, model, 1, first_seed=50)
    push(bridge, model)
    after = studio.project(project(bridge, model).project_id)["label_config"]
    assert 'value="b"' not in after
    assert [line for line in before.splitlines() if 'value="b"' not in line] == after.splitlines()
    labeler.submit(row(bridge, model, sample_id).studio_task_id, {"result": choose("b"), "lead_time": 1.0})
    run(bridge, "bridge.read")
    assert label(bridge, model, sample_id).value["classes"] == ["b"], "an open page still had it"
    with bridge.database.begin() as session:
        registry.add_classes(session, model, ["b"])
    add_tasks(bridge, model, 1, first_seed=60)
    push(bridge, model)
    assert studio.project(project(bridge, model).project_id)["label_config"] == before


def test_a_project_tells_labelers_what_to_do(bridge, model, studio):
    """A project that looks home-made costs trust, and a key that nobody knows costs a click per label."""
    add_tasks(bridge, model, 1)
    push(bridge, model)
    there = studio.project(project(bridge, model).project_id)
    assert there["title"] == model
    assert there["show_instruction"] is True
    assert "<b>1</b> a, <b>2</b> b, <b>3</b> c" in there["expert_instruction"]


@pytest.mark.slow
def test_the_doctor_tries_the_roads_that_labelers_and_hints_take(studio_server, tmp_path):
    """Each of these goes wrong silently: labelers see an error box, or labels come minutes late."""
    from bridge_server import serving_routes

    with serving_routes(studio_server, tmp_path / "home") as context:
        settings = context.settings
        assert "1.23.2 is a tested version" in doctor.check_version(settings)
        assert "works as bridge@" in doctor.check_account(settings)
        assert doctor.check_images(settings) == "none is stored yet"
        add_sample(context, picture(1))
        assert "can be read from" in doctor.check_images(settings)
        assert "arrived" in doctor.check_webhook(settings)
        with context.database.read() as session:
            assert session.exec(select(LabelTask)).all() == []


def test_presigned_images_are_a_redirect_to_the_store(tmp_path, monkeypatch):
    """Big sites let the bucket serve the pictures; the address in the task stays ours, so it never expires."""
    from litestar import Litestar
    from litestar.testing import TestClient
    from obstore.store import S3Store

    from sutdol.context import open_context
    from sutdol.settings import load
    from sutdol.stores import Store

    opened = open_context(load(home=tmp_path / "home", image_mode="presign"))
    sample_id = add_sample(opened, picture(1))
    bucket = S3Store("pictures", region="eu-west-1", access_key_id="id", secret_access_key="secret")
    context = Context(opened.settings, opened.database, Store(bucket))
    with TestClient(Litestar([routes.build(context)], openapi_config=None)) as client:
        path = image_url(context, sample_id).removeprefix(context.settings.url)
        answer = client.get(path, headers={"Origin": context.settings.studio_url}, follow_redirects=False)
    assert answer.status_code == 307
    assert f"samples/{sample_id}" in answer.headers["location"]
    assert "X-Amz-Signature=" in answer.headers["location"]
    assert "immutable" not in answer.headers["cache-control"]
    assert answer.headers["access-control-allow-origin"] == context.settings.studio_url
    opened.database.close()
