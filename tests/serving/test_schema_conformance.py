"""Schemathesis reads our OpenAPI document and tries everything that it allows and forbids against a real server.

Here a bounded run, about 1500 requests; `tests.benchmarks.hostile` makes a large one. Left out: `/v1/live`, which never ends,
and the check that valid data is accepted - no schema can say which bytes are an image, or which version exists.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sutdol import keys
from sutdol.context import open_context
from sutdol.settings import load
from tests.running_server import RunningServer, running
from tests.tiny_models import classifier_bundle

CHECKS = "all"
WITHOUT = "positive_data_acceptance"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, str]]:
    """A server of its own: versions are promoted, renamed and deleted here."""
    home = tmp_path_factory.mktemp("described")
    context = open_context(load(home=home))
    classifier_bundle(context)
    with context.database.begin() as session:
        key = keys.create(session, "test", ["admin"])
    with running(home) as server:
        yield server, key
    context.database.close()


def try_everything(url: str, key: str, folder: Path, *, examples: int) -> str:
    """Run Schemathesis; what it found, empty when that is nothing."""
    options = ["--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", "1", "--no-color"]
    options += ["--request-timeout", "60"]
    checks = ["--checks", CHECKS, "--exclude-checks", WITHOUT, "--exclude-path", "/v1/live", "--continue-on-failure"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/schema", "-H", f"Authorization: Bearer {key}"]
    done = subprocess.run([*command, *options, *checks], capture_output=True, text=True, cwd=folder)
    assert "Test cases:" in done.stdout, done.stdout + done.stderr
    return "" if done.returncode == 0 else done.stdout


def test_the_server_keeps_to_its_document(described: tuple[RunningServer, str], tmp_path: Path) -> None:
    """No 5xx, no status, header or body that is not described, and nothing accepted that is forbidden."""
    server, key = described
    found = try_everything(server.url, key, tmp_path, examples=3)
    assert found == "", found[-6000:]
    assert "incident" not in server.text


def test_every_route_is_in_the_document(described: tuple[RunningServer, str]) -> None:
    """And every failure in it is a problem; every operation but the open ones wants a key."""
    server, _ = described
    paths = httpx.get(f"{server.url}/schema").json()["paths"]
    assert {"/v1/predict/{model}", "/v1/predict/{model}/batch", "/v1/live", "/v2/models/{model}/infer"} <= set(paths)
    for path, operations in paths.items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400 and (path, status) != ("/readyz", "503"):
                    assert set(response["content"]) == {"application/problem+json"}, (path, method, status)
            answers_openly = httpx.request(method, server.url + re.sub("{[^}]+}", "1", path)).status_code != 401
            assert answers_openly == ("security" not in operation), (path, method)


def test_no_page_loads_anything_from_elsewhere(described: tuple[RunningServer, str]) -> None:
    """The framework's own documentation pages are blank without the internet, and tell others who looks at them."""
    server, _ = described
    for path in ("/schema/swagger", "/schema/redoc", "/schema/scalar", "/schema/elements", "/schema/rapidoc", "/docs"):
        assert httpx.get(server.url + path).status_code == 404
    assert httpx.get(f"{server.url}/schema").headers["content-type"].startswith("application/vnd.oai.openapi+json")
