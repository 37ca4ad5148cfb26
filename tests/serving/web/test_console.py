"""The console over plain HTTP: who gets in, what each key may see and do, and that every action is really done."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import judged_model
import pytest
from litestar.testing import RequestFactory
from shared_server import Served, version_of
from visits import Visit, token

from serving.auth import Keyring
from serving.web.session import FAILURES, Sessions
from sutdol import keys
from sutdol.context import Context
from sutdol.errors import AuthError, BusyError
from sutdol.tables import ApiKey, now
from tests.running_server import wait_for
from tests.tiny_models import classifier_bundle, coloured_png

PAGES = {
    "/console": "label",
    "/console/live": "label",
    "/console/labels": "label",
    "/console/training": "label",
    "/console/training/a-run": "label",
    "/console/training/a-run/part": "label",
    "/console/training/new?model=tiny": "admin",
    "/console/training/compare?run=a-run&run=b-run": "label",
    "/console/training/previews/a-sheet": "admin",
    "/console/models": "label",
    "/console/models/tiny": "label",
    "/console/models/tiny/versions/1": "label",
    "/console/decisions": "label",
    "/console/try": "predict",
    "/console/settings": "admin",
    "/console/settings/doctor": "admin",
    "/console/models/tiny/versions/1/promote": "admin",
    "/console/models/tiny/rollback": "admin",
    "/console/models/tiny/copy": "admin",
    "/console/models/tiny/versions/1/compare": "label",
    "/console/models/tiny/versions/1/trial": "admin",
    "/console/models/tiny/versions/1/reject": "admin",
    "/console/models/on-trial/trial/end": "admin",
    "/console/models/on-trial/versions/3/delete": "admin",
}
"""Every page and the least scope that sees it; a new page without a row is found by the test below."""
ELSEWHERE = {"evaluation", "sample", "datasets"}
"""Pages that need judged versions and data sets; test_judged_pages.py and test_dataset_pages.py say who sees them."""
FILES = {
    "/console/training/previews/{job_id:str}/sheet.jpg",
    "/console/samples/{sample_id:str}",
    "/console/models/{model:str}/versions/{version:int}/exports/{format:str}",
}
"""Addresses of files, which are not always there; their tests stand with what makes them."""


def test_every_page_has_a_row() -> None:
    """Authorisation that nobody wrote down is authorisation that nobody checked."""
    from serving.web import pages

    routes = set()
    for module in Path(next(iter(pages.__path__))).glob("[a-z]*.py"):
        if module.stem in ELSEWHERE:
            continue
        routes |= {"/console" + path.rstrip("/") for path in re.findall(r'@get\(\s*"([^"]*)"', module.read_text())}
    known = {_pattern(page) for page in PAGES}
    assert routes - FILES - judged_model.routes() == known


def _pattern(page: str) -> str:
    for shown, placed in (
        (r"(/models/)[a-z-]+", r"\1{model:str}"),
        (r"(/versions/)\d+", r"\1{version:int}"),
        (r"(/training/)a-run", r"\1{run_id:str}"),
        (r"(/previews/)a-sheet", r"\1{job_id:str}"),
        (r"\?.*", ""),
    ):
        page = re.sub(shown, placed, page)
    return page


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_shown_to_those_who_may_see_it(visit: Visit, page: str) -> None:
    """Labelers and predict-only keys see nothing they may not."""
    order = ["predict", "label", "admin"]
    for scope in order:
        status = visit(scope).get(page).status_code
        allowed = scope in (PAGES[page], "admin")
        assert status == (200 if allowed else 403), f"{scope} on {page}"


@pytest.mark.parametrize("page", PAGES)
def test_strangers_are_sent_to_the_log_in(served: Served, page: str) -> None:
    """Also with a cookie that somebody made up."""
    for cookie in ("", "12345678.9999999999.0", "x", "..", "12345678.abc." + "0" * 64):
        answer = httpx.get(served.server.url + page, cookies={"sutdol_session": cookie})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")


def test_pages_carry_the_headers_that_keep_foreign_code_out(visit: Visit) -> None:
    """Nothing inline, nothing from elsewhere, nothing kept in caches."""
    client = visit("admin")
    for page in PAGES:
        answer = client.get(page)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<[^>]+\s(style|on\w+)=", answer.text), page
        assert not re.search(r"<(script|style)>", answer.text), page
        assert not re.search(r'(src|href)="(https?:)?//', answer.text), page
        assert len(answer.content) < 150_000


def test_the_cookie_cannot_be_read_by_scripts_or_sent_by_other_sites(served: Served) -> None:
    """HttpOnly and SameSite."""
    answer = httpx.post(f"{served.server.url}/console/login", data={"key": served.keys["label"]})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_a_form_without_our_token_or_from_another_origin_does_nothing(served: Served, visit: Visit) -> None:
    """CSRF: the browser sends the cookie along, whoever made the form."""
    client = visit("admin")
    right = token(client)
    for path in ("/console/settings/keys", "/console/models/tiny/rollback", "/console/logout", "/console/language"):
        assert client.post(path, data={"name": "x"}).status_code == 403
        assert client.post(path, data={"name": "x", "csrf": "0" * 64}).status_code == 403
        foreign = {"Origin": "https://evil.example"}
        assert client.post(path, data={"name": "x", "csrf": right}, headers=foreign).status_code == 403
    assert client.post("/console/try", files={"image": b"x"}, data={"csrf": "no", "model": "tiny"}).status_code == 403
    assert client.get("/console").status_code == 200


def test_a_key_without_the_scope_cannot_act_by_post(visit: Visit) -> None:
    """The pages hide the buttons; the routes must not rely on that."""
    client = visit("label")
    data = {"csrf": token(client), "name": "x", "scope": "admin"}
    for path in (
        "/console/settings/keys",
        "/console/settings/keys/12345678/revoke",
        "/console/models/tiny/rollback",
        "/console/models/tiny/versions/1/promote",
        "/console/models/tiny/versions/1/rename",
        "/console/models/tiny/versions/1/reject",
        "/console/models/tiny/versions/1/delete",
        "/console/models/tiny/versions/1/trial",
        "/console/models/tiny/versions/1/compare",
        "/console/models/tiny/versions/1/exports/onnx",
        "/console/models/tiny/trial/end",
        "/console/models/tiny/copy",
    ):
        assert client.post(path, data=data).status_code == 403


async def test_wrong_keys_are_slowed_down(context: Context) -> None:
    """Guessing is hopeless, but it should not be free either; a right key has to wait, too, and another address need not."""
    with context.database.begin() as session:
        right = keys.create(session, "right", ["admin"])
    sessions = Sessions(Keyring(context.database), "secret", secure=False)
    here, there = (RequestFactory(port=port).get("/") for port in (1, 2))
    there.scope["client"] = ("10.0.0.9", 1)
    for _ in range(FAILURES):
        with pytest.raises(AuthError):
            await sessions.log_in(here, "sut_00000000_wrong")
    with pytest.raises(BusyError) as told:
        await sessions.log_in(here, right)
    assert told.value.status == 429
    assert 1 <= told.value.retry_after_s <= 61
    assert (await sessions.log_in(there, right)).value


def test_a_revoked_key_ends_its_session(served: Served, visit: Visit) -> None:
    """Whoever revokes a key means now."""
    with served.context.database.begin() as session:
        served.keys["leaving"] = keys.create(session, "leaving", ["admin"])
    client = visit("leaving")
    assert client.get("/console").status_code == 200
    with served.context.database.begin() as session:
        session.get_one(ApiKey, served.keys["leaving"].split("_")[1]).revoked_at = now()
    wait_for(lambda: client.get("/console").status_code == 303, "the session to end", within_s=5)


def test_a_training_is_started_and_cancelled(served: Served, visit: Visit) -> None:
    """One at a time for each model; what cannot be is said."""
    served.model("web-trained")
    client = visit("admin")
    data = {"csrf": token(client), "model": "web-trained", "preset": "fast", "epochs": "3"}
    started = client.post("/console/training", data=data)
    assert started.status_code == 303
    page = client.get(started.headers["location"]).text
    assert "preset fast" in page
    assert client.post("/console/training", data=data).status_code == 409
    assert client.post("/console/training", data=data | {"epochs": "many"}).status_code == 400
    client.post(f"{started.headers['location']}/cancel", data={"csrf": token(client)})
    assert "cancelled" in client.get(started.headers["location"]).text


def test_the_curves_of_a_run_are_drawn(visit: Visit) -> None:
    """Losses in one chart, scores in another, and every number in a table."""
    page = visit("label").get("/console/training/a-run").text
    assert page.count("<figure") == 2
    assert "val/accuracy" in page
    assert "over-fitting" in page


def test_promote_and_roll_back_ask_first_and_then_do_it(served: Served, visit: Visit) -> None:
    """Two steps with a record, and the result is the API's."""
    first = served.model("web-moved")
    second = classifier_bundle(served.context, "web-moved", promote=False)
    client = visit("admin")
    asked = client.get(f"/console/models/web-moved/versions/{second}/promote")
    assert f"Promote web-moved v{second}?" in asked.text
    done = client.post(f"/console/models/web-moved/versions/{second}/promote", data={"csrf": token(client)})
    assert (done.status_code, done.headers["location"]) == (303, "/console/models/web-moved")
    with served.client() as api:
        assert version_of(api, "web-moved") == second
        assert client.post("/console/models/web-moved/rollback", data={"csrf": token(client)}).status_code == 303
        assert version_of(api, "web-moved") == first
    page = client.get("/console/decisions?model=web-moved").text
    assert "rolled back" in page
    assert f"web-moved v{second}" in page


