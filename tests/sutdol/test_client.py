"""The client says what the server said, and the errors in the server's own words."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from sqlmodel import select

from sutdol import keys
from sutdol.client import ApiError, AsyncClient, Client, reachable
from sutdol.context import Context
from sutdol.tables import Feedback, PredictionRow
from tests import tiny_models
from tests.running_server import RunningServer, running


@pytest.fixture
def server(context: Context) -> Iterator[RunningServer]:
    tiny_models.classifier_bundle(context)
    with running(context.settings.home) as started:
        yield started


def a_key(context: Context, scope: str = "predict") -> str:
    with context.database.begin() as session:
        return keys.create(session, "test", [scope])


def test_an_answer_and_its_feedback_are_in_the_log(context: Context, server: RunningServer) -> None:
    """The two calls that an application makes."""
    with Client(server.url, a_key(context)) as client:
        answer = client.predict("tiny", tiny_models.coloured_png("green"))
        client.feedback(answer.prediction_id, classes=["green"])
    assert answer.predictions[0].name == "green"
    assert answer.predictions[0].index == 1
    with context.database.read() as session:
        assert session.get_one(PredictionRow, answer.prediction_id).version == answer.version
        assert session.exec(select(Feedback.prediction_id)).all() == [answer.prediction_id]


def test_a_batch_has_an_answer_or_an_error_for_each(context: Context, server: RunningServer) -> None:
    """One broken file must not cost the others their answers."""
    with Client(server.url, a_key(context)) as client:
        red, broken, blue = client.predict_batch(
            "tiny", [tiny_models.coloured_png("red"), b"no image", tiny_models.coloured_png("blue")]
        )
        assert isinstance(broken, ApiError)
        assert broken.status == 415
        assert [a.predictions[0].name for a in (red, blue) if not isinstance(a, ApiError)] == ["red", "blue"]
        assert client.predict("tiny", tiny_models.coloured_png(), max_risk=0).unsure
        assert not client.predict("tiny", tiny_models.coloured_png(), max_risk=1).unsure


def test_a_refusal_keeps_the_servers_words(context: Context, server: RunningServer) -> None:
    """Whoever reads the log of an application should not need ours."""
    with Client(server.url, a_key(context)) as client:
        with pytest.raises(ApiError, match="unknown model") as error:
            client.predict("nope", tiny_models.coloured_png())
        assert error.value.status == 404
        with pytest.raises(ApiError) as error:
            client.predict("tiny", b"no image")
        assert error.value.status == 415


async def test_many_requests_may_be_in_flight(context: Context, server: RunningServer) -> None:
    """The asynchronous client is for that."""
    import asyncio

    async with AsyncClient(server.url, a_key(context)) as client:
        images = [tiny_models.coloured_png(name, seed=i) for i in range(10) for name in tiny_models.CLASSES]
        answers = await asyncio.gather(*(client.predict("tiny", image) for image in images))
    assert [a.predictions[0].name for a in answers] == list(tiny_models.CLASSES) * 10
    assert len({a.prediction_id for a in answers}) == 30


def test_nobody_there_is_an_error_of_the_transport() -> None:
    """A caller tells "refused" from "not there"."""
    assert not reachable("http://127.0.0.1:9/")
    with Client("http://127.0.0.1:9", "sut_a_b") as client, pytest.raises(httpx.TransportError):
        client.predict("tiny", b"x")
