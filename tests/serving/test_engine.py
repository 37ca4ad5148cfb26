"""The engine alone, with real models: neighbours, limits, deadlines, turns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from functools import partial

import msgspec
import numpy as np
import pytest
from sqlmodel import func, select

from serving import answers
from serving.engine import Engine, Item
from serving.follow import Follower
from serving.log import LogWriter
from serving.metrics import Metrics
from serving.slots import Slots
from serving.tickets import Ticket
from sutdol.context import Context
from sutdol.errors import BusyError, ImageError, NotFiniteError, NotFoundError
from sutdol.images import encode_png
from sutdol.tables import PredictionRow
from tests.running_server import wait_for
from tests.tiny_models import classifier_bundle, classifier_onnx, coloured_png


class Parts:
    """An engine with everything under it; `start` is left to the test."""

    def __init__(self, context: Context, *, threads: int = 1, limit: int = 64) -> None:
        self.context = context
        self.metrics = Metrics()
        self.slots = Slots(context, self.metrics)
        self.follower = Follower(context, self.slots)
        self.log = LogWriter(context.database, context.store, self.metrics)
        compose = partial(answers.compose, metrics=self.metrics)
        self.engine = Engine(self.slots, self.log, self.metrics, compose=compose, threads=threads, limit=limit)
        self.follower.start()
        self.log.start()

    def serve(self, slug: str, **bundle: object) -> None:
        version = classifier_bundle(self.context, slug, **bundle)  # type: ignore[arg-type]
        wait_for(lambda: self.slots.serving().get(slug, {}).get("version") == version, f"{slug} to be loaded")

    def ask(self, data: bytes, slug: str = "tiny", *, deadline: float | None = None) -> asyncio.Future[bytes]:
        ticket = Ticket()
        item = Item(slug, data, None, ticket)
        if deadline is not None:
            item.deadline = deadline
        self.engine.submit(item)
        return ticket.future

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def parts(context: Context) -> Iterator[Parts]:
    built = Parts(context)
    yield built
    built.engine.stop()
    built.log.stop()
    built.follower.stop()


def name_of(reply: bytes) -> str:
    return str(msgspec.json.decode(reply)["predictions"][0]["name"])


async def test_answers_go_to_those_who_asked(parts: Parts) -> None:
    """Batches are formed and taken apart again; nobody may get a neighbour's answer."""
    parts.serve("tiny")
    wanted = ["red", "green", "blue"] * 15
    futures = [parts.ask(coloured_png(name, seed=i)) for i, name in enumerate(wanted)]
    parts.engine.start()
    assert [name_of(reply) for reply in await asyncio.gather(*futures)] == wanted
    assert parts.sample("sutdol_batch_size_sum") == len(wanted)


async def test_a_cancelled_request_does_not_hold_up_its_batch(parts: Parts) -> None:
    """Clients time out every day; their neighbours must not notice, and no work is done for them."""
    parts.serve("tiny")
    futures = [parts.ask(coloured_png("red", seed=i)) for i in range(12)]
    for future in futures[::3]:
        future.cancel()
    parts.engine.start()
    kept = [future for i, future in enumerate(futures) if i % 3]
    assert {name_of(reply) for reply in await asyncio.gather(*kept)} == {"red"}
    assert parts.sample("sutdol_dropped_total", cause="gone") == 4
    with parts.context.database.read() as session:
        assert session.exec(select(func.count()).select_from(PredictionRow)).one() == len(kept)


async def test_a_broken_image_fails_alone(parts: Parts) -> None:
    """One truncated upload in a batch is one 400."""
    parts.serve("tiny")
    broken = coloured_png("red", side_px=100, seed=1)[:500]
    futures = [parts.ask(data) for data in (coloured_png("red"), broken, b"", coloured_png("blue"))]
    parts.engine.start()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [bytes, ImageError, ImageError, bytes]
    assert name_of(results[3]) == "blue"  # type: ignore[arg-type]


