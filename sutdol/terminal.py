"""What all commands share: the console, how an installation is opened, how a sibling package is found by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Console

from sutdol.context import Context, open_context
from sutdol.errors import SetupError
from sutdol.settings import Settings, load

console = Console()
Home = Annotated[Path | None, Parameter(name="--home", help="Folder of the installation, instead of SUTDOL_HOME.")]


def parse_params(items: list[str]) -> dict[str, Any]:
    """`epochs=20` becomes {"epochs": 20}; what is no JSON value is text."""
    params: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise SetupError(f"--set {item!r}: expected NAME=VALUE")
        try:
            params[name] = msgspec.json.decode(value.encode())
        except msgspec.DecodeError:
            params[name] = value
    return params


def settings_of(home: Path | None, **overrides: object) -> Settings:
    """Settings with what the command line says on top."""
    given = {name: value for name, value in {"home": home, **overrides}.items() if value is not None}
    return load(**given)


def open_home(home: Path | None) -> Context:
    """The installation that the command is about."""
    return open_context(settings_of(home))


def sibling(module: str) -> Any:
    """A module of another package, by name.

    Raises:
        SetupError: it needs something that is not installed; names the extra.
    """
    extras = {"labeling_bridge": "label-studio", "retrain": "train"}
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        extra = extras.get(package)
        hint = f"pip install 'sutdol[{extra}]'" if extra else "install sutdol again"
        raise SetupError(f"{module} needs {error.name}, which is not installed", hint=hint) from error
