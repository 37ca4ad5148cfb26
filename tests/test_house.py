"""The house rules of the code, checked on the source itself: who may import what, and where a foreign library may live."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sutdol", "serving", "labeling_bridge", "retrain")
MAY_IMPORT = {
    "sutdol": {"sutdol"},
    "serving": {"sutdol", "serving"},
    "labeling_bridge": {"sutdol", "labeling_bridge"},
    "retrain": {"sutdol", "retrain"},
}
HOME_OF = {
    "label_studio_sdk": ["labeling_bridge/studio.py"],
    "onnxruntime": ["sutdol/runtime.py", "retrain/quantise.py"],
    "openvino": ["sutdol/runtime.py", "retrain/convert.py"],
    "dramatiq": ["sutdol/jobs/"],
    "litestar": ["serving/", "labeling_bridge/routes.py", "labeling_bridge/backend_routes.py"],
    "torch": ["retrain/"],
    "torchvision": ["retrain/"],
    "timm": ["retrain/"],
    "ultralytics": ["retrain/"],
    "effdet": ["retrain/"],
    "apprise": ["sutdol/notify.py"],
    "mlflow": ["sutdol/mirror.py"],
    "tensorflow": ["retrain/savedmodel.py"],
    "torch_pruning": ["retrain/families/_prune.py"],
    "open_clip": ["retrain/encoders.py"],
    "httpx": [
        "sutdol/client.py",
        "sutdol/demo/traffic.py",
        "labeling_bridge/account.py",
        "labeling_bridge/studio.py",
    ],
}
"""`sutdol/demo/traffic.py` only names httpx's errors: it is an application that calls us through `sutdol.client`."""
TOP_LEVEL = {"sutdol", "serving", "labeling_bridge", "retrain", "tests", "deploy", "docs"}
CEILING = 500


def sources() -> list[Path]:
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py")) if "versions" not in p.parts]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_siblings_never_import_each_other(path: Path) -> None:
    """They meet in the database, the registry and jobs; an import would weld them together."""
    package = path.relative_to(ROOT).parts[0]
    wrong = {name for name in imports(path) if name.split(".")[0] in set(PACKAGES) - MAY_IMPORT[package]}
    assert not wrong


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_foreign_library_has_one_home(path: Path) -> None:
    """When a library breaks or is replaced, one file changes."""
    name = str(path.relative_to(ROOT))
    for library in {n.split(".")[0] for n in imports(path)} & set(HOME_OF):
        assert any(name.startswith(home) for home in HOME_OF[library]), f"{library} in {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_settings_reads_the_environment(path: Path) -> None:
    """Settings are read once, in one place; a family may switch its library's telemetry off in its own process."""
    if str(path.relative_to(ROOT)) == "sutdol/settings.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        reads = isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.getenv", "os.environ.get")
        subscript = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
        reads |= subscript and ast.unparse(node.value) == "os.environ"
        assert not reads, f"line {node.lineno}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_explains_itself_and_stays_short(path: Path) -> None:
    """A newcomer reads the two lines at the top; past the ceiling a file is two files."""
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) <= CEILING


def test_no_top_level_folder_without_a_reason() -> None:
    """The house plan names them all."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert folders <= TOP_LEVEL


def test_the_ground_needs_no_torch() -> None:
    """A machine that only serves has no torch; importing the ground and the server must not ask for it."""
    code = (
        "import sys, sutdol.cli, sutdol.predictor, sutdol.jobs, serving.app, labeling_bridge.routes;"
        "print([m for m in ('torch', 'ultralytics', 'label_studio_sdk', 'timm') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
