"""The console's routes: log in, log out, language, static files, and the pages, each behind a session.

    build(desk) -> Router under /console

Every page handler gets the visitor from `Desk.visitor`, which sends strangers to the log-in page and refuses keys without the
scope. Every unsafe handler is registered through `Desk.form`, which reads the form and checks that it is one of ours.

Errors: SutdolError of the functions called become a page with the message and its hint, under the error's own status.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litestar import Request, Response, Router, get, post
from litestar.datastructures import CacheControlHeader, Cookie
from litestar.static_files import create_static_files_router

from serving.web import assets, text
from serving.web.desk import Desk
from serving.web.pages import (
    datasets,
    decisions,
    evaluation,
    labels,
    live,
    models,
    sample,
    settings,
    training,
    try_it,
    versions,
)
from serving.web.render import go
from sutdol.errors import AuthError, BusyError, SetupError, SutdolError

HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """All routes of the console; without its built files, an answer that says how to build them."""
    if not assets.built():
        return Router("/", route_handlers=[_not_built])
    static = create_static_files_router(
        "/static",
        [Path(__file__).parent / "static"],
        cache_control=CacheControlHeader(max_age=3600, public=True),
        include_in_schema=False,
    )
    screens = (live, labels, datasets, training, models, versions, evaluation, sample, decisions, try_it, settings)
    pages = [page.build(desk) for page in screens]
    doors = _doors(desk)

    def failed(
        request: HttpRequest, error: SutdolError
    ) -> Response[Any]:  # Litestar copies handlers, methods with their self
        return desk.failed(request, error)

    console = Router(
        "/console",
        route_handlers=[static, *doors, *pages],
        exception_handlers={SutdolError: failed},
        include_in_schema=False,
    )
    return Router("/", route_handlers=[_front, console])


def _doors(desk: Desk) -> list[Any]:
    @get("/login", name="console-login")
    async def login_page(request: HttpRequest) -> Response[str]:
        return desk.pages.show(request, "login.html", problem=None)

    @post("/login", status_code=303)
    async def log_in(request: HttpRequest) -> Response[Any]:
        form = await desk.read_form(request)
        try:
            cookie = await desk.sessions.log_in(request, form.get("key", ""))
        except (AuthError, BusyError) as error:
            headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, BusyError) else {}
            return desk.pages.show(request, "login.html", problem=error.message, status=error.status, headers=headers)
        return go("/console", cookie)

    @post("/logout", status_code=303)
    async def log_out(request: HttpRequest) -> Response[Any]:
        await desk.form(request, None)
        return go("/console/login", desk.sessions.log_out())

    @post("/language", status_code=303)
    async def language(request: HttpRequest) -> Response[Any]:
        _, form = await desk.form(request, None)
        chosen = form.get("language", "")
        chosen = chosen if chosen in text.LANGUAGES else "en"
        back = form.get("back", "")
        to = back if back.startswith("/console") and "//" not in back else "/console"
        return go(to, Cookie(text.COOKIE, value=chosen, max_age=31_536_000, samesite="lax", path="/"))

    return [login_page, log_in, log_out, language]


@get("/", include_in_schema=False)
async def _front() -> Response[Any]:
    return go("/console")


@get(["/console", "/console/{path:path}"], include_in_schema=False)
async def _not_built() -> None:
    raise SetupError("the console's files are not built", hint="run `make setup`")
