"""Live: what comes in and what is answered now, on which version, and what of it people will see.

    reads.traffic + predictions + replicas, monitor.report -> page; the moving part is fetched anew every REFRESH_S by htmx

The moving part is rendered once per tick and shared by all readers of one language and scope: a hundred open consoles cost
one rendering.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from litestar import Request, Response, Router, get

from serving import reads
from serving.web import text
from serving.web.desk import Desk
from sutdol.errors import NotFoundError
from sutdol.monitor import report

REFRESH_S = 2
RECENT = 24
WINDOW_S = 60.0
HttpRequest = Request[Any, Any, Any]


@dataclass
class _Tick:
    made_at: float
    response: Response[str]


def build(desk: Desk) -> Router:
    """The page, its moving part, and the images that were kept."""
    ticks: dict[str, _Tick] = {}
    making = asyncio.Lock()
    database = desk.context.database

    def values() -> dict[str, Any]:
        with database.read() as session:
            watched = report.everything(session)
        return {
            "watched": watched,
            "traffic": reads.traffic(database, window_s=WINDOW_S),
            "predictions": reads.predictions(database, limit=RECENT),
            "replicas": reads.replicas(database, lease_s=desk.context.settings.lease_s),
            "models": reads.models(database, desk.slots.serving()),
            "refresh_s": REFRESH_S,
        }

    @get("/")
    async def page(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        return desk.pages.show(request, "live.html", visitor=visitor, **await asyncio.to_thread(values))

    @get("/live")
    async def part(request: HttpRequest) -> Response[str]:
        await desk.visitor(request, "label")
        language = text.language_of(request)
        async with making:
            tick = ticks.get(language)
            if tick is None or time.monotonic() - tick.made_at > REFRESH_S * 0.9:
                found = await asyncio.to_thread(values)
                tick = _Tick(time.monotonic(), desk.pages.show(request, "live_part.html", **found))
                ticks[language] = tick
        return tick.response

    @get("/samples/{sample_id:str}")
    async def sample(request: HttpRequest, sample_id: str) -> Response[bytes]:
        await desk.visitor(request, "label")
        found = await asyncio.to_thread(reads.sample, desk.context, sample_id)
        if found is None:
            raise NotFoundError("this image was not kept", hint="images are kept when an arm picks them")
        headers = {"Cache-Control": "private, max-age=86400", "Content-Security-Policy": "default-src 'none'"}
        return Response(found.data, media_type=found.media_type, headers=headers)

    return Router("/", route_handlers=[page, part, sample])
