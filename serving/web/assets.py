"""Build the console's files that are not ours or not source: `python -m serving.web.assets`.

    django-htmx (PyPI) -> htmx-4.min.js, hx-sse-4.min.js -> serving/web/static/vendor/
    locale/*/LC_MESSAGES/console.po -> console.mo

`make setup` and the wheel's build run it; neither Node nor a network is needed. Both libraries are needed here only.

Errors: SetupError names the package that is missing.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from sutdol.errors import SetupError

HERE = Path(__file__).parent
VENDOR = HERE / "static" / "vendor"
LOCALE = HERE / "locale"
DOMAIN = "console"
SCRIPTS = {"htmx.js": "htmx-4.min.js", "hx-sse.js": "ext/hx-sse-4.min.js"}
"""Name here -> name in the package."""


def built() -> bool:
    """Whether everything is there and no translation is older than its source."""
    catalogs = all(_compiled(po).is_file() and _compiled(po).stat().st_mtime >= po.stat().st_mtime for po in _sources())
    return catalogs and all((VENDOR / name).is_file() for name in SCRIPTS)


def build() -> None:
    """Copy the scripts and compile the translations.

    Raises:
        SetupError: django-htmx or Babel is not installed.
    """
    package = find_spec("django_htmx")  # looked at, not imported: it would want Django
    if package is None or not package.submodule_search_locations:
        raise SetupError("django-htmx is not installed", hint="run `make setup`")
    static = Path(package.submodule_search_locations[0]) / "static" / "django_htmx"
    VENDOR.mkdir(parents=True, exist_ok=True)
    for name, source in SCRIPTS.items():
        shutil.copyfile(static / source, VENDOR / name)
    if find_spec("babel") is None:
        raise SetupError("Babel is not installed", hint="run `make setup`")
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    for po in _sources():
        with po.open("rb") as catalog, _compiled(po).open("wb") as compiled:
            write_mo(compiled, read_po(catalog, locale=po.parent.parent.name))


def _sources() -> list[Path]:
    return sorted(LOCALE.glob(f"*/LC_MESSAGES/{DOMAIN}.po"))


def _compiled(po: Path) -> Path:
    return po.with_suffix(".mo")


if __name__ == "__main__":
    build()
