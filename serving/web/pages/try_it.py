"""Try it: an image from the visitor's machine through the predict endpoint, and the calls that do the same from code.

form with one file -> the engine, like any request: logged, perhaps picked -> the answer, drawn over the image
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import msgspec
from litestar import Request, Response, Router, get, post

from serving import predict, reads
from serving.answers import Reply
from serving.bodies import field_of, image_of, settled
from serving.engine import Item
from serving.tickets import Ticket
from serving.web.desk import Desk
from sutdol import images
from sutdol.errors import AuthError, InputError

HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """The form and its answer."""

    async def models() -> list[reads.ModelInfo]:
        return await asyncio.to_thread(reads.models, desk.context.database, desk.slots.serving())

    @get("/try")
    async def page(request: HttpRequest) -> Response[str]:
        visitor = await desk.visitor(request, "predict")
        url = desk.context.settings.url
        return desk.pages.show(
            request, "try.html", visitor=visitor, models=await models(), url=url, reply=None, thanks=None
        )

    @post("/try", status_code=200)
    async def ask(request: HttpRequest) -> Response[str]:
        visitor = await desk.sessions.visitor(request)
        if visitor is None:
            raise AuthError("nobody is logged in")
        kind = request.headers.get("content-type", "")
        async with desk.bodies.of(request) as body:
            desk.sessions.check_form(request, visitor, field_of(body, kind, "csrf").decode("utf-8", "replace"))
            if not visitor.may("predict"):
                raise AuthError("this key may not predict", status=403)
            model = field_of(body, kind, "model").decode("utf-8", "replace")
            data = image_of(body, kind)
        if not data:
            raise InputError("try it: expected an image, found none", hint="choose a file first")
        await desk.slots.ready(model)
        item = Item(model, data, visitor.key_id, Ticket())
        desk.engine.submit(item)
        reply = msgspec.json.decode(await settled(item.ticket, request), type=Reply)
        upright = await asyncio.to_thread(images.admit, data)
        picture = f"data:{upright.media_type};base64,{base64.b64encode(upright.data).decode()}"
        url = desk.context.settings.url
        return desk.pages.show(
            request,
            "try.html",
            visitor=visitor,
            models=await models(),
            url=url,
            reply=reply,
            picture=picture,
            thanks=None,
        )

    @post("/try/answer", status_code=200)
    async def answer(request: HttpRequest) -> Response[str]:
        visitor, fields = await desk.form(request, "predict")
        given = predict.FeedbackBody(class_name=fields.get("right", ""))
        prediction_id, url = fields.get("prediction_id", ""), desk.context.settings.url
        await predict.given_feedback(request, desk.context, desk.log, prediction_id, given, key_id=visitor.key_id)
        return desk.pages.show(
            request, "try.html", visitor=visitor, models=await models(), url=url, reply=None, thanks=prediction_id
        )

    return Router("/", route_handlers=[page, ask, answer])
