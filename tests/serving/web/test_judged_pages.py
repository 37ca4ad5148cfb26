"""The pages about images: evaluations and samples, over plain HTTP. Every number on them is the API's."""

from __future__ import annotations

import html
import re

import httpx
import pytest
from judged_model import IMAGES, PAGES, SLUG, Judged
from shared_server import Served, assert_problem
from visits import Visit, token

from sutdol.monitor import guarantee
from sutdol.tables import Job, Model


def address(page: str, judged: Judged) -> str:
    page = page.replace("EVALUATION", judged.evaluation_id).replace("SAMPLE", judged.sample_id)
    return f"{page}?since=1" if page.endswith("/diff") else page


def test_only_those_who_label_see_images(visit: Visit, judged: Judged, served: Served) -> None:
    """Predict-only keys see nothing they may not, strangers nothing at all; and all of it is small and without foreign code."""
    clients = {scope: visit(scope) for scope in ("predict", "label", "admin")}
    for page, least in PAGES.items():
        path = address(page, judged)
        for scope, client in clients.items():
            answer = client.get(path)
            assert answer.status_code == (200 if scope in (least, "admin") else 403), f"{scope} on {page}"
        assert httpx.get(served.server.url + path).status_code == 303, page
        if answer.headers["content-type"].startswith("text/html"):
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert not re.search(r"<[^>]+\s(style|on\w+)=", answer.text), page
            assert not re.search(r"<(script|style)>", answer.text), page
            assert len(answer.content) < 150_000, page


def test_an_evaluation_shows_what_the_api_tells(visit: Visit, client: httpx.Client, judged: Judged) -> None:
    """Headline with its interval, the comparison, every class, and the sweep."""
    report = client.get(f"/v1/evaluations/{judged.evaluation_id}/report.json").json()
    page = html.unescape(visit("label").get(f"/console/evaluation/{judged.evaluation_id}").text)
    right = report["analysis"]["headline"]["accuracy"]
    low, high = right["interval"]
    assert f"{right['value'] * 100:.1f} %" in page
    assert f"{low * 100:.1f} % – {high * 100:.1f} %" in page
    assert f"{report['comparison']['fixed']} are right only with v1" in page
    for row in report["analysis"]["per_class"]:
        assert f'>{row["name"]}</a></th><td class="n">{row["n"]}</td>' in page
    listed = visit("label").get(f"/console/evaluation?model={SLUG}").text
    assert f"{right['value'] * 100:.1f} %" in listed
    study = client.get(f"/v1/models/{SLUG}/versions/1/thresholds").json()
    part = visit("label").get(f"/console/evaluation/{judged.evaluation_id}/sweep?threshold=5&temperature=3").text
    assert f"{study['rejected'][3][5] * 100:.1f} %" in part
    assert f"{study['accuracy'][3][5] * 100:.1f} %" in part


def test_a_cell_of_the_confusion_matrix_leads_to_its_images(visit: Visit, client: httpx.Client, judged: Judged) -> None:
    """Exactly as many as the number says, for every cell."""
    viewer = visit("label")
    page = viewer.get(f"/console/evaluation/{judged.evaluation_id}").text
    cells = re.findall(r'class="(?:hit|miss) h\d"><a href="([^"]+)">(\d+)</a>', page)
    assert sum(int(n) for _, n in cells) == int(IMAGES * 0.8)
    for link, n in cells:
        shown = viewer.get(html.unescape(link)).text
        assert len(re.findall(r'<li class="(?:right|wrong)">', shown)) == int(n), link
    wrong = viewer.get(f"/console/evaluation/{judged.evaluation_id}/items?right=no").text
    counted = client.get(f"/v1/evaluations/{judged.evaluation_id}/items", params={"correct": False}).json()["count"]
    assert len(re.findall(r'<li class="wrong">', wrong)) == counted


