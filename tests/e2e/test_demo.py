"""The headline, end to end: one command closes the loop with a real Label Studio, and notices when it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sutdol.settings import load
from tests.conftest import missing
from tests.scenes import write_voc

QUICK = ("image_size=160", "epochs=19", "batch=4", "hflip=0", "rotate_deg=0", "mosaic=1", "crop=0.4", "brightness=0.4")
"""A detector that learns 28 small scenes in half a minute, badly; mirrored digits are other signs."""
pytestmark = [pytest.mark.slow, pytest.mark.studio]


def demo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    venv = load().label_studio_venv
    if not (venv / "bin" / "label-studio").exists():
        missing(f"Label Studio is not installed in {venv}: make setup")
    command = [sys.executable, "-m", "sutdol", "demo", "--home", str(home), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-12_000:], done.stderr[-4_000:])
    return done


@pytest.mark.timeout(1800)
def test_the_loop_closes_on_digits(tmp_path: Path) -> None:
    """Serve, drift, label, retrain, gate, swap, twice; every promise of the README is a row of its table."""
    assert demo(tmp_path / "home", "--check").returncode == 0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sabotage", ["labels", "swap", "model"])
def test_the_check_notices_sabotage(tmp_path: Path, sabotage: str) -> None:
    """A check that cannot fail proves nothing."""
    done = demo(tmp_path / "home", "--check", "--sabotage", sabotage)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
    assert "requests failed" in done.stdout


@pytest.mark.timeout(1800)
def test_the_loop_closes_on_generated_scenes(tmp_path: Path) -> None:
    """The same road for boxes: Pascal VOC in, boxes through Label Studio, a better detector out."""
    write_voc(tmp_path / "voc", photos=150)
    params = [word for param in QUICK for word in ("--set", param)]
    done = demo(tmp_path / "home", "--task", "detect", "--data", str(tmp_path / "voc"), "--check", *params)
    assert done.returncode == 0


@pytest.mark.timeout(3600)
def test_the_loop_closes_on_blood_cells(tmp_path: Path) -> None:
    """Real photos, 4,886 real boxes, the default gate."""
    folder = os.environ.get("SUTDOL_TEST_DATA")
    if not folder:
        missing("SUTDOL_TEST_DATA names no folder with bccd/BCCD")
    done = demo(tmp_path / "home", "--task", "detect", "--data", f"{folder}/bccd/BCCD", "--check")
    assert done.returncode == 0
