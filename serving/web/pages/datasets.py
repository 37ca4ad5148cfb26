"""Datasets: bring labelled images in, see what is in them, compare versions, look at the images themselves.

datasets.versions + imports + jobs_of -> one model; browse.browse -> the images; dataset_versions.diff -> what changed
form with a zip -> bodies.opened_form -> datasets.receive; the other forms -> datasets.make_model | freeze | export | describe
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

from litestar import Request, Response, Router, get, post
from litestar.response import Stream

from serving import browse, datasets, reads
from serving.bodies import opened_form
from serving.datasets import DatasetVersionInfo, ExportIn, ModelIn, Words
from serving.web.desk import Desk
from serving.web.render import go
from sutdol import dataset_versions
from sutdol.dataset_versions import SPLITS
from sutdol.errors import AuthError, NotFoundError

REFRESH_S = 2
PAGE = 48
SHOWN = 24
"""Images of each kind of change."""
FORMATS = ("voc", "coco", "yolo", "csv", "imagefolder")
TASKS = ("classify", "multilabel", "detect")
ARMS = ("drawn", "unfamiliar", "empty", "disagree", "diverse", "weak", "margin", "none")
KINDS = {"retrain.import": "import", "retrain.freeze": "new version", "retrain.export": "export"}
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """Overview, one model with its jobs, one version, a comparison, the images, and the actions."""
    context, database = desk.context, desk.context.database

    @get("/datasets")
    async def overview(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> list[tuple[reads.ModelInfo, DatasetVersionInfo | None]]:
            models = reads.models(database, {})
            newest = (datasets.versions(context, model.name, limit=1) for model in models)
            return [(model, found[0] if found else None) for model, found in zip(models, newest, strict=True)]

        rows = await asyncio.to_thread(values)
        return desk.pages.show(request, "datasets.html", visitor=visitor, rows=rows, tasks=TASKS, splits=SPLITS)

    @get("/datasets/{model:str}")
    async def one(request: HttpRequest, model: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            versions = datasets.versions(context, model)
            return {
                "model": reads.model(database, {}, model),
                "versions": versions,
                "imports": datasets.imports(context, model),
                "jobs": datasets.jobs_of(context, model),
                "classes": _classes(versions[0]) if versions else [],
            }

        found = await asyncio.to_thread(values)
        return desk.pages.show(
            request,
            "dataset.html",
            visitor=visitor,
            refresh_s=REFRESH_S,
            formats=FORMATS,
            splits=SPLITS,
            kinds=KINDS,
            **found,
        )

    @get("/datasets/{model:str}/jobs")
    async def jobs(request: HttpRequest, model: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        found = await asyncio.to_thread(datasets.jobs_of, context, model)
        busy = any(job.state in ("queued", "running") for job in found)
        headers = None if busy else {"HX-Refresh": "true"}  # what they made is on the rest of the page
        return desk.pages.show(
            request, "dataset_jobs.html", visitor=visitor, name=model, jobs=found, kinds=KINDS, headers=headers
        )

    @get("/datasets/{model:str}/versions/{number:int}")
    async def version(request: HttpRequest, model: str, number: int) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        versions = await asyncio.to_thread(datasets.versions, context, model)
        found = next((v for v in versions if v.number == number), None)
        if found is None:
            raise NotFoundError(f"{model} has no dataset version {number}")
        return desk.pages.show(
            request,
            "dataset_version.html",
            visitor=visitor,
            model=model,
            version=found,
            versions=versions,
            classes=_classes(found),
            splits=SPLITS,
            formats=FORMATS,
        )

    @get("/datasets/{model:str}/versions/{number:int}/statistics")
    async def statistics(request: HttpRequest, model: str, number: int) -> Response[str]:
        await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            with database.read() as session:
                return dataset_versions.statistics(session, dataset_versions.get_version(session, model, number))

        return desk.pages.show(request, "dataset_statistics.html", found=await asyncio.to_thread(values))

    @get("/datasets/{model:str}/versions/{number:int}/diff")
    async def diff(request: HttpRequest, model: str, number: int, since: int) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            with database.read() as session:
                old, new = (dataset_versions.get_version(session, model, n) for n in (since, number))
                return dataset_versions.diff(session, old, new, shown=SHOWN)

        found = await asyncio.to_thread(values)
        return desk.pages.show(
            request, "dataset_diff.html", visitor=visitor, model=model, number=number, since=since, found=found
        )

    @get("/datasets/{model:str}/images")
    async def images(request: HttpRequest, model: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        asked = {k: v for k, v in request.query_params.items() if v}
        number = asked.get("version", "")
        wanted = browse.Wanted(
            version=int(number) if number.isdecimal() and len(number) < 10 else None,
            class_name=asked.get("class"),
            split=asked.get("split"),
            arm=asked.get("arm"),
            judged=asked.get("judged"),
            after=asked.get("after"),
            limit=PAGE,
        )

        def values() -> dict[str, Any]:
            return {
                "model": reads.model(database, {}, model),
                "numbers": [v.number for v in datasets.versions(context, model)],
                "found": browse.browse(context, model, wanted),
            }

        shown = await asyncio.to_thread(values)
        asked.pop("after", None)
        return desk.pages.show(
            request,
            "dataset_images.html",
            visitor=visitor,
            wanted=wanted,
            asked=urlencode(asked),
            splits=SPLITS,
            arms=ARMS,
            **shown,
        )

    @get("/datasets/{model:str}/jobs/{job_id:str}/file")
    async def file_of(request: HttpRequest, model: str, job_id: str) -> Stream:
        await desk.visitor(request, "admin")
        return await asyncio.to_thread(datasets.file_of, context, job_id)

    @post("/datasets", status_code=303)
    async def make_model(request: HttpRequest) -> Response[Any]:
        _, fields = await desk.form(request, "admin")
        wanted = ModelIn(fields.get("name", "").strip(), fields.get("task", ""))
        made = await asyncio.to_thread(datasets.make_model, context, wanted)
        return go(f"/console/datasets/{made.name}")

    @post("/datasets/{model:str}/imports", status_code=303, request_max_body_size=None)
    async def bring_in(request: HttpRequest, model: str) -> Response[Any]:
        visitor = await desk.sessions.visitor(request)
        if visitor is None:
            raise AuthError("nobody is logged in")
        fields, zipped = await opened_form(request, "file")
        desk.sessions.check_form(request, visitor, fields.get("csrf", ""))
        if not visitor.may("admin"):
            raise AuthError("this key may not import data sets", status=403)
        plan = {name: fields.get(name) or None for name in ("format", "group")}
        plan |= {name: fields.get(name, "") for name in ("name", "memo")}
        await datasets.receive(context, model, zipped, plan | {"resplit": bool(fields.get("resplit"))})
        return go(f"/console/datasets/{model}")

    @post("/datasets/{model:str}/versions", status_code=303)
    async def freeze(request: HttpRequest, model: str) -> Response[Any]:
        _, fields = await desk.form(request, "admin")
        await asyncio.to_thread(datasets.freeze, context, model, fields.get("name", "").strip())
        return go(f"/console/datasets/{model}")

    @post("/datasets/{model:str}/versions/{number:int}/describe", status_code=303)
    async def describe(request: HttpRequest, model: str, number: int) -> Response[Any]:
        _, fields = await desk.form(request, "admin")
        tags = [tag.strip() for tag in fields.get("tags", "").split(",") if tag.strip()]
        words = Words(fields.get("name", "").strip(), tags, fields.get("memo", "").strip())
        await asyncio.to_thread(datasets.describe, context, model, number, words)
        return go(f"/console/datasets/{model}/versions/{number}")

    @post("/datasets/{model:str}/versions/{number:int}/export", status_code=303)
    async def export(request: HttpRequest, model: str, number: int) -> Response[Any]:
        _, fields = await desk.form(request, "admin")
        await asyncio.to_thread(datasets.export, context, model, ExportIn(fields.get("format", ""), number))
        return go(f"/console/datasets/{model}")

    pages = [overview, one, jobs, version, statistics, diff, images, file_of]
    return Router("/", route_handlers=[*pages, make_model, bring_in, freeze, describe, export])


def _classes(version: DatasetVersionInfo) -> list[tuple[str, list[int], int]]:
    """(class, labels per split, all of them), as the version was counted when it was frozen."""
    by_split = [version.counts["classes"].get(split, {}) for split in SPLITS]
    names = [*version.classes, *sorted({n for counts in by_split for n in counts} - set(version.classes))]
    rows = [(name, [int(counts.get(name, 0)) for counts in by_split]) for name in names]
    return [(name, counts, sum(counts)) for name, counts in rows]
