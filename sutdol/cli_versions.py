"""Commands about versions: rename, tag, alias, delete, lineage. Added to the command line by `add_to`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter
from rich.console import Console

from sutdol.context import Context
from sutdol.errors import ConflictError, InputError

WHO = "command line"
Home = Annotated[Path | None, Parameter(name="--home", help="Folder of the installation, instead of SUTDOL_HOME.")]


def add_to(app: App, open_home: Callable[[Path | None], Context], console: Console) -> None:
    """Register this file's commands."""

    @app.command
    def rename(model: str, version: int, name: str, *, home: Home = None) -> None:
        """Give a version another display name; its number stays.

        Example: sutdol rename digits 3 "after the new camera"
        """
        from sutdol import versions

        with open_home(home).database.begin() as session:
            row = versions.rename(session, model, version, name, who=WHO)
        console.print(f"{model}: version {version} is called {row.name!r}", highlight=False)

    @app.command
    def tag(model: str, version: int, tags: list[str], *, home: Home = None) -> None:
        """Tag a version: KEY=VALUE sets, KEY= removes.

        Example: sutdol tag digits 3 line=2 reviewed-by=Kim
        """
        from sutdol import versions

        kept: dict[str, str] = {}
        with open_home(home).database.begin() as session:
            for item in tags:
                key, equals, value = item.partition("=")
                if not equals:
                    raise InputError(f"tag {item!r}: expected KEY=VALUE, or KEY= to remove it")
                kept = versions.tag(session, model, version, key, value or None, who=WHO)
        console.print(f"{model} version {version}: {kept or 'no tags'}", highlight=False)

    @app.command
    def alias(model: str, name: str, version: int | None = None, *, home: Home = None) -> None:
        """Point an alias of your own at a version, or remove it; `models:/digits@staging` then names that version.

        Example: sutdol alias digits staging 3
        """
        from sutdol import versions

        with open_home(home).database.begin() as session:
            versions.point(session, model, name, version, who=WHO)
        console.print(f"{model}@{name}: " + ("removed" if version is None else f"version {version}"), highlight=False)

    @app.command
    def delete(
        model: str,
        version: int,
        *,
        confirm: Annotated[str, Parameter(help="The token that a first try showed, for scripts.")] = "",
        home: Home = None,
    ) -> None:
        """Delete a version for ever; asks twice. Never the champion, `previous`, or what something else needs.

        Example: sutdol delete digits 2
        """
        from sutdol import versions

        context = open_home(home)
        lease_s = context.settings.lease_s
        with context.database.read() as session:
            plan = versions.plan_deletion(session, context.store, model, version, lease_s=lease_s)
        if not confirm:
            size = f"{len(plan.files)} files, {plan.size_bytes / 1e6:.1f} MB of model"
            console.print(f"{model} version {version}, {plan.name!r}: {size}", highlight=False)
            for warning in plan.warnings:
                console.print(f"  note: {warning}", highlight=False)
            if not console.is_terminal:
                raise ConflictError("deleting must be confirmed", hint=f"again with --confirm {plan.token}")
            first = console.input(f"Type the number of the version to delete it for ever ({version}): ")
            second = console.input("It cannot be brought back. Type `delete`: ") if first == str(version) else ""
            if second != "delete":
                raise ConflictError("nothing was deleted")
            confirm = plan.token
        with context.database.begin() as session:
            done = versions.delete(session, context.store, model, version, confirm=confirm, who=WHO, lease_s=lease_s)
        versions.remove_files(context.store, done)
        console.print(f"{model}: version {version} is deleted")

    @app.command
    def lineage(model: str, version: int, *, home: Home = None) -> None:
        """Where a version comes from and what was decided about it, as JSON.

        Example: sutdol lineage digits 3
        """
        from sutdol import versions

        with open_home(home).database.read() as session:
            found: Any = versions.lineage(session, model, version)
        text = msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
        console.print(text, highlight=False, markup=False, soft_wrap=True)
