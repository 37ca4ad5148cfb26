"""Visitors of the console: one with cookies for each kind of key, and a real browser; and what there is to see."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import httpx
import pytest
from judged_model import Judged, judge
from playwright.sync_api import Browser, Page, sync_playwright
from shared_server import Served
from visits import Visit

from sutdol import rollouts
from sutdol.tables import Job, RunCandidate, RunProgress, TrainingRun
from tests.conftest import missing
from tests.tiny_models import classifier_bundle

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session", autouse=True)
def _run(served: Served) -> None:
    """Two finished trainings with two epochs each, `a-run` and `b-run`, and a sheet of augmented images that failed."""
    with served.context.database.begin() as session:
        for run_id, lift in (("a-run", 0.0), ("b-run", 0.1)):
            hints = ["over-fitting: stop earlier"]
            run = TrainingRun(
                id=run_id, model="tiny", family="timm", params={}, cause="by hand", state="done", hints=hints
            )
            session.add(run)
            session.add(RunCandidate(run_id=run_id, number=1, family="timm", params={}, state="chosen", epochs=2))
            for epoch in (1, 2):
                metrics = {"train/loss": 1 / epoch, "val/loss": 1.0 * epoch, "val/accuracy": 0.5 + epoch / 10 + lift}
                metrics |= {"machine/images_per_s": 321.0, "machine/cores": 1.5, "machine/memory_mb": 812.0}
                session.add(RunProgress(run_id=run_id, candidate=1, attempt=1, epoch=epoch, metrics=metrics))
        payload = {"model": "tiny", "params": {"rotate_deg": 7.5}, "images": 4, "count": 6, "family": "timm"}
        session.add(
            Job(id="a-sheet", kind="retrain.preview", queue="batch", payload=payload, state="failed", error="no images")
        )


@pytest.fixture(scope="session", autouse=True)
def _trial(served: Served) -> None:
    """A model `on-trial`: version 1 is the champion, 2 the challenger, 3 stands by."""
    for promote in (True, False, False):
        classifier_bundle(served.context, "on-trial", promote=promote)
    with served.context.database.begin() as session:
        rollouts.start(session, "on-trial", 2, mode="shadow", share=0.5, max_disagreement=0.0, who="test")


@pytest.fixture(scope="session")
def judged(served: Served) -> Judged:
    """The model `web-judged` with labelled images, two versions, and an evaluation of one beside the other."""
    return judge(served)


@pytest.fixture
def visit(served: Served) -> Iterator[Visit]:
    """`visit("admin")` is a client that has logged in with a key of that scope."""
    opened: list[httpx.Client] = []

    def log_in(scope: str) -> httpx.Client:
        client = httpx.Client(base_url=served.server.url, timeout=30)
        opened.append(client)
        done = client.post("/console/login", data={"key": served.keys[scope]})
        assert (done.status_code, done.headers["location"]) == (303, "/console")
        return client

    yield log_in
    for client in opened:
        client.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; a failure in CI and a skip elsewhere when it is not installed."""
    program = shutil.which("chromium")
    if program is None:
        missing("Chromium is not installed: sudo apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=["light-desk", "dark-phone"])
def page(browser: Browser, served: Served, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Logged in as admin; fails the test when anything was asked of another host or reported on the browser's console."""
    scheme, width = request.param
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 850}, locale="en-GB")
    opened = context.new_page()
    strange: list[str] = []
    opened.on("request", lambda r: None if r.url.startswith((served.server.url, "data:")) else strange.append(r.url))
    opened.on("console", lambda m: strange.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda e: strange.append(str(e)))
    opened.goto(f"{served.server.url}/")
    opened.fill("#key", served.keys["admin"])
    opened.press("#key", "Enter")
    opened.wait_for_url("**/console")
    yield opened
    context.close()
    assert strange == []
