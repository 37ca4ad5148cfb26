"""`sutdol demo`: the closed loop on real data, and `--check`, which turns every promise into an exit code.

`classify` streams handwritten digits and changes the world twice; `detect` learns objects from a Pascal VOC folder. Both
stand on `stage.Stage`, where everything is done as a user would do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from sutdol.demo import classify, detect
from sutdol.errors import SetupError


def run(
    *,
    task: str,
    data: Path | None,
    check: bool,
    sabotage: str | None,
    labeler: str,
    params: dict[str, Any],
    home: Path | None,
    console: Console,
) -> int:
    """Play the story; returns the exit code: 0, or 1 when `check` found a broken promise.

    Raises:
        SetupError: `detect` without a folder, or a home that is not a demo's.
    """
    folder = home or Path(".sutdol-demo")
    if task == "classify":
        return classify.play(folder, check=check, sabotage=sabotage, labeler=labeler, params=params, console=console)
    if data is None:
        raise SetupError("`sutdol demo --task detect` needs a Pascal VOC folder", hint="name it with --data DIR")
    return detect.play(folder, data, check=check, labeler=labeler, params=params, console=console)
