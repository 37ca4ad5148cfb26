"""One version: what it was measured at, where it comes from, what can be carried away, before and after; and the acts on it.

versions.lineage + copies.exports -> page; comparisons -> before and after; question -> form -> rename | reject | delete
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get, post

from serving import comparisons, copies, evaluations, reads
from serving import versions as version_routes
from serving.web.desk import Desk
from serving.web.pages.models import trial_of
from serving.web.render import Field, Question, go
from serving.web.text import size
from sutdol import versions as version_acts
from sutdol.errors import InputError

CHANGES = {
    "fixed": "newly right",
    "broken": "newly wrong",
    "both_wrong": "both wrong",
    "both_right": "both right",
}
"""Change between two versions -> what people read."""
PAGE = 24
"""Images on one page of a comparison."""
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """The page, its comparison, its downloads, and the acts on one version."""
    context, database = desk.context, desk.context.database

    def address(model: str, version: int) -> str:
        return f"/console/models/{model}/versions/{version}"

    @get("/models/{model:str}/versions/{version:int}")
    async def page(request: HttpRequest, model: str, version: int) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            with database.read() as session:
                lineage = version_acts.lineage(session, model, version)
            about = reads.version(database, model, version)
            others = reads.model(database, desk.slots.serving(), model).aliases
            return {
                "lineage": lineage,
                "version": about,
                "model": model,
                "champion": others.get("champion"),
                "exports": copies.exports(context, model, version),
                "waiting": [d for d in reads.waiting(database, model=model) if d.candidate == version],
                "decisions": reads.decisions(database, model=model, candidate=version),
                "trial": trial_of(desk, model),
            }

        return desk.pages.show(request, "version.html", visitor=visitor, **await asyncio.to_thread(values))

    @post("/models/{model:str}/versions/{version:int}/rename", status_code=303)
    async def rename(request: HttpRequest, model: str, version: int) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")

        def act() -> None:
            with database.begin() as session:
                version_acts.rename(session, model, version, fields.get("name", ""), who=visitor.who)

        await asyncio.to_thread(act)
        return go(address(model, version))

    @get("/models/{model:str}/versions/{version:int}/reject")
    async def ask_reject(request: HttpRequest, model: str, version: int) -> Response[str]:
        visitor, _ = await desk.visitor(request, "admin"), desk.pages.words(request)
        gates = await asyncio.to_thread(reads.decisions, database, model=model, candidate=version, kind="gate", limit=1)
        question = Question(
            _("Reject %(model)s v%(v)s?", model=model, v=version),
            [_("It stays in the list with your reason and can never be promoted.")],
            f"{address(model, version)}/reject",
            _("Reject"),
            address(model, version),
            record=gates[0].text if gates else None,
            danger=True,
            fields=[Field("reason", _("Why"))],
        )
        return desk.pages.ask(request, visitor, question)

    @post("/models/{model:str}/versions/{version:int}/reject", status_code=303)
    async def reject(request: HttpRequest, model: str, version: int) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")

        def act() -> None:
            with database.begin() as session:
                version_acts.reject(session, model, version, reason=fields.get("reason", ""), who=visitor.who)

        await asyncio.to_thread(act)
        return go(address(model, version))

    @get("/models/{model:str}/versions/{version:int}/delete")
    async def ask_delete(request: HttpRequest, model: str, version: int) -> Response[str]:
        visitor, _ = await desk.visitor(request, "admin"), desk.pages.words(request)

        def plan() -> version_acts.Deletion:
            with database.read() as session:
                lease_s = context.settings.lease_s
                return version_acts.plan_deletion(session, context.store, model, version, lease_s=lease_s)

        lost = await asyncio.to_thread(plan)
        question = Question(
            _("Delete %(model)s v%(v)s for ever?", model=model, v=version),
            [
                _(
                    "%(n)s files go, %(size)s. Its number, decisions and lineage stay.",
                    n=len(lost.files),
                    size=size(lost.size_bytes),
                ),
                *lost.warnings,
            ],
            f"{address(model, version)}/delete",
            _("Delete"),
            address(model, version),
            danger=True,
            fields=[Field("typed", _("Type %(name)s to confirm", name=f"{model} v{version}"), required=True)],
            hidden={"confirm": lost.token},
        )
        return desk.pages.ask(request, visitor, question)

    @post("/models/{model:str}/versions/{version:int}/delete", status_code=303)
    async def delete(request: HttpRequest, model: str, version: int) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")
        typed, wanted = fields.get("typed", "").strip(), f"{model} v{version}"
        if typed != wanted:
            raise InputError(f"to delete it, type {wanted!r}; found {typed[:80]!r}")
        confirm = fields.get("confirm", "")
        await asyncio.to_thread(version_routes.deleted, context, model, version, confirm=confirm, who=visitor.who)
        return go(f"/console/models/{model}")

    @post("/models/{model:str}/versions/{version:int}/exports/{format:str}", status_code=303)
    async def export(request: HttpRequest, model: str, version: int, format: str) -> Response[Any]:
        await desk.form(request, "admin")
        await asyncio.to_thread(copies.order_export, context, model, version, format)
        return go(f"{address(model, version)}#exports")

    @get("/models/{model:str}/versions/{version:int}/exports/{format:str}")
    async def download(request: HttpRequest, model: str, version: int, format: str) -> Response[bytes]:
        await desk.visitor(request, "label")
        return await asyncio.to_thread(copies.export_file, context, model, version, format)

    @get("/models/{model:str}/versions/{version:int}/compare")
    async def compare(
        request: HttpRequest,
        model: str,
        version: int,
        against: int | None = None,
        change: str = "fixed",
        offset: int = 0,
    ) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            others = [v for v in reads.versions(database, model, limit=PAGE) if v.version != version]
            champion = reads.model(database, desk.slots.serving(), model).aliases.get("champion")
            other = against or (champion if champion != version else others[0].version if others else None)
            found = running = None
            if other is not None:
                made, running = comparisons.newest(context, model, version, other)
                if made is not None:
                    found = comparisons.comparison(context, made, change=change, offset=max(offset, 0), limit=PAGE)
            return {"others": others, "against": other, "found": found, "running": running}

        found = await asyncio.to_thread(values)
        return desk.pages.show(
            request,
            "compare.html",
            visitor=visitor,
            model=model,
            version=version,
            change=change,
            changes=CHANGES,
            offset=offset,
            page=PAGE,
            **found,
        )

    @post("/models/{model:str}/versions/{version:int}/compare", status_code=303)
    async def judge(request: HttpRequest, model: str, version: int) -> Response[Any]:
        _, fields = await desk.form(request, "admin")
        against = fields.get("against", "")
        if not against.isdecimal():
            raise InputError(f"against: expected the number of a version, found {against[:20]!r}")
        order = evaluations.EvaluationOrder(version, int(against))
        await asyncio.to_thread(evaluations.ordered, context, model, order)
        return go(f"{address(model, version)}/compare?against={against}")

    handlers = [page, rename, ask_reject, reject, ask_delete, delete, export, download, compare, judge]
    return Router("/", route_handlers=handlers)
