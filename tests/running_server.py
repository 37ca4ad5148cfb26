"""A real `serve` process on a real port, for tests: started, waited for, ended by its pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from sutdol.settings import child_environment, load

PROGRAM = """
import sys
from sutdol.context import open_context
from sutdol.settings import load
from retrain.families import described
from serving.main import serve
serve(open_context(load()), families=described)
"""


class RunningServer:
    """One process; `client` speaks to it with the admin key it was given."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, output: Path) -> None:
        self.process = process
        self.url = url
        self.output = output

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(30)

    def terminate(self, *, within_s: float = 30.0) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(home: Path, *, program: str = PROGRAM, **settings: Any) -> RunningServer:
    """Start without waiting."""
    port = settings.pop("port", None) or free_port()
    environment = child_environment(load(home=home, port=port, **settings), PYTHONPATH=os.pathsep.join(sys.path))
    output = home / f"serve-{port}.log"
    with output.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    return RunningServer(process, f"http://127.0.0.1:{port}", output)


@contextlib.contextmanager
def running(home: Path, *, ready: bool = True, program: str = PROGRAM, **settings: Any) -> Iterator[RunningServer]:
    """A server that answers `/readyz` with 200 (`/livez` when `ready` is false); killed at the end if it still runs."""
    server = spawn(home, program=program, **settings)
    try:
        wait_until_up(server, "/readyz" if ready else "/livez")
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def wait_until_up(server: RunningServer, path: str = "/readyz") -> None:
    """Until `path` answers 200."""

    def up() -> bool:
        assert server.process.poll() is None, server.text
        try:
            return httpx.get(server.url + path, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(up, f"{path} of the server", within_s=60)


def wait_for(condition: Callable[[], Any], what: str, *, within_s: float = 30.0) -> Any:
    """The first truthy value of `condition`; fails with `what` after `within_s`."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {within_s:g} s for {what}")
