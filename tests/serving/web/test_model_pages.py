"""What people do to versions in the console: approve, reject, try, compare, carry away, delete."""

from __future__ import annotations

import re

import httpx
import numpy as np
from shared_server import Served, assert_problem, version_of
from visits import Visit, token

from retrain import datasets
from retrain.formats import Record
from retrain.jobs import HANDLERS
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.tables import Decision, ModelVersion
from sutdol.types import Label
from tests.running_server import wait_for
from tests.tiny_models import CLASSES, classifier_bundle, classifier_onnx

TEXT = "Passed: better by 3.0 points.\noverall: 93.0 % against 90.0 %"


def _waiting(served: Served, slug: str) -> int:
    """A model whose version 2 has passed the gate and waits for a person."""
    served.model(slug)
    version = classifier_bundle(served.context, slug, promote=False)
    with served.context.database.begin() as session:
        session.add(
            Decision(
                model=slug,
                kind="gate",
                verdict="approve",
                candidate=version,
                champion=1,
                text=TEXT,
                record={},
                who="job 1",
            )
        )
    return version


def test_what_waits_for_a_person_says_so_and_is_approved(served: Served, visit: Visit) -> None:
    """The gate's words stand beside the button, and afterwards nothing waits."""
    version = _waiting(served, "to-approve")
    admin, labeler = visit("admin"), visit("label")
    assert "waits for approval" in admin.get("/console/models").text
    page = labeler.get("/console/models/to-approve").text
    assert "Passed: better by 3.0 points." in page
    assert "/promote" not in page
    assert f"Approve v{version}" in admin.get("/console/models/to-approve").text
    asked = admin.get(f"/console/models/to-approve/versions/{version}/promote").text
    assert "overall: 93.0 % against 90.0 %" in asked
    admin.post(f"/console/models/to-approve/versions/{version}/promote", data={"csrf": token(admin)})
    with served.client() as api:
        assert version_of(api, "to-approve") == version
        assert api.get("/v1/decisions", params={"model": "to-approve", "waiting": True}).json() == []
    assert "Approve v" not in admin.get("/console/models/to-approve").text


def test_what_is_rejected_stays_in_the_record_and_out_of_service(served: Served, visit: Visit) -> None:
    """With the reason and the key that said so; neither the console nor the API promotes it afterwards."""
    version = _waiting(served, "to-reject")
    admin = visit("admin")
    path = f"/console/models/to-reject/versions/{version}"
    with served.client() as api:
        assert len(api.get("/v1/decisions", params={"model": "to-reject", "waiting": True}).json()) == 1
        done = admin.post(f"{path}/reject", data={"csrf": token(admin), "reason": "labels of line 2 are wrong"})
        assert (done.status_code, done.headers["location"]) == (303, path)
        assert "rejected by hand: labels of line 2 are wrong" in admin.get(path).text
        decided = api.get("/v1/decisions", params={"model": "to-reject"}).json()[0]
        assert (decided["kind"], decided["verdict"]) == ("gate", "refuse")
        assert decided["who"].startswith("key ")
        assert admin.post(f"{path}/promote", data={"csrf": token(admin)}).status_code == 409
        assert_problem(api.post(f"/v1/models/to-reject/versions/{version}/rejection"), 409, "only a waiting version")
        assert_problem(api.post("/v1/models/to-reject/versions/1/rejection"), 409, "is the champion")


def test_a_challenger_is_tried_watched_and_taken_away(served: Served, visit: Visit) -> None:
    """The page's numbers are those of the API's rollout."""
    served.model("tried")
    version = classifier_bundle(served.context, "tried", promote=False)
    admin = visit("admin")
    data = {"csrf": token(admin), "mode": "canary", "share": "12,5", "max_disagreement": "20"}
    path = f"/console/models/tried/versions/{version}/trial"
    assert admin.post(path, data=data | {"share": "lots"}).status_code == 400
    assert admin.post(path, data=data).headers["location"] == "/console/models/tried"
    with served.client() as api:
        trial = api.get("/v1/models/tried/rollout").json()
        assert (trial["version"], trial["mode"], trial["share"]) == (version, "canary", 0.125)
        page = admin.get("/console/models/tried").text
        assert "On trial" in page
        assert "12.5 %" in page
        assert admin.post("/console/models/tried/trial/end", data={"csrf": token(admin)}).status_code == 303
        assert api.get("/v1/models/tried/rollout").status_code == 404
    assert "On trial" not in admin.get("/console/models/tried").text


def test_deleting_shows_what_is_lost_and_wants_the_name_typed(served: Served, visit: Visit) -> None:
    """Twice asked: a page with what goes, and words that nobody types by accident."""
    served.model("thinned")
    version = classifier_bundle(served.context, "thinned", promote=False)
    admin = visit("admin")
    path = f"/console/models/thinned/versions/{version}"
    page = admin.get(f"{path}/delete").text
    confirm = re.findall(r'name="confirm" value="([0-9a-f]+)"', page)[0]
    assert "could still be promoted" in page
    data = {"csrf": token(admin), "confirm": confirm, "typed": "thinned"}
    assert admin.post(f"{path}/delete", data=data).status_code == 400
    assert admin.post(f"{path}/delete", data=data | {"typed": f"thinned v{version}", "confirm": "x"}).status_code == 409
    assert admin.post(f"{path}/delete", data=data | {"typed": f"thinned v{version}"}).status_code == 303
    page = admin.get(path)
    assert page.status_code == 200
    assert "deleted" in page.text
    assert admin.get("/console/models/thinned/versions/1/delete").status_code == 409


