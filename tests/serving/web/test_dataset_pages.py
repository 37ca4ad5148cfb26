"""The screen Datasets, over plain HTTP and in a browser: from an empty model to images that were looked at and compared."""

from __future__ import annotations

import html
import io
import re
import zipfile
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from judged_model import IMAGES, SLUG, Judged
from playwright.sync_api import Page
from shared_server import Served, assert_problem
from visits import Visit, token

from retrain.jobs import HANDLERS
from sutdol.jobs import worker
from tests.voc_folder import photo

JOBS = {kind: HANDLERS[kind] for kind in ("retrain.import", "retrain.freeze", "retrain.export")}


def folder(path: Path, count: int) -> Path:
    for i in range(count):
        file = path / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photo(i))
    return path


def zipped(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for i in range(count):
            out.writestr(f"{'cat' if i % 2 else 'dog'}/{i}.png", photo(i))
    return buffer.getvalue()


def test_a_data_set_comes_in_is_frozen_looked_at_compared_and_carried_away(
    served: Served, visit: Visit, client: httpx.Client
) -> None:
    """The whole screen without JavaScript: every step is a plain form."""
    admin = visit("admin")
    csrf = token(admin)
    made = admin.post("/console/datasets", data={"csrf": csrf, "name": "web-pets", "task": "classify"})
    assert (made.status_code, made.headers["location"]) == (303, "/console/datasets/web-pets")
    assert "No labelled images yet" in admin.get("/console/datasets/web-pets").text
    for count, name in ((20, "first"), (30, "second")):
        form = {"csrf": csrf, "name": name, "format": "", "memo": "by hand"}
        sent = admin.post("/console/datasets/web-pets/imports", data=form, files={"file": ("d.zip", zipped(count))})
        assert sent.status_code == 303, sent.text
        assert "import" in admin.get("/console/datasets/web-pets/jobs").text
        worker.run_pending(served.context, JOBS)
        frozen = admin.post("/console/datasets/web-pets/versions", data={"csrf": csrf, "name": name})
        assert frozen.status_code == 303
        worker.run_pending(served.context, JOBS)
    versions = client.get("/v1/models/web-pets/dataset-versions").json()
    assert [(v["number"], v["name"]) for v in versions] == [(2, "second"), (1, "first")]
    page = admin.get("/console/datasets/web-pets").text
    for split, n in versions[0]["counts"]["classes"]["train"].items():
        assert f'class={split}&amp;split=train">{n}</a>' in page
    changed = admin.get("/console/datasets/web-pets/versions/2/diff?since=1").text
    assert len(re.findall(r'<li><a href="/console/sample/', changed)) == 10
    assert "30" in admin.get("/console/datasets/web-pets/versions/2").text
    said = {"csrf": csrf, "name": "checked", "tags": "b, a", "memo": "m"}
    assert admin.post("/console/datasets/web-pets/versions/2/describe", data=said).status_code == 303
    assert client.get("/v1/models/web-pets/dataset-versions").json()[0]["tags"] == ["a", "b"]
    assert (
        admin.post(
            "/console/datasets/web-pets/versions/2/export", data={"csrf": csrf, "format": "imagefolder"}
        ).status_code
        == 303
    )
    worker.run_pending(served.context, JOBS)
    [link] = re.findall(
        r'href="(/console/datasets/web-pets/jobs/[^"]+/file)"', admin.get("/console/datasets/web-pets").text
    )
    names = zipfile.ZipFile(io.BytesIO(admin.get(link).content)).namelist()
    assert sum(name.endswith(".png") for name in names) == 30
    assert visit("label").get(link).status_code == 403


def test_what_cannot_be_imported_is_said(visit: Visit, judged: Judged) -> None:
    """And a form that is not ours, or of somebody who may not, is refused before the file is read."""
    admin, labeler = visit("admin"), visit("label")
    path, form = f"/console/datasets/{SLUG}/imports", {"csrf": token(admin)}
    assert admin.post(path, data=form, files={"file": ("d.zip", b"no zip")}).status_code == 415
    assert admin.post(path, data=form, files={"other": ("d.zip", b"PK")}).status_code == 400
    assert admin.post(path, data={"csrf": "no"}, files={"file": ("d.zip", zipped(1))}).status_code == 403
    theirs = {"csrf": token(labeler)}
    assert labeler.post(path, data=theirs, files={"file": ("d.zip", zipped(1))}).status_code == 403
    for act in (
        f"/console/datasets/{SLUG}/versions",
        f"/console/datasets/{SLUG}/versions/1/describe",
        "/console/datasets",
    ):
        assert labeler.post(act, data=theirs).status_code == 403
        assert admin.post(act, data={"csrf": "0" * 64}).status_code == 403
    odd = {"name": "Not A Slug", "task": "classify"}
    assert admin.post("/console/datasets", data=form | odd).status_code == 400
    assert admin.get("/console/datasets/nope").status_code == 404
    assert admin.get(f"/console/datasets/{SLUG}/versions/9").status_code == 404


@pytest.mark.parametrize(
    "conditions", [{}, {"class": "red"}, {"split": "test"}, {"split": "train", "class": "blue"}, {"arm": "drawn"}]
)
def test_every_image_is_found_once_whatever_the_conditions(
    client: httpx.Client, judged: Judged, conditions: dict[str, str]
) -> None:
    """Page by page, in a frozen version and among the labels of now."""
    for version in ({"version": "1"}, {}):
        everything = client.get(f"/v1/models/{SLUG}/samples", params=version | {"limit": 500}).json()["items"]
        assert len(everything) == IMAGES
        expected = {
            i["sample_id"]
            for i in everything
            if conditions.get("class") in (None, *i["label"]["classes"])
            and conditions.get("split") in (None, i["split"])
            and conditions.get("arm") in (None, i["arm"])
        }
        found: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = client.get(f"/v1/models/{SLUG}/samples", params=version | conditions | after | {"limit": 7}).json()
            found += [i["sample_id"] for i in page["items"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert sorted(found) == sorted(expected)
        assert len(found) == len(set(found))


def test_wrong_and_unsure_images_go_by_the_newest_evaluation(
    client: httpx.Client, visit: Visit, judged: Judged
) -> None:
    """Surest mistakes first, or least sure first, as the evaluation itself tells."""
    told = client.get(
        f"/v1/evaluations/{judged.evaluation_id}/items", params={"correct": False, "order": "-confidence"}
    )
    wrong = client.get(f"/v1/models/{SLUG}/samples", params={"version": 1, "judged": "wrong"}).json()
    assert wrong["evaluation_id"] == judged.evaluation_id
    assert {i["sample_id"] for i in wrong["items"]} == {i["sample_id"] for i in told.json()["items"]}
    unsure = client.get(f"/v1/models/{SLUG}/samples", params={"judged": "unsure", "limit": 20}).json()
    sure = [i["answer"]["confidence"] for i in unsure["items"]]
    assert sure == sorted(sure)
    more = client.get(f"/v1/models/{SLUG}/samples", params={"judged": "unsure", "after": unsure["next"]}).json()
    assert len(unsure["items"]) + len(more["items"]) == int(IMAGES * 0.8)
    page = html.unescape(visit("label").get(f"/console/datasets/{SLUG}/images?version=1&judged=wrong").text)
    assert len(re.findall(r'<li class="wrong">', page)) == len(wrong["items"])
    empty = visit("label").get(f"/console/datasets/{SLUG}/images?version=1&judged=wrong&split=val").text
    assert "No version was judged on these images yet" in empty
    assert_problem(client.get(f"/v1/models/{SLUG}/samples", params={"judged": "odd"}), 400, "wrong or unsure")
    assert_problem(client.get(f"/v1/models/{SLUG}/samples", params={"split": "odd"}), 400, "train, val, test")


def test_models_are_named_over_the_api(client: httpx.Client) -> None:
    """A model begins with its data, without a shell on the server."""
    made = client.post("/v1/models", json={"name": "api-named", "task": "detect"})
    assert (made.status_code, made.json()["family"]) == (201, "yolo")
    assert_problem(client.post("/v1/models", json={"name": "api-named", "task": "detect"}), 409, "already")
    assert_problem(client.post("/v1/models", json={"name": "x", "task": "dance"}), 400, "classify, multilabel, detect")


@pytest.mark.slow
def test_a_folder_is_sent_by_the_browser_and_the_pages_fit(
    page: Page, served: Served, judged: Judged, tmp_path: Path
) -> None:
    """It is packed there, so nobody has to make a zip; light on a desk and dark on a phone, without findings of axe."""
    slug = f"web-sent-{page.viewport_size['width'] if page.viewport_size else 0}"
    with served.client() as api:
        api.post("/v1/models", json={"name": slug, "task": "classify"})
    page.goto(f"{served.server.url}/console/datasets/{slug}")
    page.set_input_files("#folder", folder(tmp_path / "pets", 12))
    page.get_by_text("12 files").wait_for()
    page.fill("#name", "from the browser")
    page.get_by_role("button", name="Import").press("Enter")
    page.wait_for_selector(".jobs li")
    worker.run_pending(served.context, JOBS)
    with served.client() as api:
        [made] = api.get(f"/v1/models/{slug}/imports").json()
    assert (made["name"], made["report"]["imported"]) == ("from the browser", 12)
    page.get_by_text("These labels were not frozen yet").wait_for()  # the page has looked again by itself
    base = f"/datasets/{SLUG}"
    for path in (
        "/datasets",
        f"/datasets/{slug}",
        base,
        f"{base}/versions/1",
        f"{base}/images",
        f"{base}/versions/1/diff?since=1",
    ):
        page.goto(f"{served.server.url}/console{path}", wait_until="load")
        found = Axe().run(page)
        assert not found.response["violations"], f"{path}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
