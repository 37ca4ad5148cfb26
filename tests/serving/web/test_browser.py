"""The console in a real browser: by keyboard, on a phone, without findings of axe, without a word to another host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from shared_server import Served, version_of

from tests.conftest import missing
from tests.tiny_models import classifier_bundle

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
pytestmark = pytest.mark.slow


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


def test_every_page_fits_and_axe_finds_nothing(page: Page, served: Served) -> None:
    """Readable with any eyes, on any screen."""
    for path in (
        "",
        "/labels",
        "/models",
        "/models/tiny",
        "/models/tiny/versions/1",
        "/decisions",
        "/try",
        "/settings",
    ):
        page.goto(f"{served.server.url}/console{path}", wait_until="domcontentloaded")
        found = Axe().run(page)
        assert not found.response["violations"], f"{path}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path


def test_the_live_page_renews_itself(page: Page, served: Served) -> None:
    """htmx works under the strict policy."""
    with page.expect_response("**/console/live", timeout=10_000) as told:
        pass
    assert told.value.status == 200


def test_a_version_is_promoted_and_rolled_back_by_keyboard_alone(page: Page, served: Served) -> None:
    """Tab to it, Enter, Tab to yes, Enter."""
    slug = f"by-keyboard-{page.viewport_size['width'] if page.viewport_size else 0}"
    first = served.model(slug)
    second = classifier_bundle(served.context, slug, promote=False)
    page.goto(f"{served.server.url}/console/models/{slug}")
    _press(page, "Promote")
    page.wait_for_url("**/promote")
    _press(page, "Promote")
    page.wait_for_url(f"**/models/{slug}")
    with served.client() as api:
        assert version_of(api, slug) == second
        _press(page, f"Roll back to v{first}")
        page.wait_for_url("**/rollback")
        _press(page, "Roll back")
        page.wait_for_url(f"**/models/{slug}")
        assert version_of(api, slug) == first


def _press(page: Page, name: str) -> None:
    """Tab until the focus is on the link or button of that name, then Enter."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == name:
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"{name!r} cannot be reached by Tab")
