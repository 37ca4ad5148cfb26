"""Commands about versions: adopt, rename, tag, reject, alias, delete, lineage. Added to the command line by `add_to`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter
from rich.console import Console

from sutdol.context import Context
from sutdol.errors import ConflictError, InputError
from sutdol.terminal import Home

WHO = "command line"
Normalise = Literal["none", "imagenet", "half", "clip", "255"]
Resize = Literal["stretch", "letterbox", "crop"]
Outputs = Literal["logits", "probabilities", "boxes", "boxes-last", "yolov5", "end2end"]


def add_to(app: App, open_home: Callable[[Path | None], Context], console: Console) -> None:
    """Register this file's commands."""

    @app.command
    def adopt(
        model: str,
        file: Path,
        *,
        task: Literal["classify", "multilabel", "detect"] | None = None,
        classes: Annotated[str | None, Parameter(help="Names in order: a,b,c, or a file with one a line.")] = None,
        size: Annotated[int | None, Parameter(help="Input size in pixels, where the file leaves it open.")] = None,
        normalise: Annotated[Normalise | None, Parameter(help="How pixels were normalised in training.")] = None,
        resize: Annotated[Resize | None, Parameter(help="How images were brought to the input size.")] = None,
        crop_share: Annotated[float | None, Parameter(help="Share of each side that `crop` keeps.")] = None,
        bgr: Annotated[bool, Parameter(help="The model takes blue first.")] = False,
        outputs: Annotated[
            Outputs | None, Parameter(help="What the output holds, where looking is not enough.")
        ] = None,
        family: Annotated[str | None, Parameter(help="Family that trains its successors.")] = None,
        promote: Annotated[bool, Parameter(help="Put it to work when the model has no champion yet.")] = True,
        yes: Annotated[bool, Parameter(help="Take what is assumed without asking.")] = False,
        home: Home = None,
    ) -> None:
        """Take over an ONNX file that somebody else exported: served, logged, labelled and improved like any other.

        Example: sutdol adopt cells ./yolo11n.onnx
        """
        from dataclasses import replace

        from sutdol import adoption

        context = open_home(home)
        if not file.is_file():
            raise InputError(f"{file}: expected an ONNX file, found none")
        names = None
        if classes is not None:
            listed = Path(classes).read_text().splitlines() if Path(classes).is_file() else classes.split(",")
            names = [name.strip() for name in listed if name.strip()]
        answers = adoption.Answers(task, names, size, normalise, resize, crop_share, bgr, outputs)
        data = file.read_bytes()
        proposal = adoption.propose(data, answers)
        for words in proposal.found:
            console.print(f"found: {words}", highlight=False, markup=False)
        asked = console.is_terminal and not yes
        for name, words in proposal.assumed.items():
            console.print(f"assumed ({name}): {words}", highlight=False, markup=False)
            said = console.input("  Enter to accept, or the right answer: ").strip() if asked else ""
            if said:
                value: Any = [part.strip() for part in said.split(",")] if name == "classes" else said
                changed: dict[str, Any] = {name: int(said) if name == "size" else value}
                answers = replace(answers, **changed)
        if asked:
            proposal = adoption.propose(data, answers)
        version = adoption.adopt(context, model, proposal, who=WHO, family=family, promote=promote)
        console.print(f"{model}: version {version} is adopted; next: `sutdol up`, or `sutdol predict {model} FOLDER`")

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
    def reject(model: str, version: int, *, reason: str = "", home: Home = None) -> None:
        """Say no to a version that passed the gate and waits for approval; it can never be promoted.

        Example: sutdol reject digits 4 --reason "labels of line 2 are wrong"
        """
        from sutdol import versions

        with open_home(home).database.begin() as session:
            decision = versions.reject(session, model, version, reason=reason, who=WHO)
        console.print(f"{model} version {version}: {decision.text}", highlight=False)

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
