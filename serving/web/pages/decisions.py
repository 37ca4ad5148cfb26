"""Decisions: why each promotion or refusal happened, in words and numbers, and everything else that was told as an event."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get

from serving import reads
from serving.web.desk import Desk

PAGE = 50
"""Decisions on one page."""
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """One page; `?model=` narrows it."""

    @get("/decisions")
    async def page(request: HttpRequest, model: str | None = None, before: str | None = None) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        database = desk.context.database

        def values() -> dict[str, Any]:
            found = reads.decisions(database, model=model, before=before, limit=PAGE)
            return {
                "decisions": found,
                "older": found[-1].id if len(found) == PAGE else None,
                "waiting": reads.waiting(database, model=model),
                "notifications": reads.notifications(database),
                "notify": desk.context.settings.notify_on if desk.context.settings.notify_urls else None,
                "events": reads.events(database, model=model, limit=100),
                "models": [m.name for m in reads.models(database, desk.slots.serving())],
            }

        found = await asyncio.to_thread(values)
        return desk.pages.show(request, "decisions.html", visitor=visitor, chosen=model, **found)

    return Router("/", route_handlers=[page])
