"""The console has no query, rule or number of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import serving.web

FILES = sorted(Path(serving.web.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_console_asks_the_apis_functions(path: Path) -> None:
    """What it shows is what the API answers, because it is the same code."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert not name.startswith(("sutdol.tables", "sutdol.db", "sqlmodel", "sqlalchemy")), (
                f"{name}:{node.lineno}"
            )
