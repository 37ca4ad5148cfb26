"""`python -m tests.pictures`: pictures of the console, taken from a running `sutdol demo`.

    sutdol demo (handwritten digits, the real Label Studio) -> Chromium at its console -> docs/console-*.webp

The demo streams digits through three worlds; the pictures are taken when the second version is at work. About five minutes on
a quiet machine; needs what `make test` needs.
"""

from __future__ import annotations

import argparse
import io
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from sqlmodel import col, select

from sutdol import keys, registry
from sutdol.context import Context, open_context
from sutdol.settings import load
from sutdol.tables import Replica, RunCandidate, TrainingRun

DOCS = Path(__file__).parents[1] / "docs"
MODEL = "digits"
WIDTH, HEIGHT = 1280, 900
WITHIN_S = 2400.0
MAX_BYTES = 200_000


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=DOCS)
    to: Path = parser.parse_args().to
    folder = Path(tempfile.mkdtemp(prefix="sutdol-pictures-"))
    home = folder / "home"
    demo = subprocess.Popen([sys.executable, "-m", "sutdol", "demo", "--home", str(home)], stdout=subprocess.DEVNULL)
    try:
        context = _opened(demo, home)
        with context.database.begin() as session:
            key = keys.create(session, "pictures", ["admin"])
        url = _until(demo, lambda: _url(context), "a server")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", locale="en-GB")
            page.goto(f"{url}/console/login")
            page.fill("#key", key)
            page.press("#key", "Enter")
            page.wait_for_url("**/console")
            _until(demo, lambda: _champion(context) >= 2, "the second version to be at work")
            _take(page, f"{url}/console", to / "console-live.webp")
            _take(page, f"{url}/console/training/{_run(context)}", to / "console-training.webp")
            browser.close()
        context.database.close()
        return 0
    finally:
        if demo.poll() is None:
            demo.send_signal(signal.SIGINT)
            try:
                demo.wait(60)
            except subprocess.TimeoutExpired:
                demo.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _opened(demo: subprocess.Popen[bytes], home: Path) -> Context:
    """The demo's home, once it is there."""
    _until(demo, (home / "sutdol.db").exists, "the demo's database")
    return open_context(load(home=home))


def _url(context: Context) -> str | None:
    with context.database.read() as session:
        return session.exec(
            select(Replica.url).where(Replica.role == "serve").order_by(col(Replica.started_at).desc())
        ).first()


def _champion(context: Context) -> int:
    with context.database.read() as session:
        return registry.alias(session, MODEL, "champion") or 0


def _run(context: Context) -> str:
    """The newest run with curves."""
    with context.database.read() as session:
        ended = select(TrainingRun.id).join(RunCandidate, col(RunCandidate.run_id) == TrainingRun.id)
        found = ended.where(TrainingRun.state == "done").order_by(col(TrainingRun.created_at).desc())
        return str(session.exec(found).first())


def _until(demo: subprocess.Popen[bytes], condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        if demo.poll() is not None:
            raise SystemExit(f"the demo ended with {demo.returncode} before there was {what}")
        time.sleep(0.5)
    raise SystemExit(f"waited {WITHIN_S:g} s for {what}")


def _take(page: Page, url: str, to: Path) -> None:
    page.goto(url)
    page.wait_for_timeout(4000)  # the moving part has moved, pictures are there
    picture = Image.open(io.BytesIO(page.screenshot()))
    for quality in (90, 80, 70, 55):
        picture.save(to, "WEBP", quality=quality, method=6)
        if to.stat().st_size <= MAX_BYTES:
            break
    print(f"{to}: {to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
