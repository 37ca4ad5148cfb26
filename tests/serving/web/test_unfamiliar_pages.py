"""What the model does not know, over the API and on its page: seen in groups, named or sent in one step."""

from __future__ import annotations

import re

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from judged_model import SLUG, Judged, picture
from playwright.sync_api import Page
from shared_server import Served, assert_problem
from sqlmodel import select
from visits import Visit, token

from sutdol import images, registry
from sutdol.tables import Job, LabelRow, LabelTask, Sample
from tests.tiny_models import classifier_bundle


def tasks(served: Served, slug: str, sizes: tuple[int, ...], *, arm: str = "unfamiliar") -> list[list[str]]:
    """Waiting tasks in groups of these sizes, with features that stand apart and images that are kept."""
    rng = np.random.default_rng(len(sizes))
    made: list[list[str]] = []
    with served.context.database.begin() as session:
        for name, size in enumerate(sizes):
            made.append([])
            for i in range(size):
                image = images.admit(picture(9000 + 100 * name + i + 1000 * len(slug) + 50 * (arm == "drawn")))
                served.context.store.put(f"samples/{image.sample_id}", image.data)
                if session.get(Sample, image.sample_id) is None:
                    size_px = {"width_px": image.width_px, "height_px": image.height_px}
                    kind = {"media_type": image.media_type, "size_bytes": len(image.data)}
                    session.add(Sample(id=image.sample_id, **size_px, **kind))
                features = (rng.normal(0, 0.1, 16) + 5 * np.eye(16)[name]).astype(np.float16).tobytes()
                row = LabelTask(
                    model=slug,
                    sample_id=image.sample_id,
                    prediction_id="none",
                    version=1,
                    arm=arm,
                    reason="unfamiliar: far away",
                    priority=0.5,
                    uncertainty=0.5,
                    ood_score=7.0,
                    answer={"classes": [{"label": "red", "index": 0, "confidence": 0.4}], "boxes": []},
                    features=features,
                )
                session.add(row)
                made[-1].append(row.id)
    return made


def states(served: Served, ids: list[str]) -> set[str]:
    with served.context.database.read() as session:
        return set(session.exec(select(LabelTask.state).where(LabelTask.id.in_(ids))))  # type: ignore[attr-defined]


def waits(served: Served, kind: str, slug: str) -> bool:
    with served.context.database.read() as session:
        return any(j.payload.get("model") == slug for j in session.exec(select(Job).where(Job.kind == kind)))


def test_a_group_is_named_on_its_page_and_becomes_labels(served: Served, visit: Visit, client: httpx.Client) -> None:
    """The class is new, every image of the group is labelled with it and only trains, and a training is thought about."""
    classifier_bundle(served.context, "web-strange")
    first, second = tasks(served, "web-strange", (6, 4))
    [drawn] = tasks(served, "web-strange", (2,), arm="drawn")
    shown = client.get("/v1/models/web-strange/unfamiliar").json()
    assert [sorted(t["task_id"] for t in g["tasks"]) for g in shown] == [sorted(first), sorted(second)]
    assert shown[0]["said"] == [["red", 6]]
    admin = visit("admin")
    page = admin.get("/console/labels/web-strange/unfamiliar").text
    sent = re.findall(r'unfamiliar/name">.*?name="tasks" value="([^"]+)"', page, re.S)
    assert [sorted(ids.split(",")) for ids in sent] == [sorted(first), sorted(second)]
    form = {"csrf": token(admin), "tasks": sent[0], "name": "violet"}
    done = admin.post("/console/labels/web-strange/unfamiliar/name", data=form)
    assert done.status_code == 303
    assert "They are labelled" in admin.get(done.headers["location"]).text
    assert states(served, first) == {"annotated"}
    assert states(served, [*second, *drawn]) == {"candidate"}
    with served.context.database.read() as session:
        assert registry.get_model(session, "web-strange").classes[-1] == "violet"
        rows = session.exec(select(LabelRow).where(LabelRow.model == "web-strange")).all()
    assert [(r.value["classes"], r.source, r.split) for r in rows] == [(["violet"], "annotation", "train")] * 6
    known = client.get(f"/v1/samples/{rows[0].sample_id}").json()
    [about] = [o for o in known["models"] if o["model"] == "web-strange"]
    assert about["revisions"][0]["origins"] == ["group"]
    assert waits(served, "retrain.trigger", "web-strange")
    assert admin.post("/console/labels/web-strange/unfamiliar/name", data=form).status_code == 400, "named already"
    asked = visit("label")
    form = {"csrf": token(asked), "tasks": ",".join(second)}
    assert asked.post("/console/labels/web-strange/unfamiliar/name", data=form | {"name": "x"}).status_code == 403
    assert asked.post("/console/labels/web-strange/unfamiliar/ask", data=form).status_code == 303
    assert states(served, second) == {"queued"}
    assert waits(served, "bridge.push", "web-strange")
    assert client.get("/v1/models/web-strange/unfamiliar").json()[0]["waiting"] == 4


def test_objects_are_drawn_by_people_whatever_the_group_is_called(served: Served, client: httpx.Client) -> None:
    """A name has no boxes: the class is there at once, the tasks go to Label Studio."""
    with served.context.database.begin() as session:
        registry.create_model(session, "web-objects", task="detect", classes=["cat"], family="yolo")
    [ids] = tasks(served, "web-objects", (3,))
    body = {"tasks": ids, "class_name": " dog "}
    assert client.post("/v1/models/web-objects/unfamiliar/name", json=body).json() == {"labelled": 0, "asked": 3}
    assert states(served, ids) == {"queued"}
    assert client.get("/v1/models/web-objects").json()["classes"] == ["cat", "dog"]
    for bad in ("", "a\nb", "x" * 101):
        answer = client.post("/v1/models/web-objects/unfamiliar/name", json={"tasks": ids, "class_name": bad})
        assert_problem(answer, 400, "class name")
    assert_problem(client.post("/v1/models/web-objects/unfamiliar/ask", json={"tasks": []}), 400, "none of these")
    assert_problem(client.get("/v1/models/nope/unfamiliar"), 404, "unknown model")
    with served.client("label") as labeler:
        assert_problem(labeler.post("/v1/models/web-objects/unfamiliar/name", json=body), 403, "admin")


@pytest.mark.slow
def test_a_group_is_named_by_keyboard_and_the_page_fits(page: Page, served: Served, judged: Judged) -> None:
    """Light on a desk and dark on a phone, without findings of axe; an empty page says what comes here."""
    slug = f"web-far-{page.viewport_size['width'] if page.viewport_size else 0}"
    classifier_bundle(served.context, slug)
    tasks(served, slug, (5, 3))
    for path in (f"/labels/{slug}/unfamiliar", f"/labels/{SLUG}/unfamiliar", "/labels"):
        page.goto(f"{served.server.url}/console{path}", wait_until="load")
        found = Axe().run(page)
        assert not found.response["violations"], f"{path}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
    page.goto(f"{served.server.url}/console/labels/{slug}/unfamiliar")
    page.focus("#name1")
    page.keyboard.type("pink")
    page.keyboard.press("Enter")
    page.wait_for_url("**/unfamiliar?done=labelled")
    assert page.locator("section.panel").count() == 1
