"""The bridge's routes on a real port, for Label Studio's webhook and the labeler's browser."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from sutdol.context import Context
from sutdol.settings import child_environment
from tests.studio_fixture import StudioServer, free_port

PROGRAM = """
from granian.constants import Interfaces
from granian.server import Server
from litestar import Litestar, Response, get
from labeling_bridge import routes
from sutdol.context import open_context
from sutdol.errors import SutdolError
from sutdol.settings import load

def problem(_, error):
    return Response({"detail": str(error)}, status_code=error.status)

@get("/ready", sync_to_thread=False)
def ready() -> str:
    return "yes"

def app():
    context = open_context(load())
    return Litestar([routes.build(context), ready], exception_handlers={SutdolError: problem}, openapi_config=None)

if __name__ == "__main__":
    settings = load()
    Server("bridge_app:app", factory=True, address="127.0.0.1", port=settings.port, interface=Interfaces.ASGI).serve()
"""


@contextmanager
def serving_routes(studio: StudioServer, home: Path, **more: object) -> Iterator[Context]:
    """A context whose routes are served by a process of its own until the block ends."""
    port = free_port()
    context = studio.open(home, port=port, **more)
    (home / "bridge_app.py").write_text(PROGRAM)
    path = f"{home}{os.pathsep}{Path(__file__).parents[2]}"
    log = home / "routes.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "bridge_app.py"],
            cwd=home,
            env=child_environment(context.settings, PYTHONPATH=path),
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"{context.settings.url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield context
    finally:
        process.terminate()
        process.wait(30)
        context.database.close()
