"""A labeler at the page: log in, see the most valuable task with the model's answer and the reason, change it, submit.

Debian's Chromium, driven by Playwright, against the real Label Studio, with images and webhook from our own routes. A picture
of what the labeler saw is kept in `build/screenshots`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bridge_rows import add_model, add_sample, add_task
from bridge_server import serving_routes
from bridge_steps import label, project, push, revisions, wait_until

from labeling_bridge.jobs import HANDLERS
from sutdol import images
from sutdol.context import Context
from sutdol.jobs.worker import run_pending
from tests.conftest import missing
from tests.studio_fixture import StudioServer
from tests.tiny_models import coloured_png

pytestmark = [pytest.mark.slow, pytest.mark.studio, pytest.mark.timeout(300)]
CHROMIUM = Path("/usr/bin/chromium")
PICTURES = Path(__file__).parents[2] / "build" / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        missing(f"no {CHROMIUM}: sudo apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def served(real_studio: StudioServer, tmp_path: Path) -> Iterator[Context]:
    with serving_routes(real_studio, tmp_path / "home") as context:
        yield context


@pytest.fixture
def page(browser: Any, real_studio: StudioServer) -> Iterator[Any]:
    """A page of a labeler who has just logged in."""
    email, password = real_studio.person()
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE_MS)
    opened.goto(f"{real_studio.url}/user/login/", wait_until="domcontentloaded")
    opened.fill("input[name=email]", email)
    opened.fill("input[name=password]", password)
    opened.click("button[type=submit]")
    opened.wait_for_url(lambda url: "login" not in url, wait_until="domcontentloaded")
    yield opened
    opened.close()


def coloured(name: str, side_px: int = 200) -> images.Rgb:
    return images.decode(coloured_png(name, side_px=side_px, seed=1))


def open_stream(page: Any, context: Context, slug: str, reason: str) -> None:
    """The label stream as its link opens it; returns when the task, the image and the reason are there."""
    base = context.settings.studio_url
    page.goto(f"{base}/projects/{project(context, slug).project_id}/data?labeling=1", wait_until="domcontentloaded")
    dismiss(page)
    page.get_by_text(reason).first.wait_for()
    page.locator("canvas").first.wait_for()


def dismiss(page: Any) -> None:
    """The project's instructions are shown before the first task."""
    page.locator("text=Labeling Instructions").first.wait_for()
    page.keyboard.press("Escape")


def picture_of(page: Any, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(PICTURES / f"{name}.png"))


def arrive(context: Context) -> None:
    """The webhook's job has come and was done."""
    wait_until(lambda: run_pending(context, {"bridge.hint": HANDLERS["bridge.hint"]}) > 0)


def test_a_class_is_corrected_in_the_browser_and_the_label_arrives(served, page):
    """Everything else is worth nothing if this does not work."""
    slug = StudioServer.slug()
    add_model(served, slug, "classify", ["red", "green", "blue"])
    first, second = (add_sample(served, coloured(c)) for c in ("green", "red"))
    says = {"classes": [{"label": "red", "index": 0, "confidence": 0.55}], "boxes": []}
    add_task(served, slug, first, priority=0.9, answer=says, reason="uncertain: red or green (margin 0.04)")
    add_task(served, slug, second, priority=0.1, answer=says, reason="drawn at random (1 in 20)")
    push(served, slug)
    open_stream(page, served, slug, "uncertain: red or green")
    page.locator("input[type=radio]:checked").wait_for()
    picture_of(page, "classify")
    page.keyboard.press("2")
    page.get_by_role("button", name="Submit").first.click()
    arrive(served)
    assert label(served, slug, first).value["classes"] == ["green"]
    (revision,) = revisions(served, slug, first)
    assert revision.origins == ["prediction-changed"]
    assert revision.lead_time_s > 0
    page.get_by_text("drawn at random (1 in 20)").first.wait_for()


def test_a_missed_object_is_boxed_in_the_browser_and_the_boxes_arrive(served, page):
    """The box of the model stays, the one that it missed is drawn by mouse."""
    slug = StudioServer.slug()
    add_model(served, slug, "detect", ["cell", "dust"])
    sample_id = add_sample(served, coloured("blue", 400))
    box = {"label": "cell", "x1": 40.0, "y1": 40.0, "x2": 120.0, "y2": 120.0, "confidence": 0.7}
    add_task(served, slug, sample_id, answer={"classes": [], "boxes": [box]}, reason="the model found only one object")
    push(served, slug)
    open_stream(page, served, slug, "the model found only one object")
    page.wait_for_timeout(500)  # the canvas takes its size from the image
    image = page.locator("canvas").first.bounding_box()
    page.keyboard.press("2")
    corners = [(0.6, 0.6), (0.7, 0.7), (0.8, 0.8)]
    points = [(image["x"] + x * image["width"], image["y"] + y * image["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1])
    page.mouse.move(*points[2])
    page.mouse.up()
    picture_of(page, "detect")
    page.get_by_role("button", name="Submit").first.click()
    arrive(served)
    boxes = label(served, slug, sample_id).value["boxes"]
    assert [b["label"] for b in boxes] == ["cell", "dust"]
    assert [boxes[0][k] for k in ("x1", "y1", "x2", "y2")] == [pytest.approx(v, abs=0.01) for v in (40, 40, 120, 120)]
    assert [boxes[1][k] for k in ("x1", "y1", "x2", "y2")] == [pytest.approx(v, abs=4) for v in (240, 240, 320, 320)]
    (revision,) = revisions(served, slug, sample_id)
    assert revision.origins == ["prediction", "manual"]
