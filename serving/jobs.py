"""The jobs of this package by name, for the worker."""

from __future__ import annotations

from serving.batch import work
from sutdol.jobs import Handler

HANDLERS: dict[str, Handler] = {"batch.predict": work.handle}