def test_an_evaluation_is_ordered_and_followed(served: Served, visit: Visit, judged: Judged) -> None:
    """The page waits for the worker and says what it waits for; an order that makes no sense is refused on a page."""
    client = visit("admin")
    form = {"csrf": token(client), "model": SLUG, "version": "1", "split": "val"}
    sent = client.post("/console/evaluation", data=form)
    assert sent.status_code == 303
    waiting = client.get(sent.headers["location"]).text
    assert "waits for a worker" in waiting
    assert client.post("/console/evaluation", data=form | {"split": "all"}).status_code == 400
    assert client.post("/console/evaluation", data=form | {"version": "x"}).status_code == 400
    assert client.post("/console/evaluation", data=form | {"csrf": "no"}).status_code == 403
    with served.context.database.begin() as session:
        session.delete(session.get_one(Job, sent.headers["location"].rsplit("/", 1)[1]))


def test_labelling_without_people_is_paused_allowed_and_asked_for(
    served: Served, visit: Visit, client: httpx.Client, judged: Judged
) -> None:
    """The card on the page and the routes of the API are one switch."""
    admin, labeler = visit("admin"), visit("label")
    form = {"csrf": token(admin), "model": SLUG}
    assert labeler.post("/console/evaluation/auto-labels", data=form | {"act": "pause"}).status_code == 403
    assert admin.post("/console/evaluation/auto-labels", data=form | {"act": "pause"}).status_code == 303
    assert client.get(f"/v1/models/{SLUG}/auto-labels").json()["held"] is True
    assert "paused by people" in admin.get(f"/console/evaluation?model={SLUG}").text
    with served.context.database.read() as session:
        assert session.get_one(Model, SLUG).auto_labels_held
    assert client.post(f"/v1/models/{SLUG}/auto-labels/resume").json()["held"] is False
    asked = admin.post("/console/evaluation/auto-labels", data=form | {"act": "apply", "error": "2,5"})
    assert asked.status_code == 303
    with served.context.database.begin() as session:
        again = guarantee.request(session, SLUG, target=0.025)
    assert again is None, "the console's request waits already"
    assert admin.post("/console/evaluation/auto-labels", data=form | {"act": "apply", "error": "x"}).status_code == 400
    assert_problem(client.post("/v1/models/nope/auto-labels/pause"), 404, "unknown model")


def test_everything_known_about_one_image_is_on_its_page(visit: Visit, client: httpx.Client, judged: Judged) -> None:
    """Label, task with the way to Label Studio, revisions, prediction, and the data sets it is in."""
    known = client.get(f"/v1/samples/{judged.sample_id}").json()
    [about] = [o for o in known["models"] if o["model"] == SLUG]
    page = visit("label").get(f"/console/sample/{judged.sample_id}").text
    assert about["label_task"]["studio_url"].endswith("/projects/7/data?task=42")
    assert about["label_task"]["studio_url"] in page
    assert len(about["revisions"]) == 2
    for words in ("drawn by chance", "25.0 %", "4.5 s", "70.0 %", "80.0 %", "1.5 σ", "data 1"):
        assert words in page, words
    assert about["dataset_versions"][0]["split"] == "train"
    small = client.get(f"/v1/samples/{judged.sample_id}/picture", params={"side": 32})
    assert small.headers["content-type"] == "image/jpeg"
    whole = client.get(f"/v1/samples/{judged.sample_id}/picture")
    assert len(small.content) < len(whole.content)
    assert_problem(client.get(f"/v1/samples/{judged.sample_id}/picture", params={"side": 1}), 400, "16 to 2048")
    assert_problem(client.get(f"/v1/samples/{'0' * 64}"), 404, "no sample")
    assert_problem(client.get(f"/v1/samples/{'0' * 64}/picture"), 404, "not kept")
    assert visit("label").get("/console/sample/nope").status_code == 404


@pytest.mark.parametrize(
    "path", ["/console/evaluation/nope", "/console/evaluation/nope/items", "/console/samples/x/small"]
)
def test_what_is_not_there_is_said(visit: Visit, path: str) -> None:
    """With the status of the API."""
    assert visit("label").get(path).status_code == 404
