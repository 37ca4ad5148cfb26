"""Live: what comes in and what is answered now, on which version, and what of it people will see.

    reads.traffic + predictions + replicas, monitor.report -> page; the moving part is fetched anew every REFRESH_S by htmx

See `serving.web.ticks` for the moving part.
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get

from serving import reads
from serving.web import text
from serving.web.desk import Desk
from serving.web.render import HEADERS
from sutdol.errors import NotFoundError

HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """The page, its moving part, and the images that were kept."""

    @get("/")
    async def page(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        values = await asyncio.to_thread(desk.ticks.values)
        return desk.pages.show(request, "live.html", visitor=visitor, **values)

    @get("/live")
    async def part(request: HttpRequest) -> Response[bytes]:
        await desk.visitor(request, "label")
        html = await desk.ticks.html(text.language_of(request))
        return Response(html, media_type="text/html", headers=HEADERS)

    @get("/samples/{sample_id:str}")
    async def sample(request: HttpRequest, sample_id: str) -> Response[bytes]:
        await desk.visitor(request, "label")
        found = await asyncio.to_thread(reads.sample, desk.context, sample_id)
        if found is None:
            raise NotFoundError("this image was not kept", hint="images are kept when an arm picks them")
        headers = {"Cache-Control": "private, max-age=86400", "Content-Security-Policy": "default-src 'none'"}
        return Response(found.data, media_type=found.media_type, headers=headers)

    return Router("/", route_handlers=[page, part, sample])
