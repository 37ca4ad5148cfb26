"""One image: what was answered about it and how sure, why it was picked, what people said, where it is used.

samples.known -> page; samples.picture -> the small pictures of every grid
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get

from serving import samples
from serving.web.desk import Desk

SMALL_PX = 320
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """The page, and pictures small enough for a grid of them."""

    @get("/sample/{sample_id:str}")
    async def page(request: HttpRequest, sample_id: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        sample = await asyncio.to_thread(samples.known, desk.context, sample_id)
        return desk.pages.show(request, "sample.html", visitor=visitor, sample=sample)

    @get("/samples/{sample_id:str}/small")
    async def small(request: HttpRequest, sample_id: str) -> Response[bytes]:
        await desk.visitor(request, "label")
        found = await asyncio.to_thread(samples.picture, desk.context, sample_id, SMALL_PX)
        headers = {"Cache-Control": "private, max-age=86400", "Content-Security-Policy": "default-src 'none'"}
        return Response(found.data, media_type=found.media_type, headers=headers)

    return Router("/", route_handlers=[page, small])
