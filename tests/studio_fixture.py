"""Label Studio for tests, the real one and the fake: one server of each per session, on a free port.

Use it by `from tests.studio_fixture import studio_server  # noqa: F401` in a conftest or test module; however many do, one
server of each runs. A test that uses it runs twice, against the fake (fast) and against the real server (marked `slow` and
`studio`); this is the conformance suite that keeps the fake honest. Projects belong to a model's slug: take a fresh one per
test (`studio_server.slug()`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from labeling_bridge import server
from labeling_bridge.account import sign_up
from labeling_bridge.studio import Studio
from sutdol.context import Context, open_context
from sutdol.settings import Settings, load
from tests.conftest import missing
from tests.fakes.label_studio import FakeLabelStudio

ROOT = Path(__file__).parents[1]
EMAIL, PASSWORD = "bridge@sutdol.local", "correct horse battery"
REAL = pytest.param("real", marks=[pytest.mark.slow, pytest.mark.studio])


class StudioServer:
    """A running server; `open(home)` gives contexts whose bridge speaks to it."""

    real: bool

    def __init__(self, home: Path, **more: Any) -> None:
        """`more` are settings of the server itself."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = ""
        """The bridge's access token, so that not every test has to log in; "" makes it log in by itself."""
        self.context = open_context(self.settings(home, label_studio_port=self.port, **more))

    def settings(self, home: Path, **more: Any) -> Settings:
        """Settings under which the bridge finds this server."""
        known: dict[str, Any] = {
            "home": home,
            "label_studio_url": self.url,
            "label_studio_email": EMAIL,
            "label_studio_password": PASSWORD,
            "label_studio_api_key": self.key,
            "blind_share": 0.0,
            "gold_share": 0.0,
            "label_studio_venv": Path(os.environ.get("SUTDOL_LABEL_STUDIO_VENV", str(ROOT / ".venv-label-studio"))),
        }
        return load(**(known | more))

    def open(self, home: Path, **more: Any) -> Context:
        """A context of its own (database, store) on this server; close its database."""
        return open_context(self.settings(home, **more))

    def start(self) -> None:
        """Start it, or start it again after `kill`, with what it knew."""
        self._start()
        if not self.key:
            with Studio.open(self.context) as studio:
                studio.authorization()
            kept = json.loads((self.context.settings.home / "label-studio.json").read_text())
            self.key = str(kept["token"])

    def _start(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        raise NotImplementedError

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


class RealStudio(StudioServer):
    """The real server, from its own virtual environment, with its data in a temporary folder."""

    real = True
    process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        self.process = server.start(self.context)
        log = self.context.settings.home / server.LOG_NAME
        server.wait_ready(self.url, 480, process=self.process, log=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None


class FakeStudio(StudioServer):
    """The fake; `fake.faults` are its switches."""

    real = False

    def __init__(self, home: Path, **more: Any) -> None:
        super().__init__(home, **more)
        self.fake = FakeLabelStudio(self.port, EMAIL, PASSWORD)

    def _start(self) -> None:
        self.fake.start()

    def kill(self) -> None:
        self.fake.kill()


_running: dict[str, StudioServer] = {}
_users: dict[str, int] = {}


@contextmanager
def running(kind: str, factory: pytest.TempPathFactory) -> Iterator[StudioServer]:
    """The one server of this kind; a failure in CI and a skip with its reason elsewhere when it is not installed."""
    if kind not in _running:
        opened = (RealStudio if kind == "real" else FakeStudio)(factory.mktemp("label-studio"))
        program = opened.context.settings.label_studio_venv / "bin" / "label-studio"
        if opened.real and not program.exists():
            opened.context.database.close()
            missing(f"Label Studio is not installed ({program}); run `make setup`")
        opened.start()
        _running[kind] = opened
    _users[kind] = _users.get(kind, 0) + 1
    yield _running[kind]
    _users[kind] -= 1
    if _users[kind] == 0:
        done = _running.pop(kind)
        done.kill()
        done.context.database.close()


@pytest.fixture(scope="session", params=["fake", REAL])
def studio_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioServer]:
    """Both servers in turn: every test that uses it is part of the conformance suite."""
    with running(request.param, tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="session")
def real_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioServer]:
    """The real server alone; mark the test `slow` and `studio`."""
    with running("real", tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="session")
def fake_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioServer]:
    """The fake alone, for what needs its switches."""
    with running("fake", tmp_path_factory) as server:
        yield server


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
