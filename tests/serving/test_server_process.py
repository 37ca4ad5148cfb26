"""The server as a process: killed, terminated, in the way of another one, and what it must never import."""

from __future__ import annotations

import threading

import httpx
import pytest
from shared_server import Served, assert_problem
from sqlmodel import select

from serving.main import check_port
from sutdol import keys
from sutdol.context import Context
from sutdol.errors import SetupError
from sutdol.tables import PredictionRow, Replica
from tests.running_server import PROGRAM, free_port, running, spawn, wait_for
from tests.tiny_models import classifier_bundle, classifier_onnx, coloured_png


@pytest.fixture
def key(context: Context) -> dict[str, str]:
    """Headers of a client that may do everything."""
    with context.database.begin() as session:
        return {"Authorization": f"Bearer {keys.create(session, 'test', ['admin'])}"}


def test_every_answered_id_is_in_the_log_after_kill_9(context: Context, key: dict[str, str]) -> None:
    """The id that a client holds must lead somewhere, whatever happens to the server a moment later.

    And the next server can take the same port at once: an orphan on it would answer with an old model for ever.
    """
    classifier_bundle(context)
    answered: list[str] = []

    def stream(url: str, seed: int) -> None:
        data = coloured_png("red", seed=seed)
        with httpx.Client(headers=key, timeout=20) as client:
            while True:
                try:
                    reply = client.post(f"{url}/v1/predict/tiny", content=data)
                except httpx.TransportError:
                    return
                if reply.status_code == 200:
                    answered.append(reply.json()["prediction_id"])

    port = free_port()
    with running(context.settings.home, port=port) as server:
        clients = [threading.Thread(target=stream, args=(server.url, seed)) for seed in range(4)]
        for client in clients:
            client.start()
        wait_for(lambda: len(answered) > 200, "traffic")
        server.kill()
        for client in clients:
            client.join()
    with context.database.read() as session:
        logged = set(session.exec(select(PredictionRow.id)))
    assert len(answered) > 200
    assert set(answered) <= logged
    check_port("127.0.0.1", port)
    with running(context.settings.home, port=port) as server:
        assert httpx.post(f"{server.url}/v1/predict/tiny", content=coloured_png(), headers=key).status_code == 200


def test_a_port_in_use_is_refused_before_anything_starts(served: Served) -> None:
    """Two servers on one port share its connections without an error; half of the requests go astray."""
    port = int(served.server.url.rsplit(":", 1)[1])
    with pytest.raises(SetupError, match=f"port {port} is in use .*--port"):
        check_port("127.0.0.1", port)
    second = spawn(served.context.settings.home, port=port)
    assert second.process.wait(60) != 0
    assert "--port" in second.text


STREAMING = """
import asyncio
from litestar import Router, get
from litestar.response import Stream
from sutdol.context import open_context
from sutdol.settings import load
from serving.main import serve

async def forever():
    while True:
        yield b"tick\\n"
        await asyncio.sleep(0.05)

@get("/ticks")
async def ticks() -> Stream:
    return Stream(forever())

serve(open_context(load()), [Router("/", route_handlers=[ticks])])
"""


def test_sigterm_answers_what_was_accepted_and_leaves(context: Context, key: dict[str, str]) -> None:
    """A rolling deployment must not fail requests, and the replica's row goes with it."""
    classifier_bundle(context)
    replies: list[int] = []

    def ask(url: str) -> None:
        replies.append(
            httpx.post(f"{url}/v1/predict/tiny", content=coloured_png(), headers=key, timeout=30).status_code
        )

    with running(context.settings.home) as server:
        clients = [threading.Thread(target=ask, args=(server.url,)) for _ in range(8)]
        with context.database.begin():  # their answers cannot be committed as long as we are writing
            for client in clients:
                client.start()
            wait_for(lambda: gauge(server.url, "sutdol_log_pending") == 8, "all requests to be accepted")
            server.process.terminate()
            wait_for(lambda: refuses_connections(server.url), "the port to close")
        assert server.process.wait(30) == 0, server.text
        for client in clients:
            client.join()
    assert replies == [200] * 8
    with context.database.read() as session:
        assert session.exec(select(Replica)).all() == []


