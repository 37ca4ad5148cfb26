"""The console in a real browser: by keyboard, on a phone, without findings of axe, without a word to another host."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page
from shared_server import Served, version_of

from tests.tiny_models import classifier_bundle

pytestmark = pytest.mark.slow


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
