"""What every program of ours builds once at its start and hands to its parts: settings, database, store, broker."""

from __future__ import annotations

from dataclasses import dataclass

from sutdol.db import Database
from sutdol.settings import Settings
from sutdol.stores import Store, open_store


@dataclass(frozen=True)
class Context:
    """The ground under one process. Routers are made by `build(context)`, job handlers get it as an argument."""

    settings: Settings
    database: Database
    store: Store


def open_context(settings: Settings) -> Context:
    """Open the home folder, database (migrated to the newest schema) and store.

    Raises:
        SetupError: one of them cannot be opened.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    database.migrate()
    return Context(settings, database, open_store(settings.store, settings.store_options))
