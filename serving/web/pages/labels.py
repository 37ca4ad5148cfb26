"""Labels: what waits for people, what they answered, and the way to it in Label Studio."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get

from serving import reads
from serving.web.desk import Desk

STATES = {
    "candidate": "candidate",
    "queued": "queued",
    "in_studio": "in Label Studio",
    "annotated": "annotated",
    "skipped": "skipped",
    "conflict": "conflict",
    "unlabelable": "unlabelable",
    "withdrawn": "withdrawn",
}
"""State of a label task -> what people read."""
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """One page."""

    @get("/labels")
    async def page(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        database, settings = desk.context.database, desk.context.settings

        def values() -> dict[str, Any]:
            counts = reads.label_tasks(database)
            projects = reads.projects(database)
            models = sorted({c.model for c in counts} | set(projects))
            table = {
                model: {s: sum(c.count for c in counts if c.model == model and c.state == s) for s in STATES}
                for model in models
            }
            arms = {
                model: _by_arm([c for c in counts if c.model == model and c.state not in ("withdrawn", "candidate")])
                for model in models
            }
            return {"models": models, "table": table, "arms": arms, "projects": projects}

        found = await asyncio.to_thread(values)
        return desk.pages.show(
            request,
            "labels.html",
            visitor=visitor,
            states=STATES,
            studio=settings.studio_url,
            settings=settings,
            **found,
        )

    return Router("/", route_handlers=[page])


def _by_arm(counts: list[reads.TaskCount]) -> list[tuple[str, int]]:
    arms: dict[str, int] = {}
    for count in counts:
        arms[count.arm] = arms.get(count.arm, 0) + count.count
    return sorted(arms.items(), key=lambda pair: -pair[1])
