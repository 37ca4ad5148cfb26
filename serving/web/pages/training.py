"""Training: what is being trained and what waits, how its curves look; start one, look at its augmentation, stop, compare.

runs.overview -> list; runs.detail -> one run, its moving part fetched anew by htmx until it has ended; two or more -> side by
side; form -> training.started | datasets.preview_ordered
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get, post

from serving import datasets, reads, training
from serving.web.charts import Series
from serving.web.desk import Desk
from serving.web.render import go
from sutdol import runs
from sutdol.errors import InputError, NotFoundError

REFRESH_S = 2
MOST_COMPARED = 4
PREVIEW_IMAGES, PREVIEW_COUNT = 4, 6
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """List, the form, one run with its moving part, several side by side, the sheet of augmented images; start and cancel."""
    context, database = desk.context, desk.context.database

    @get("/training")
    async def listed(request: HttpRequest, model: str | None = None) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            with database.read() as session:
                found = runs.overview(session, model=model, limit=50)
            models = reads.models(database, desk.slots.serving())
            return {"runs": found, "models": models, "chosen": model}

        found = await asyncio.to_thread(values)
        return desk.pages.show(request, "runs.html", visitor=visitor, final=runs.FINAL, most=MOST_COMPARED, **found)

    def form_of(model: str, family: str, given: dict[str, str]) -> dict[str, Any]:
        """What the form shows: the families of a model, the one that is meant, and what was typed so far."""
        families = training.families_of(context, desk.families, model)
        meant = next((one for one in families if one.name == family), families[0] if families else None)
        own = reads.model(database, desk.slots.serving(), model).family
        return {
            "model": model,
            "own": own,
            "families": families,
            "meant": meant,
            "given": given,
            "fields": training.FORM,
            "names": FIELDS,
        }

    @get("/training/new")
    async def new(request: HttpRequest, model: str, family: str = "") -> Response[str]:
        visitor = await desk.visitor(request, "admin")
        found = await asyncio.to_thread(form_of, model, family, {})
        return desk.pages.show(request, "new_run.html", visitor=visitor, sheet=None, augmentation=FIELDS, **found)

    @post("/training/preview", status_code=303)
    async def preview(request: HttpRequest) -> Response[Any]:
        _, fields = await desk.form(request, "admin")
        wanted = datasets.PreviewIn(training.typed(fields), PREVIEW_IMAGES, PREVIEW_COUNT, fields.get("family") or None)
        job = await asyncio.to_thread(datasets.preview_ordered, context, fields.get("model", ""), wanted)
        return go(f"/console/training/previews/{job.id}")

    @get("/training/previews/{job_id:str}")
    async def previewed(request: HttpRequest, job_id: str) -> Response[str]:
        visitor = await desk.visitor(request, "admin")

        def values() -> dict[str, Any]:
            job, payload = datasets.preview_of(context, job_id)
            given = {name: _shown(value) for name, value in payload["params"].items()}
            return form_of(payload["model"], payload.get("family") or "", given) | {"sheet": job}

        found = await asyncio.to_thread(values)
        return desk.pages.show(request, "new_run.html", visitor=visitor, **found)

    @get("/training/previews/{job_id:str}/sheet.jpg")
    async def sheet(request: HttpRequest, job_id: str) -> Response[bytes]:
        await desk.visitor(request, "admin")

        def bytes_of() -> bytes:
            job, _ = datasets.preview_of(context, job_id)
            if job.state != "done" or job.result is None:
                raise NotFoundError(f"the sheet is not there: the job is {job.state}")
            return context.store.get(str(job.result["key"]))

        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(await asyncio.to_thread(bytes_of), media_type="image/jpeg", headers=headers)

    @get("/training/compare")
    async def compare(request: HttpRequest, run: list[str]) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        if not 2 <= len(run) <= MOST_COMPARED:
            raise InputError(f"compare: expected 2 to {MOST_COMPARED} trainings, found {len(run)}")

        def values() -> dict[str, Any]:
            with database.read() as session:
                found = [runs.detail(session, run_id) for run_id in dict.fromkeys(run)]
            made = [
                reads.version(database, one["model"], one["version"]) if one["version"] is not None else None
                for one in found
            ]
            return {"runs": found, "made": made, "charts_of": _overlaid(found)}

        return desk.pages.show(request, "compare_runs.html", visitor=visitor, **await asyncio.to_thread(values))

    def detail(run_id: str) -> dict[str, Any]:
        with database.read() as session:
            run = runs.detail(session, run_id)
        curves = [_curves(c["curve"]) for c in run["candidates"]]
        return {"run": run, "charts_of": curves, "final": runs.FINAL, "machine": _machine(run)}

    @get("/training/{run_id:str}")
    async def one(request: HttpRequest, run_id: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        found = await asyncio.to_thread(detail, run_id)
        return desk.pages.show(request, "run.html", visitor=visitor, refresh_s=REFRESH_S, **found)

    @get("/training/{run_id:str}/part")
    async def part(request: HttpRequest, run_id: str) -> Response[str]:
        await desk.visitor(request, "label")
        found = await asyncio.to_thread(detail, run_id)
        # once it has ended the whole page is loaded anew: without the button, and asking no more
        headers = {"HX-Refresh": "true"} if found["run"]["state"] in runs.FINAL else None
        return desk.pages.show(request, "run_part.html", headers=headers, **found)

    @post("/training", status_code=303)
    async def start(request: HttpRequest) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")
        family = fields.get("family", "")
        wanted = training.RunIn(
            fields.get("model", ""),
            training.typed(fields),
            [training.CandidateIn(family)] if family else [],
            cause=f"by hand, {visitor.who}",
        )
        run = await asyncio.to_thread(training.started, context, wanted)
        return go(f"/console/training/{run.id}")

    @post("/training/{run_id:str}/cancel", status_code=303)
    async def cancel(request: HttpRequest, run_id: str) -> Response[Any]:
        await desk.form(request, "admin")

        def act() -> None:
            with database.begin() as session:
                runs.cancel(session, run_id)

        await asyncio.to_thread(act)
        return go(f"/console/training/{run_id}")

    return Router("/", route_handlers=[listed, new, preview, previewed, sheet, compare, one, part, start, cancel])


FIELDS = {
    "image_size": "Image size, px",
    "batch": "Batch, images at most",
    "epochs": "Epochs",
    "lr": "Learning rate",
    "hflip": "Mirrored left and right, chance",
    "vflip": "Mirrored upside down, chance",
    "rotate_deg": "Turned, degrees at most",
    "brightness": "Brighter or darker, share at most",
    "crop": "Zoomed in, share at most",
    "mosaic": "Four images in one, chance",
}
"""Parameter -> what people read."""


def _shown(value: Any) -> str:
    return "on" if value is True else f"{value:g}" if isinstance(value, int | float) else str(value)


def _machine(run: dict[str, Any]) -> dict[str, float]:
    """What the newest epoch says of the machine, without the prefix."""
    points = [c["curve"][-1] for c in run["candidates"] if c["curve"]]
    newest = max(points, key=lambda point: point["at"], default=None)
    metrics = newest["metrics"] if newest else {}
    return {name.removeprefix("machine/"): value for name, value in metrics.items() if name.startswith("machine/")}


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


def _overlaid(found: list[dict[str, Any]]) -> list[tuple[str, list[float], list[Series]]]:
    """(title, epochs, series) of each chart: one number of the best candidate of every run, where two runs have it."""
    curves = [run["candidates"][0]["curve"] if run["candidates"] else [] for run in found]
    names = list(dict.fromkeys(n for curve in curves for row in curve for n in row["metrics"] if n.startswith("val/")))
    epochs = [float(n) for n in range(1, max((len(curve) for curve in curves), default=0) + 1)]
    charts = []
    for name in names:
        series = [
            Series(run["id"][:13], [row["metrics"].get(name) for row in curve] + [None] * (len(epochs) - len(curve)))
            for run, curve in zip(found, curves, strict=True)
        ]
        if sum(any(value is not None for value in one.values) for one in series) > 1:
            charts.append((name, epochs, series))
    return charts[:6]