def test_what_cannot_be_done_is_said_on_a_page(visit: Visit) -> None:
    """With the status, the reason and the way back."""
    client = visit("admin")
    answer = client.post("/console/models/nope/rollback", data={"csrf": token(client)})
    assert answer.status_code == 404
    assert "unknown model &#39;nope&#39;" in answer.text
    assert 'href="/console"' in answer.text
    assert client.get("/console/models/tiny/versions/99").status_code == 404


def test_an_image_is_tried_and_logged_like_any_other(served: Served, visit: Visit) -> None:
    """What is tried here may be picked, too; the answer names its id."""
    client = visit("predict")
    data = {"csrf": token(client, "/console/try"), "model": "tiny"}
    answer = client.post("/console/try", data=data, files={"image": ("a.png", coloured_png("red"))})
    assert answer.status_code == 200
    found = re.search(r"<code>([0-9a-f-]{36})</code>", answer.text)
    assert found is not None
    assert "data:image/png;base64," in answer.text
    right = {"csrf": data["csrf"], "prediction_id": found[1], "right": "red"}
    thanks = client.post("/console/try/answer", data=right)
    assert f"Kept as feedback to {found[1]}." in thanks.text
    assert client.post("/console/try/answer", data=right | {"right": "purple"}).status_code == 400
    broken = client.post("/console/try", data=data, files={"image": ("a.png", b"no image")})
    assert broken.status_code == 415
    assert "expected JPEG, PNG, WebP or GIF" in broken.text


