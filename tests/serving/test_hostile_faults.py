"""The large editions: ten thousand idle connections, the largest images of every kind, thousands of generated requests."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hostile_clients import opened
from test_hostile_images import MOST_MEMORY, forget_peak, memory
from test_schema_conformance import try_everything

from sutdol import keys
from sutdol.context import open_context
from sutdol.settings import load
from tests.image_zoo import giants
from tests.running_server import RunningServer, running
from tests.tiny_models import classifier_bundle, coloured_png

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
IDLE = 10_000


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, httpx.Client]]:
    """The server as it is shipped, and a client with an admin key."""
    home = tmp_path_factory.mktemp("plain")
    context = open_context(load(home=home))
    for _ in range(2):
        classifier_bundle(context)
    with context.database.begin() as session:
        key = keys.create(session, "test", ["admin"])
    headers = {"Authorization": f"Bearer {key}"}
    with running(home) as server, httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        yield server, client
    context.database.close()


def test_ten_thousand_idle_connections_keep_nobody_out(plain: tuple[RunningServer, httpx.Client]) -> None:
    """Half the internet of things connects and says nothing."""
    server, client = plain
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < IDLE + 500:
        pytest.skip(f"this shell may open only {most} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    before = memory(server.process.pid, "VmRSS")
    connections = opened(server.url, IDLE)
    for _ in range(20):
        assert client.post("/v1/predict/tiny", content=coloured_png()).status_code == 200
    assert memory(server.process.pid, "VmRSS") - before < MOST_MEMORY
    for connection in connections:
        connection.settimeout(60)
        assert connection.recv(1) == b""
        connection.close()


def test_the_largest_images_of_every_kind_are_read_in_bounded_memory(
    plain: tuple[RunningServer, httpx.Client],
) -> None:
    """24 megapixels is what a camera makes today."""
    server, client = plain
    for name, data in giants().items():
        start = forget_peak(server.process.pid)
        assert client.post("/v1/predict/tiny", content=data).status_code == 200, name
        assert memory(server.process.pid, "VmHWM") - start <= MOST_MEMORY, name


def test_a_long_run_of_generated_requests_finds_nothing(
    plain: tuple[RunningServer, httpx.Client], tmp_path: Path
) -> None:
    """As in test_schema_conformance, with more patience. Last: it deletes versions."""
    server, client = plain
    key = client.headers["authorization"].removeprefix("Bearer ")
    found = try_everything(server.url, key, tmp_path, examples=60)
    assert found == "", found[-6000:]