def test_a_version_is_carried_away_from_its_page(served: Served, visit: Visit) -> None:
    """Every form has a line; one that cannot be had says why."""
    served.model("packed")
    admin, path = visit("admin"), "/console/models/packed/versions/1"
    with served.client() as api:
        states = api.get("/v1/models/packed/versions/1/exports").json()
        assert {e["format"] for e in states} >= {"onnx", "torchscript", "openvino"}
        assert {e["state"] for e in states} == {"none"}
    for form in ("onnx", "torchscript"):
        assert admin.post(f"{path}/exports/{form}", data={"csrf": token(admin)}).status_code == 303
    assert "queued" in admin.get(path).text
    worker.run_pending(served.context, {"retrain.convert": HANDLERS["retrain.convert"]})
    page = admin.get(path).text
    assert "not available because" in page
    assert "Download onnx" in page
    assert admin.get(f"{path}/exports/onnx").content[:2] == b"PK"
    assert admin.get(f"{path}/exports/coreml").status_code == 404
    assert httpx.get(f"{served.server.url}{path}/exports/onnx").status_code == 303


def test_before_and_after_are_shown_on_the_same_images(served: Served, visit: Visit) -> None:
    """A version that is worse: what it broke is there to be looked at, with the numbers of the API."""
    served.model("twice")
    worse = classifier_bundle(
        served.context, "twice", onnx_bytes=classifier_onnx(sharpness=-8.0), golden="none", promote=False
    )
    rng, records = np.random.default_rng(0), []
    for i in range(30):
        rgb = rng.integers(0, 40, (24, 24, 3), np.uint8)
        rgb[:, :, i % 3] += 150
        records.append(Record(f"{i}.png", Label(classes=[CLASSES[i % 3]]), data=encode_png(rgb)))
    datasets.import_records(served.context, "twice", records, ratios=(0.2, 0.2, 0.6))
    admin, path = visit("admin"), f"/console/models/twice/versions/{worse}/compare"
    assert "not judged side by side" in admin.get(path).text
    assert admin.post(path, data={"csrf": token(admin), "against": "1"}).headers["location"] == f"{path}?against=1"
    assert "running" in admin.get(path).text
    worker.run_pending(served.context, {"retrain.evaluate": HANDLERS["retrain.evaluate"]})
    with served.client() as api:
        made = api.get("/v1/models/twice/evaluations").json()[-1]
        newest = next(e for e in api.get("/v1/models/twice/evaluations").json() if e["against"] == 1)
        found = api.get(f"/v1/evaluations/{newest['id']}/comparison", params={"change": "broken"}).json()
        assert found["counts"]["broken"] == found["count"] > 0
        assert sum(found["counts"].values()) == found["n"]
        assert_problem(api.get(f"/v1/evaluations/{newest['id']}/comparison?change=x"), 400, "both_wrong")
        assert made["model"] == "twice"
    page = admin.get(f"{path}?against=1&change=broken").text
    assert len(re.findall(r'src="/console/samples/[0-9a-f]{64}"', page)) == min(found["count"], 24)
    assert f"newly wrong {found['count']}" in page
    assert f"{found['difference'] * 100:+.1f} points" in page


def test_many_versions_are_shown_page_by_page(served: Served, visit: Visit) -> None:
    """Keyset: the next page begins after the last number of this one."""
    served.model("grown")
    with served.context.database.begin() as session:
        first = session.get_one(ModelVersion, ("grown", 1))
        values = first.model_dump(exclude={"version", "name"})
        session.add_all([ModelVersion(**values, version=n, name=f"grown v{n}") for n in range(2, 121)])
    client = visit("label")
    page = client.get("/console/models/grown")
    assert len(page.content) < 150_000
    numbers = []
    while True:
        numbers += [int(n) for n in re.findall(r'<th scope="row"><a [^>]*>v(\d+)</a>', page.text)]
        older = re.findall(r'href="(/console/models/grown\?before=\d+)"', page.text)
        if not older:
            break
        page = client.get(older[0])
    assert numbers == list(range(120, 0, -1))


def test_the_pages_follow_what_other_replicas_do(served: Served, visit: Visit) -> None:
    """A promotion through the API is on the page with the next look."""
    served.model("moved-elsewhere")
    version = classifier_bundle(served.context, "moved-elsewhere", promote=False)
    client = visit("label")
    with served.client() as api:
        api.post(f"/v1/models/moved-elsewhere/versions/{version}:promote")
    wait_for(lambda: f"v{version}" in client.get("/console/models").text, "the page to show it")
