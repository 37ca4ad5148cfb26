"""Models: every version with what it was measured at, where it comes from, and the actions on it - each asked twice.

reads.models -> list; reads.versions + versions.lineage -> one model; confirm page -> form -> slots.promote | rollback
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get, post

from serving import reads
from serving.operations import move, step_back
from serving.web.desk import Desk
from serving.web.render import go
from sutdol import versions as version_acts
from sutdol.monitor import report

HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """List, one model, one version, and the four actions."""
    database = desk.context.database

    @get("/models")
    async def listed(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        models = await asyncio.to_thread(reads.models, database, desk.slots.serving())
        return desk.pages.show(request, "models.html", visitor=visitor, models=models)

    @get("/models/{model:str}")
    async def one(request: HttpRequest, model: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            about = reads.model(database, desk.slots.serving(), model)
            with database.read() as session:
                watched = {"accuracy": report.accuracy(session, model), "drift": report.drift_of(session, model)}
            return watched | {
                "model": about,
                "versions": reads.versions(database, model),
                "decisions": reads.decisions(database, model=model, limit=10),
            }

        return desk.pages.show(request, "model.html", visitor=visitor, **await asyncio.to_thread(values))

    @get("/models/{model:str}/versions/{version:int}")
    async def version_page(request: HttpRequest, model: str, version: int) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            with database.read() as session:
                lineage = version_acts.lineage(session, model, version)
            about = next(v for v in reads.versions(database, model) if v.version == version)
            return {"lineage": lineage, "version": about, "model": model}

        return desk.pages.show(request, "version.html", visitor=visitor, **await asyncio.to_thread(values))

    @get("/models/{model:str}/versions/{version:int}/promote")
    async def ask_promote(request: HttpRequest, model: str, version: int) -> Response[str]:
        visitor = await desk.visitor(request, "admin")
        about, gate = await asyncio.to_thread(_before, desk, model, version)
        return desk.pages.show(
            request,
            "confirm.html",
            visitor=visitor,
            act="promote",
            model=model,
            version=version,
            about=about,
            gate=gate,
        )

    @get("/models/{model:str}/rollback")
    async def ask_rollback(request: HttpRequest, model: str) -> Response[str]:
        visitor = await desk.visitor(request, "admin")
        about = await asyncio.to_thread(reads.model, database, desk.slots.serving(), model)
        previous = about.aliases.get("previous")
        return desk.pages.show(
            request,
            "confirm.html",
            visitor=visitor,
            act="rollback",
            model=model,
            version=previous,
            about=about,
            gate=None,
        )

    @post("/models/{model:str}/versions/{version:int}/promote", status_code=303)
    async def promote(request: HttpRequest, model: str, version: int) -> Response[Any]:
        visitor, _ = await desk.form(request, "admin")
        await asyncio.to_thread(move, desk.context, desk.slots, model, version, who=_who(visitor.key_id))
        return go(f"/console/models/{model}")

    @post("/models/{model:str}/rollback", status_code=303)
    async def rollback(request: HttpRequest, model: str) -> Response[Any]:
        visitor, _ = await desk.form(request, "admin")
        await asyncio.to_thread(step_back, desk.slots, model, who=_who(visitor.key_id))
        return go(f"/console/models/{model}")

    @post("/models/{model:str}/versions/{version:int}/rename", status_code=303)
    async def rename(request: HttpRequest, model: str, version: int) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")

        def act() -> None:
            with database.begin() as session:
                version_acts.rename(session, model, version, fields.get("name", ""), who=_who(visitor.key_id))

        await asyncio.to_thread(act)
        return go(f"/console/models/{model}/versions/{version}")

    return Router("/", route_handlers=[listed, one, version_page, ask_promote, ask_rollback, promote, rollback, rename])


def _before(desk: Desk, model: str, version: int) -> tuple[reads.ModelInfo, reads.DecisionInfo | None]:
    database = desk.context.database
    about = reads.model(database, desk.slots.serving(), model)
    gates = [
        d for d in reads.decisions(database, model=model, limit=200) if d.kind == "gate" and d.candidate == version
    ]
    return about, gates[0] if gates else None


def _who(key_id: str) -> str:
    return f"key {key_id}"
