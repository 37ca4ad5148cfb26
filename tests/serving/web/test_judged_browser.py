"""The pages about images in a real browser: any eyes, any screen, by keyboard."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from judged_model import SLUG, Judged
from playwright.sync_api import Page
from shared_server import Served

pytestmark = pytest.mark.slow


def test_the_pages_about_images_fit_and_axe_finds_nothing(page: Page, served: Served, judged: Judged) -> None:
    """Light on a desk and dark on a phone."""
    for path in (
        f"/evaluation?model={SLUG}",
        f"/evaluation/{judged.evaluation_id}",
        f"/evaluation/{judged.evaluation_id}/items?right=no",
        f"/sample/{judged.sample_id}",
    ):
        page.goto(f"{served.server.url}/console{path}", wait_until="load")
        found = Axe().run(page)
        assert not found.response["violations"], f"{path}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        shown = "[...document.images].every(i => i.complete && (i.naturalWidth > 0 || i.loading == 'lazy'))"
        assert page.evaluate(shown), path


def test_the_sliders_tell_what_sureness_costs_by_keyboard(page: Page, served: Served, judged: Judged) -> None:
    """The right arrow raises the threshold, and the share withheld with it."""
    page.goto(f"{served.server.url}/console/evaluation/{judged.evaluation_id}")
    before = page.inner_text("#sweep-part .tile:nth-child(4) dd")
    page.focus("#threshold")
    with page.expect_response("**/sweep?*"):
        for _ in range(8):
            page.keyboard.press("ArrowRight")
    page.wait_for_function(f"document.querySelector('#sweep-part .tile:nth-child(4) dd').innerText != {before!r}")
    assert "90.0 %" in page.inner_text("#sweep-part .tile:nth-child(1) dd")


def test_a_number_of_the_matrix_is_followed_by_keyboard(page: Page, served: Served, judged: Judged) -> None:
    """Enter on a cell shows its images."""
    page.goto(f"{served.server.url}/console/evaluation/{judged.evaluation_id}")
    cell = page.locator(".matrix .miss a").first
    count = int(cell.inner_text())
    cell.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/items?cell=1*")
    assert page.locator(".grid-of li").count() == count
