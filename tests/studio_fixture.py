"""The real Label Studio for tests: one server per session on a free port, with its data in a temporary folder.

Use it by `from tests.studio_fixture import studio_server  # noqa: F401` in a conftest or test module; however many do, one
server runs. Tests that use it are marked `slow` and `studio`. Projects belong to a model's slug: take a fresh one
per test (`studio_server.slug()`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from labeling_bridge import server
from labeling_bridge.studio import Studio, sign_up
from sutdol.context import Context, open_context
from sutdol.settings import Settings, load

ROOT = Path(__file__).parents[1]
EMAIL, PASSWORD = "bridge@sutdol.local", "correct horse battery"


class RealStudio:
    """A running server; `open(home)` gives contexts whose bridge speaks to it."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = ""
        """The bridge's access token, so that not every test has to log in; "" makes it log in by itself."""
        self.context = open_context(self.settings(home, label_studio_port=self.port))
        self.process: subprocess.Popen[bytes] | None = None

    def settings(self, home: Path, **more: Any) -> Settings:
        """Settings under which the bridge finds this server."""
        known: dict[str, Any] = {
            "home": home,
            "label_studio_url": self.url,
            "label_studio_email": EMAIL,
            "label_studio_password": PASSWORD,
            "label_studio_api_key": self.key,
            "label_studio_venv": Path(os.environ.get("SUTDOL_LABEL_STUDIO_VENV", str(ROOT / ".venv-label-studio"))),
        }
        return load(**(known | more))

    def open(self, home: Path, **more: Any) -> Context:
        """A context of its own (database, store) on this server; close its database."""
        return open_context(self.settings(home, **more))

    def start(self) -> None:
        self.process = server.start(self.context)
        log = self.context.settings.home / server.LOG_NAME
        server.wait_ready(self.url, 240, process=self.process, log=log)
        if not self.key:
            with Studio.open(self.context) as studio:
                studio.authorization()
            kept = json.loads((self.context.settings.home / "label-studio.json").read_text())
            self.key = str(kept["token"])

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def person(self) -> tuple[str, str]:
        """E-mail and password of a new account, signed up through the invite link."""
        email, password = f"labeler-{uuid4().hex[:8]}@sutdol.local", uuid4().hex
        with Studio.open(self.context) as bridge:
            sign_up(bridge.invite_url(), email, password)
        return email, password

    def annotator(self) -> Studio:
        """A labeler with a new account; close it."""
        email, password = self.person()
        return Studio(self.url, email=email, password=password)

    @staticmethod
    def slug() -> str:
        return f"m-{uuid4().hex[:8]}"


_running: RealStudio | None = None
_users = 0


@pytest.fixture(scope="session")
def studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStudio]:
    """The one server of this session; a failure in CI and a skip with its reason elsewhere when it is not installed."""
    global _running, _users
    if _running is None:
        opened = RealStudio(tmp_path_factory.mktemp("label-studio"))
        program = opened.context.settings.label_studio_venv / "bin" / "label-studio"
        if not program.exists():
            opened.context.database.close()
            reason = f"Label Studio is not installed ({program}); run `make setup`"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        opened.start()
        _running = opened
    _users += 1
    yield _running
    _users -= 1
    if _users == 0:
        _running.kill()
        _running.context.database.close()
        _running = None


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
