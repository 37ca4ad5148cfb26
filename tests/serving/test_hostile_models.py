"""Models that nobody should trust, promoted one after the other beside traffic."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from sutdol import keys, registry
from sutdol.context import Context
from tests.hostile_models import HOSTILE
from tests.running_server import running
from tests.tiny_models import classifier_bundle, coloured_png


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_hostile_model_is_refused_with_its_reason_and_the_old_one_never_stops_answering(context: Context) -> None:
    """A file can kill, starve or hang whoever opens it; it must be somebody else who does."""
    classifier_bundle(context)
    with context.database.begin() as session:
        headers = {"Authorization": f"Bearer {keys.create(session, 'test', ['admin'])}"}
    statuses: list[int] = []
    ended = threading.Event()
    with running(context.settings.home, self_test_bytes=500_000_000, self_test_timeout_s=20.0) as server:

        def ask() -> None:
            with httpx.Client(headers=headers, timeout=30) as own:
                while not ended.wait(0.02):
                    statuses.append(own.post(f"{server.url}/v1/predict/tiny", content=coloured_png()).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        said = {}
        with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
            for name, (onnx, words) in HOSTILE.items():
                bad = classifier_bundle(context, onnx_bytes=onnx or b" ", golden="none", promote=False, foreign=True)
                reply = client.post(f"/v1/models/tiny/versions/{bad}:promote")
                said[name] = (reply.status_code, reply.text, words)
        resident = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096
        ended.set()
        asking.join()
    assert len(said) >= 30
    for name, (status, text, words) in said.items():
        assert (name, status) == (name, 409), text
        assert words.replace("`", "") in text.replace("`", ""), (name, text)
    assert len(statuses) > 50
    assert set(statuses) == {200}
    assert resident < 500_000_000
    with context.database.read() as session:
        assert registry.alias(session, "tiny", "champion") == 1