def gauge(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def refuses_connections(url: str) -> bool:
    try:
        httpx.get(f"{url}/livez")
    except httpx.ConnectError:
        return True
    return False


def test_an_open_stream_does_not_block_the_shutdown(context: Context) -> None:
    """One forgotten browser tab must not keep an old server alive."""
    with (
        running(context.settings.home, program=STREAMING) as server,
        httpx.stream("GET", f"{server.url}/ticks", timeout=20) as response,
    ):
        assert next(response.iter_lines()) == "tick"
        assert server.terminate(within_s=20) == 0


def test_a_full_queue_answers_503_with_a_time_to_wait(context: Context, key: dict[str, str]) -> None:
    """Clients back off when they are told how long; accepted ones still get their answers."""
    classifier_bundle(context, onnx_bytes=classifier_onnx(burden=30))
    with running(context.settings.home, queue_limit=2, inference_threads=1) as server:
        replies: list[httpx.Response] = []

        def ask() -> None:
            url = f"{server.url}/v1/predict/tiny"
            replies.append(httpx.post(url, content=coloured_png(), headers=key, timeout=60))

        clients = [threading.Thread(target=ask) for _ in range(16)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        refused = [reply for reply in replies if reply.status_code != 200]
        assert refused
        assert len(refused) < 16
        for reply in refused:
            assert_problem(reply, 503, "waiting")
            assert int(reply.headers["retry-after"]) >= 1


def test_a_client_that_leaves_is_dropped_from_the_queue(context: Context, key: dict[str, str]) -> None:
    """Clients that gave up must not push out those who still wait."""
    classifier_bundle(context, onnx_bytes=classifier_onnx(burden=60), golden="none")
    with running(context.settings.home, inference_threads=1) as server:
        url = f"{server.url}/v1/predict/tiny"
        patient: list[int] = []

        def wait() -> None:
            patient.append(httpx.post(url, content=coloured_png(), headers=key, timeout=60).status_code)

        clients = [threading.Thread(target=wait) for _ in range(8)]
        for client in clients:
            client.start()
        wait_for(lambda: gauge(server.url, "sutdol_queue_length") >= 5, "a queue")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, content=coloured_png(), headers=key, timeout=httpx.Timeout(20, read=0.5))

        def dropped() -> bool:
            return 'sutdol_dropped_total{cause="gone"}' in httpx.get(f"{server.url}/metrics").text

        wait_for(dropped, "the work of the gone client to be dropped")
        for client in clients:
            client.join()
        assert patient == [200] * 8


def test_without_a_ready_model_the_server_lives_but_is_not_ready(context: Context) -> None:
    """A balancer must not send traffic to a replica whose champion does not load."""
    classifier_bundle(context, onnx_bytes=b"no model", golden="none")
    with running(context.settings.home, ready=False) as server:
        ready = wait_for(lambda: refused_champion(server.url), "the refusal to be shown")
        assert ready["ready"] is False
        assert "cannot be loaded" in ready["problems"][0]
        assert httpx.get(f"{server.url}/livez").json()["status"] == "alive"


def refused_champion(url: str) -> dict[str, object] | None:
    response = httpx.get(f"{url}/readyz")
    assert response.status_code == 503
    body: dict[str, object] = response.json()
    return body if "tiny" in str(body["problems"]) and "refused" in str(body["problems"]) else None


WATCHING_IMPORTS = (
    PROGRAM
    + """
import sys
print("imported:", " ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""
)


def test_the_serving_process_never_imports_the_training_libraries(context: Context, key: dict[str, str]) -> None:
    """They cost hundreds of megabytes, seconds at start, and bring a pickle loader into the process that faces the net."""
    classifier_bundle(context)
    with running(context.settings.home, program=WATCHING_IMPORTS) as server:
        assert httpx.post(f"{server.url}/v1/predict/tiny", content=coloured_png(), headers=key).status_code == 200
        assert server.terminate() == 0
        imported = server.text.partition("imported:")[2].split()
    assert "onnxruntime" in imported
    for name in ("torch", "torchvision", "timm", "ultralytics", "label_studio_sdk", "sklearn", "scipy"):
        assert name not in imported
