"""Settings: what is in force and why, who may call, and which processes live."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get, post

from serving import diagnosis, reads
from serving.web.desk import Desk
from sutdol import keys
from sutdol import settings as settings_module

HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """The page, and making and revoking keys."""
    database, settings = desk.context.database, desk.context.settings

    async def show(request: HttpRequest, made: str | None = None) -> Response[str]:
        visitor = await desk.visitor(request, "admin")

        def values() -> dict[str, Any]:
            return {
                "keys": reads.keys(database),
                "replicas": reads.replicas(database, lease_s=settings.lease_s),
                "settings": settings_module.effective(settings),
            }

        found = await asyncio.to_thread(values)
        return desk.pages.show(request, "settings.html", visitor=visitor, made=made, scopes=keys.SCOPES, **found)

    @get("/settings")
    async def page(request: HttpRequest) -> Response[str]:
        return await show(request)

    @post("/settings/keys", status_code=200)
    async def make_key(request: HttpRequest) -> Response[str]:
        _, fields = await desk.form(request, "admin")

        def act() -> str:
            with database.begin() as session:
                return keys.create(session, fields.get("name", "").strip() or "console", [fields.get("scope", "")])

        return await show(request, await asyncio.to_thread(act))

    @post("/settings/keys/{key_id:str}/revoke", status_code=200)
    async def revoke_key(request: HttpRequest, key_id: str) -> Response[str]:
        await desk.form(request, "admin")

        def act() -> None:
            with database.begin() as session:
                keys.revoke(session, key_id)

        await asyncio.to_thread(act)
        return await show(request)

    @get("/settings/doctor")
    async def doctor(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "admin")
        findings = await asyncio.to_thread(diagnosis.findings, desk.context)
        return desk.pages.show(request, "doctor.html", visitor=visitor, findings=findings)

    return Router("/", route_handlers=[page, doctor, make_key, revoke_key])
