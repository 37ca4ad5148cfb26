"""Models: every model, its versions with what they were measured at, and what is put to work - each act asked twice.

reads.models -> list; reads.versions + monitor.report -> one model; question -> form -> move | step_back | trial | copy
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get, post

from serving import copies, reads, trials
from serving.operations import move, step_back
from serving.web.desk import Desk
from serving.web.render import Field, Question, go
from serving.web.text import share_of
from sutdol.errors import NotFoundError
from sutdol.monitor import report

PAGE = 50
"""Versions on one page."""
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """List, one model, and the acts that change what is served."""
    database = desk.context.database

    @get("/models")
    async def listed(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            waiting = {d.model for d in reads.waiting(database)}
            return {"models": reads.models(database, desk.slots.serving()), "waiting": waiting}

        return desk.pages.show(request, "models.html", visitor=visitor, **await asyncio.to_thread(values))

    @get("/models/{model:str}")
    async def one(request: HttpRequest, model: str, before: int | None = None) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            about = reads.model(database, desk.slots.serving(), model)
            with database.read() as session:
                watched = {"accuracy": report.accuracy(session, model), "drift": report.drift_of(session, model)}
            versions = reads.versions(database, model, before=before, limit=PAGE + 1)
            return watched | {
                "model": about,
                "versions": versions[:PAGE],
                "older": versions[PAGE - 1].version if len(versions) > PAGE else None,
                "before": before,
                "trial": trial_of(desk, model),
                "waiting": reads.waiting(database, model=model),
                "decisions": reads.decisions(database, model=model, limit=10),
            }

        return desk.pages.show(request, "model.html", visitor=visitor, **await asyncio.to_thread(values))

    @get("/models/{model:str}/versions/{version:int}/promote")
    async def ask_promote(request: HttpRequest, model: str, version: int) -> Response[str]:
        visitor, _ = await desk.visitor(request, "admin"), desk.pages.words(request)
        about = await asyncio.to_thread(reads.model, database, desk.slots.serving(), model)
        gates = await asyncio.to_thread(reads.decisions, database, model=model, candidate=version, kind="gate", limit=1)
        facts = [
            _(
                "Now v%(v)s serves. Every replica loads the other version beside it, checks it and swaps; no request fails.",
                v=about.aliases.get("champion", "–"),
            )
        ]
        if not gates:
            facts.append(_("The gate has not judged this version."))
        question = Question(
            _("Promote %(model)s v%(v)s?", model=model, v=version),
            facts,
            f"/console/models/{model}/versions/{version}/promote",
            _("Promote"),
            f"/console/models/{model}",
            record=gates[0].text if gates else None,
        )
        return desk.pages.ask(request, visitor, question)

    @post("/models/{model:str}/versions/{version:int}/promote", status_code=303)
    async def promote(request: HttpRequest, model: str, version: int) -> Response[Any]:
        visitor, _ = await desk.form(request, "admin")
        await asyncio.to_thread(move, desk.context, desk.slots, model, version, who=visitor.who)
        return go(f"/console/models/{model}")

    @get("/models/{model:str}/rollback")
    async def ask_rollback(request: HttpRequest, model: str) -> Response[str]:
        visitor, _ = await desk.visitor(request, "admin"), desk.pages.words(request)
        about = await asyncio.to_thread(reads.model, database, desk.slots.serving(), model)
        fact = _(
            "Now v%(v)s serves. Every replica loads the other version beside it, checks it and swaps; no request fails.",
            v=about.aliases.get("champion", "–"),
        )
        question = Question(
            _("Roll %(model)s back to v%(v)s?", model=model, v=about.aliases.get("previous", "–")),
            [fact],
            f"/console/models/{model}/rollback",
            _("Roll back"),
            f"/console/models/{model}",
        )
        return desk.pages.ask(request, visitor, question)

    @post("/models/{model:str}/rollback", status_code=303)
    async def rollback(request: HttpRequest, model: str) -> Response[Any]:
        visitor, _ = await desk.form(request, "admin")
        await asyncio.to_thread(step_back, desk.slots, model, who=visitor.who)
        return go(f"/console/models/{model}")

    @get("/models/{model:str}/versions/{version:int}/trial")
    async def ask_trial(request: HttpRequest, model: str, version: int) -> Response[str]:
        visitor, _ = await desk.visitor(request, "admin"), desk.pages.words(request)
        await asyncio.to_thread(reads.version, database, model, version)
        question = Question(
            _("Try %(model)s v%(v)s on a share of the traffic?", model=model, v=version),
            [
                _("Shadow: it answers beside the champion and nobody sees it. Canary: its answers count."),
                _("A trial that runs already is replaced. It ends with a promotion, by hand, or by the watch."),
            ],
            f"/console/models/{model}/versions/{version}/trial",
            _("Start the trial"),
            f"/console/models/{model}/versions/{version}",
            fields=[
                Field("mode", _("How"), "shadow", {"shadow": _("shadow"), "canary": _("canary")}),
                Field("share", _("Share of the traffic, %"), "10", required=True),
                Field(
                    "max_disagreement",
                    _("End it when more than this share of the answers differ, %"),
                    "0",
                    hint=_("0: it is not watched for that."),
                    required=True,
                ),
            ],
        )
        return desk.pages.ask(request, visitor, question)

    @post("/models/{model:str}/versions/{version:int}/trial", status_code=303)
    async def trial(request: HttpRequest, model: str, version: int) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")
        wanted = trials.RolloutBody(
            version,
            fields.get("mode", ""),
            share_of(fields.get("share", ""), "share"),
            share_of(fields.get("max_disagreement", ""), "max_disagreement"),
        )
        await asyncio.to_thread(trials.started, desk.context, model, wanted, who=visitor.who)
        return go(f"/console/models/{model}")

    @get("/models/{model:str}/trial/end")
    async def ask_end(request: HttpRequest, model: str) -> Response[str]:
        visitor, _ = await desk.visitor(request, "admin"), desk.pages.words(request)
        running = await asyncio.to_thread(trials.shown, desk.context, desk.slots, model)
        question = Question(
            _("End the trial of %(model)s v%(v)s?", model=model, v=running.version),
            [_("The champion answers everything again. What was compared stays in the record.")],
            f"/console/models/{model}/trial/end",
            _("End the trial"),
            f"/console/models/{model}",
        )
        return desk.pages.ask(request, visitor, question)

    @post("/models/{model:str}/trial/end", status_code=303)
    async def end(request: HttpRequest, model: str) -> Response[Any]:
        visitor, _ = await desk.form(request, "admin")
        await asyncio.to_thread(trials.ended, desk.context, model, who=visitor.who)
        return go(f"/console/models/{model}")

    @get("/models/{model:str}/copy")
    async def ask_copy(request: HttpRequest, model: str) -> Response[str]:
        visitor, _ = await desk.visitor(request, "admin"), desk.pages.words(request)
        about = await asyncio.to_thread(reads.model, database, desk.slots.serving(), model)
        question = Question(
            _("Make a faster copy of %(model)s v%(v)s?", model=model, v=about.aliases.get("champion", "–")),
            [_("A worker makes it and the gate judges it: nowhere worse, and faster by what you ask for.")],
            f"/console/models/{model}/copy",
            _("Make the copy"),
            f"/console/models/{model}",
            fields=[
                Field(
                    "how", _("How"), "int8", {"int8": _("INT8, four times smaller"), "fp16": _("FP16, half the size")}
                ),
                Field("min_speed_up", _("Times faster, at least"), "1.1", required=True),
            ],
        )
        return desk.pages.ask(request, visitor, question)

    @post("/models/{model:str}/copy", status_code=303)
    async def copy(request: HttpRequest, model: str) -> Response[Any]:
        _, fields = await desk.form(request, "admin")
        wanted = copies.order_of(fields.get("how", ""), fields.get("min_speed_up", ""))
        await asyncio.to_thread(copies.ordered, desk.context, model, wanted)
        return go(f"/console/models/{model}")

    handlers = [listed, one, ask_promote, promote, ask_rollback, rollback, ask_trial, trial, ask_end, end]
    return Router("/", route_handlers=[*handlers, ask_copy, copy])


def trial_of(desk: Desk, model: str) -> trials.RolloutInfo | None:
    """The challenger on trial, or None."""
    try:
        return trials.shown(desk.context, desk.slots, model)
    except NotFoundError:
        return None
