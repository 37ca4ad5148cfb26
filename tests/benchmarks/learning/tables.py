"""One table for every benchmark of this package: what was measured, the target beside it, and whether it is met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One measured number and what it should be; `target` None is for information."""

    name: str
    value: float
    kind: Literal["at least", "at most", "info"] = "info"
    target: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None or self.kind == "info":
            return None
        return self.value >= self.target if self.kind == "at least" else self.value <= self.target


def show(title: str, figures: list[Figure]) -> bool:
    """Print the table; whether every target is met."""
    width = max(len(f.name) for f in figures)
    print(f"\n{title}\n{'-' * len(title)}")
    for f in figures:
        target = "" if f.target is None else f"{f.kind} {f.target:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[f.met]
        print(f"{f.name:<{width}}  {f.value:>10.4g}  {target:<16}  {verdict:<7} {f.note}".rstrip())
    return all(f.met is not False for f in figures)
