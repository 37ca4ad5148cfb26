"""Labels: what waits for people, what they answered, and the way to it in Label Studio.

reads.label_tasks + projects -> overview; groups.groups_of -> what the model does not know, to be named or sent group by group
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get, post

from serving import groups, labelling, reads
from serving.web.desk import Desk
from serving.web.render import go

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
SHOWN = 48
"""Images of a group that are shown; a name goes to all of them."""
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """The overview, the groups of a model, and what can be done with a group."""

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
            return {
                "models": models,
                "table": table,
                "arms": arms,
                "projects": projects,
                "budgets": [labelling.budget(desk.context, model) for model in models],
                "people": {model: labelling.people(database, model) for model in models},
                "away": desk.standing.away(),
            }

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

    @get("/labels/{model:str}/unfamiliar")
    async def unfamiliar(request: HttpRequest, model: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            about = reads.model(desk.context.database, {}, model)
            return {"model": about, "groups": groups.groups_of(desk.context, model)}

        found = await asyncio.to_thread(values)
        return desk.pages.show(
            request,
            "unfamiliar.html",
            visitor=visitor,
            states=STATES,
            shown=SHOWN,
            done=request.query_params.get("done", ""),
            **found,
        )

    @post("/labels/{model:str}/unfamiliar/name", status_code=303)
    async def name(request: HttpRequest, model: str) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")
        tasks = fields.get("tasks", "").split(",")
        told = await asyncio.to_thread(groups.name, desk.context, model, fields.get("name", ""), tasks, visitor.who)
        return go(f"/console/labels/{model}/unfamiliar?done={'labelled' if told.labelled else 'asked'}")

    @post("/labels/{model:str}/unfamiliar/ask", status_code=303)
    async def ask(request: HttpRequest, model: str) -> Response[Any]:
        visitor, fields = await desk.form(request, "label")
        await asyncio.to_thread(groups.ask, desk.context, model, fields.get("tasks", "").split(","), visitor.who)
        return go(f"/console/labels/{model}/unfamiliar?done=asked")

    return Router("/", route_handlers=[page, unfamiliar, name, ask])


def _by_arm(counts: list[reads.TaskCount]) -> list[tuple[str, int]]:
    arms: dict[str, int] = {}
    for count in counts:
        arms[count.arm] = arms.get(count.arm, 0) + count.count
    return sorted(arms.items(), key=lambda pair: -pair[1])