async def test_a_poisonous_image_fails_alone(parts: Parts) -> None:
    """An input on which the model answers NaN must not take the rest of its batch along."""
    parts.serve("tiny", onnx_bytes=classifier_onnx(poison=True), golden="none")
    white = encode_png(np.full((40, 40, 3), 255, np.uint8))
    datas = [coloured_png("red"), white, coloured_png("green"), coloured_png("blue")]
    futures = [parts.ask(data) for data in datas]
    parts.engine.start()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [bytes, NotFiniteError, bytes, bytes]
    assert [name_of(r) for r in results if isinstance(r, bytes)] == ["red", "green", "blue"]


async def test_a_full_queue_refuses_at_once(context: Context) -> None:
    """Better a 503 now than an answer in a minute, or no memory."""
    full = Parts(context, limit=3)
    full.serve("tiny")
    futures = [full.ask(coloured_png()) for _ in range(3)]
    with pytest.raises(BusyError, match="waiting") as caught:
        full.ask(coloured_png())
    assert caught.value.retry_after_s >= 1
    full.engine.start()
    await asyncio.gather(*futures)
    await full.ask(coloured_png())
    for part in (full.engine, full.log, full.follower):
        part.stop()


async def test_an_expired_request_is_dropped_with_a_word(parts: Parts) -> None:
    """Work that nobody will wait for is not done."""
    parts.serve("tiny")
    late = parts.ask(coloured_png(), deadline=time.monotonic() - 1)
    kept = parts.ask(coloured_png(), deadline=time.monotonic() + 60)
    parts.engine.start()
    assert name_of(await kept) == "red"
    with pytest.raises(BusyError, match="deadline"):
        await late
    assert parts.sample("sutdol_dropped_total", cause="expired") == 1


async def test_models_take_turns(parts: Parts) -> None:
    """A flood for one model must not lock out the others."""
    parts.serve("flooded", onnx_bytes=classifier_onnx(burden=2))
    parts.serve("tiny")
    flood = [parts.ask(coloured_png("red"), "flooded") for _ in range(40)]
    lone = parts.ask(coloured_png("blue"), "tiny")
    parts.engine.start()
    assert name_of(await lone) == "blue"
    assert sum(future.done() for future in flood) < len(flood)
    await asyncio.gather(*flood)


async def test_a_model_that_disappears_fails_its_requests_in_words(parts: Parts) -> None:
    """Between the check at the door and the engine a model may be taken away."""
    parts.serve("tiny")
    parts.engine.start()
    with pytest.raises(NotFoundError, match="gone"):
        await parts.ask(coloured_png(), "gone")


async def test_stopping_answers_what_is_waiting(context: Context) -> None:
    """A rolling restart drops nothing that was accepted."""
    parts = Parts(context)
    parts.serve("tiny")
    futures = [parts.ask(coloured_png()) for _ in range(20)]
    parts.engine.start()
    await asyncio.to_thread(parts.engine.stop)
    await asyncio.to_thread(parts.log.stop)
    assert {name_of(reply) for reply in await asyncio.gather(*futures)} == {"red"}
    with pytest.raises(BusyError):
        parts.ask(coloured_png())
    parts.follower.stop()


async def test_every_core_works(context: Context) -> None:
    """With two threads two images are in work at once: both must be inside before either may leave."""
    parts = Parts(context, threads=2)
    parts.serve("tiny")
    meeting = threading.Barrier(2, timeout=20)
    predictor = parts.slots.get("tiny").predictor
    run = predictor.run

    def meet(batch: object) -> object:
        meeting.wait()
        return run(batch)  # type: ignore[arg-type]

    predictor.run = meet  # type: ignore[method-assign,assignment]
    futures = [parts.ask(coloured_png()) for _ in range(2)]
    parts.engine.start()
    await asyncio.gather(*futures)
    for part in (parts.engine, parts.log, parts.follower):
        part.stop()
