"""The real Label Studio and its people, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bridge_rows import add_model

from labeling_bridge.studio import Studio
from sutdol.context import Context
from tests import studio_fixture
from tests.studio_fixture import StudioServer

studio_server = studio_fixture.studio_server
real_studio = studio_fixture.real_studio
fake_studio = studio_fixture.fake_studio


@pytest.fixture
def bridge(studio_server: StudioServer, tmp_path) -> Iterator[Context]:
    opened = studio_server.open(tmp_path / "home")
    yield opened
    opened.database.close()


@pytest.fixture
def model(bridge: Context) -> str:
    slug = StudioServer.slug()
    add_model(bridge, slug)
    return slug


@pytest.fixture(scope="module")
def studio(studio_server: StudioServer) -> Iterator[Studio]:
    """The bridge's account, for looking and for doing what people do in the interface."""
    with Studio.open(studio_server.context) as opened:
        yield opened


@pytest.fixture(scope="module")
def labeler(studio_server: StudioServer) -> Iterator[Studio]:
    with studio_server.annotator() as opened:
        yield opened
