"""A page becomes a response: Jinja templates with autoescape, the reader's language, security headers.

    Page (template name, values) + Visitor + language -> HTML, `Content-Security-Policy: default-src 'self'`

Templates get `_` (the words), the filters of `text`, `visitor`, and `here` (the address of this page's section).
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    ("/console/datasets", "Datasets"),
    ("/console/training", "Training"),
    ("/console/models", "Models"),
    ("/console/evaluation", "Evaluation"),
    ("/console/decisions", "Decisions"),
    ("/console/try", "Try it"),
    ("/console/settings", "Settings"),
)


@dataclass(frozen=True)
class Field:
    """One input of a question; with `options` (value -> what people read) it is a choice."""

    name: str
    label: str
    value: str = ""
    options: dict[str, str] | None = None
    hint: str = ""
    required: bool = False


@dataclass(frozen=True)
class Question:
    """What is asked before something is done, already in the reader's language.

    Attributes:
        facts: what it will do, a sentence each; record: a text that stands as it is (the gate's).
        action: where the form goes; back: where "Leave it" goes; danger: it cannot be undone.
    """

    title: str
    facts: list[str]
    action: str
    label: str
    back: str
    record: str | None = None
    danger: bool = False
    fields: list[Field] = field(default_factory=list)
    hidden: dict[str, str] = field(default_factory=dict)


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
        words = self.words(request)
        html = self._environment.get_template(template).render(
            _=words, visitor=visitor, here=_section(request.url.path), path=request.url.path, **values
        )
        return Response(html, media_type="text/html", status_code=status, headers=HEADERS | (headers or {}))

    def render(self, template: str, words: text.Words, **values: Any) -> str:
        """A part of a page, the same for every visitor."""
        return self._environment.get_template(template).render(_=words, **values)

    def words(self, request: Request[Any, Any, Any]) -> text.Words:
        """The reader's words, for pages that put sentences together."""
        return text.words(text.language_of(request))

    def ask(self, request: Request[Any, Any, Any], visitor: Visitor, question: Question) -> Response[str]:
        """The page on which something is confirmed."""
        return self.show(request, "confirm.html", visitor=visitor, question=question)


def go(to: str, *cookies: Cookie) -> Response[Any]:
    """After an action: look at the result with GET."""
    return Redirect(to, status_code=303, cookies=list(cookies))


def _section(path: str) -> str:
    found = [
        address
        for address, _ in SECTIONS
        if path == address or (address != "/console" and path.startswith(f"{address}/"))
    ]
    return max(found, key=len, default="")
