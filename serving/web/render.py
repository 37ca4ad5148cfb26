"""A page becomes a response: Jinja templates with autoescape, the reader's language, security headers.

    Page (template name, values) + Visitor + language -> HTML, `Content-Security-Policy: default-src 'self'`

Templates get `_` (the words), the filters of `text`, `visitor`, and `here` (the address of this page's section).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from litestar import Request, Response
from litestar.datastructures import Cookie
from litestar.response import Redirect

import sutdol
from serving.web import charts, text
from serving.web.session import Visitor

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
SECTIONS = (
    ("/console", "Live"),
    ("/console/labels", "Labels"),
    ("/console/training", "Training"),
    ("/console/models", "Models"),
    ("/console/decisions", "Decisions"),
    ("/console/try", "Try it"),
    ("/console/settings", "Settings"),
)


def environment() -> Environment:
    """The templates of this package with the filters they use."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"size": text.size, "percent": text.percent, "number": text.number, "moment": text.moment}
    made.globals |= {"charts": charts, "release": sutdol.__version__, "languages": text.LANGUAGES, "sections": SECTIONS}
    return made


class Pages:
    """Renders templates for one visitor at a time; safe to share between threads."""

    def __init__(self) -> None:
        self._environment = environment()

    def show(
        self,
        request: Request[Any, Any, Any],
        template: str,
        *,
        visitor: Visitor | None = None,
        status: int = 200,
        headers: dict[str, str] | None = None,
        **values: Any,
    ) -> Response[str]:
        """The page `template` with `values`; `visitor` is None on the log-in page alone."""
        words = text.words(text.language_of(request))
        html = self._environment.get_template(template).render(
            _=words, visitor=visitor, here=_section(request.url.path), path=request.url.path, **values
        )
        return Response(html, media_type="text/html", status_code=status, headers=HEADERS | (headers or {}))


def go(to: str, *cookies: Cookie) -> Response[Any]:
    """After an action: look at the result with GET."""
    return Redirect(to, status_code=303, cookies=list(cookies))


def _section(path: str) -> str:
    found = [address for address, _ in SECTIONS if path == address or path.startswith(f"{address}/")]
    return max(found, key=len, default="")
