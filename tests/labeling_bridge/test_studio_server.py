"""Starting Label Studio: what it is told about its database."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from labeling_bridge.server import database_environment
from sutdol.errors import SetupError
from sutdol.settings import load
from tests.job_processes import postgres


def test_beside_our_sqlite_it_has_its_own(tmp_path):
    """A laptop has no PostgreSQL."""
    assert database_environment(load(home=tmp_path)) == {}


def test_beside_our_postgresql_it_gets_a_database_of_its_own(tmp_path):
    """On SQLite it loses predictions while people work; whoever has PostgreSQL must not have to know that."""
    with postgres() as url:
        ours = sa.engine.make_url(url)
        name = f"{ours.database}_label_studio"
        engine = sa.create_engine(ours, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        try:
            for _ in range(2):
                found = database_environment(load(home=tmp_path, database_url=url))
            assert (found["DJANGO_DB"], found["POSTGRE_NAME"], found["POSTGRE_HOST"]) == ("default", name, ours.host)
            with engine.connect() as connection:
                query = sa.text("SELECT count(*) FROM pg_database WHERE datname = :name")
                assert connection.execute(query, {"name": name}).scalar_one() == 1
        finally:
            with engine.connect() as connection:
                connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{name}"'))


def test_a_database_that_cannot_be_reached_is_named_without_its_password(tmp_path):
    """The message goes to a terminal and into tickets."""
    url = "postgresql+psycopg://me:hidden-word@127.0.0.1:1/labels"
    with pytest.raises(SetupError, match="labels") as caught:
        database_environment(load(home=tmp_path, label_studio_database_url=url))
    assert "hidden-word" not in str(caught.value)
