"""Training: what is being trained, how its curves look, what was trained before; start one, stop one.

runs.overview -> list; runs.detail -> one run, its moving part fetched anew by htmx until it has ended
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get, post

from serving import reads
from serving.web.charts import Series
from serving.web.desk import Desk
from serving.web.render import go
from sutdol import runs
from sutdol.errors import ConflictError, InputError

PRESETS = ("fast", "balanced", "accurate")
REFRESH_S = 2
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """List, one run with its moving part, start and cancel."""
    database = desk.context.database

    @get("/training")
    async def listed(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            with database.read() as session:
                found = runs.overview(session, limit=50)
            return {"runs": found, "models": reads.models(database, desk.slots.serving())}

        found = await asyncio.to_thread(values)
        return desk.pages.show(request, "runs.html", visitor=visitor, presets=PRESETS, final=runs.FINAL, **found)

    def detail(run_id: str) -> dict[str, Any]:
        with database.read() as session:
            run = runs.detail(session, run_id)
        return {"run": run, "charts_of": [_curves(c["curve"]) for c in run["candidates"]], "final": runs.FINAL}

    @get("/training/{run_id:str}")
    async def one(request: HttpRequest, run_id: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        found = await asyncio.to_thread(detail, run_id)
        return desk.pages.show(request, "run.html", visitor=visitor, refresh_s=REFRESH_S, **found)

    @get("/training/{run_id:str}/part")
    async def part(request: HttpRequest, run_id: str) -> Response[str]:
        await desk.visitor(request, "label")
        return desk.pages.show(request, "run_part.html", **await asyncio.to_thread(detail, run_id))

    @post("/training", status_code=303)
    async def start(request: HttpRequest) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")
        params: dict[str, Any] = {"preset": fields["preset"]} if fields.get("preset") in PRESETS else {}
        if epochs := fields.get("epochs", "").strip():
            if not epochs.isdecimal() or not 1 <= int(epochs) <= 100_000:
                raise InputError(f"epochs: expected a whole number from 1 on, found {epochs[:20]!r}")
            params["epochs"] = int(epochs)

        def act() -> str:
            with database.begin() as session:
                run = runs.queue(
                    session, fields.get("model", ""), cause=f"by hand, key {visitor.key_id}", params=params
                )
            if run is None:
                raise ConflictError("this model is being trained already", hint="cancel that run, or wait for its end")
            return run.id

        return go(f"/console/training/{await asyncio.to_thread(act)}")

    @post("/training/{run_id:str}/cancel", status_code=303)
    async def cancel(request: HttpRequest, run_id: str) -> Response[Any]:
        await desk.form(request, "admin")

        def act() -> None:
            with database.begin() as session:
                runs.cancel(session, run_id)

        await asyncio.to_thread(act)
        return go(f"/console/training/{run_id}")

    return Router("/", route_handlers=[listed, one, part, start, cancel])


def _curves(curve: list[dict[str, Any]]) -> list[tuple[str, list[float], list[Series]]]:
    """(title, epochs, series) of each chart: losses together, scores together."""
    epochs = [float(row["epoch"]) for row in curve]
    names = list(dict.fromkeys(name for row in curve for name in row["metrics"]))
    losses = [n for n in names if "loss" in n]
    scores = [n for n in names if n.startswith("val/") and n not in losses]
    return [
        (title, epochs, [Series(name, [row["metrics"].get(name) for row in curve]) for name in chosen[:6]])
        for title, chosen in (("Loss", losses), ("On the val split", scores))
        if chosen and epochs
    ]
