"""The console's words in the reader's language: gettext catalogs, and numbers, times and sizes as people write them.

    Accept-Language or the cookie `sutdol_language` -> Words(language) -> `words("...")` in every template

English is the source language. A message that a catalog lacks is shown in English; a test finds those.
"""

from __future__ import annotations

import gettext
import time
from functools import cache, lru_cache

from litestar.connection import ASGIConnection

from serving.web.assets import DOMAIN, LOCALE
from sutdol.errors import InputError

LANGUAGES = {"en": "English", "ko": "한국어"}
COOKIE = "sutdol_language"


class Words:
    """Translations of one language; call it with an English text, `%(name)s` placeholders are filled in."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._catalog = gettext.translation(DOMAIN, str(LOCALE), languages=[language], fallback=True)

    def __call__(self, text: str, **values: object) -> str:
        translated = self._catalog.gettext(text)
        return translated % values if values else translated

    def ago(self, at: float | None) -> str:
        """How long ago epoch seconds `at` were, in the largest unit that fits."""
        if at is None:
            return self("never")
        seconds = max(time.time() - at, 0.0)
        for limit, size, text in (
            (90, 1, "%(n)d s ago"),
            (5_400, 60, "%(n)d min ago"),
            (172_800, 3_600, "%(n)d h ago"),
        ):
            if seconds < limit:
                return self(text, n=int(seconds / size))
        return self("%(n)d days ago", n=int(seconds / 86_400))


@cache
def words(language: str) -> Words:
    """The words of a language, loaded once."""
    return Words(language)


def language_of(connection: ASGIConnection) -> str:  # type: ignore[type-arg]
    """The language chosen by the switch, else the browser's first that we speak, else English.

    >>> from litestar.testing import RequestFactory
    >>> language_of(RequestFactory().get("/", headers={"Accept-Language": "fr, ko-KR;q=0.8, en;q=0.5"}))
    'ko'
    """
    return language(connection.cookies.get(COOKIE, ""), connection.headers.get("accept-language", ""))


@lru_cache(maxsize=1000)
def language(chosen: str, accepted: str) -> str:
    """The same from the values of the cookie and of the header `Accept-Language`."""
    if chosen in LANGUAGES:
        return chosen
    asked = []
    for place, part in enumerate(accepted.split(",")[:20]):
        tag, _, quality = part.strip().partition(";q=")
        try:
            asked.append((-float(quality or 1), place, tag[:2].lower()))
        except ValueError:
            continue
    return next((tag for _, _, tag in sorted(asked) if tag in LANGUAGES), "en")


def size(count: float) -> str:
    """Bytes as people read them.

    >>> size(1_234_000)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as percent; a dash where there is none.

    >>> percent(0.9834), percent(None)
    ('98.3 %', '–')
    """
    return "–" if share is None or share != share else f"{share * 100:.{digits}f} %"


def number(value: float | None) -> str:
    """Three significant digits, thousands separated; a dash where there is none.

    >>> number(12345.6), number(0.012345), number(None)
    ('12,346', '0.0123', '–')
    """
    if value is None or value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def moment(at: float) -> str:
    """Epoch seconds as UTC, to the second.

    >>> moment(0)
    '1970-01-01 00:00:00'
    """
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))


def share_of(typed: str, name: str) -> float:
    """Percent as people type them, as a share.

    Raises:
        InputError: not a number from 0 to 100.

    >>> share_of("12,5 %", "share")
    0.125
    """
    try:
        value = float(typed.strip().removesuffix("%").replace(",", "."))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise InputError(f"{name}: expected percent from 0 to 100, found {typed[:20]!r}")
    return value / 100