def test_a_key_is_shown_once_and_can_be_revoked(served: Served, visit: Visit) -> None:
    """As on the command line."""
    client = visit("admin")
    made = client.post("/console/settings/keys", data={"csrf": token(client), "name": "camera", "scope": "predict"})
    key = re.findall(r"sut_[0-9a-f]{8}_[\w-]+", made.text)[0]
    assert key not in client.get("/console/settings").text
    assert httpx.get(f"{served.server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    key_id = key.split("_")[1]
    client.post(f"/console/settings/keys/{key_id}/revoke", data={"csrf": token(client)})
    wait_for(
        lambda: (
            httpx.get(f"{served.server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401
        ),
        "the key to be refused",
        within_s=5,
    )


def test_a_kept_image_is_shown_to_whoever_is_logged_in(served: Served, visit: Visit) -> None:
    """And to nobody else; another one is not found."""
    with served.client() as api:
        for seed in range(12):  # half of them are drawn
            api.post("/v1/predict/tiny", content=coloured_png(seed=seed), headers={"Content-Type": "image/png"})
    client = visit("label")
    feed = client.get("/console").text
    path = re.findall(r'src="(/console/samples/[0-9a-f]{64})/small"', feed)[0]
    assert client.get(path).headers["content-type"] == "image/png"
    assert client.get(f"/console/samples/{'0' * 64}").status_code == 404
    assert httpx.get(served.server.url + path).status_code == 303


def test_the_language_follows_the_browser_and_can_be_switched(visit: Visit) -> None:
    """Korean for Korean browsers, and the switch wins."""
    client = visit("label")
    korean = {"Accept-Language": "ko-KR,ko;q=0.9,en;q=0.5"}
    assert '<html lang="ko">' in client.get("/console", headers=korean).text
    assert "실시간" in client.get("/console", headers=korean).text
    switched = client.post(
        "/console/language", data={"csrf": token(client), "language": "ko", "back": "/console/labels"}
    )
    assert switched.headers["location"] == "/console/labels"
    assert '<html lang="ko">' in client.get("/console").text
    client.post("/console/language", data={"csrf": token(client), "language": "en", "back": "//evil.example"})
    assert '<html lang="en">' in client.get("/console", headers=korean).text


def test_a_hundred_readers_cost_one_rendering(visit: Visit) -> None:
    """The moving part is the same for all who ask within a tick."""
    client = visit("label")
    first = client.get("/console/live").text
    assert client.get("/console/live").text == first
