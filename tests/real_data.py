"""Where the real data lies, named by the environment variable SUTDOL_TEST_DATA."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import missing


def blood_cells() -> Path:
    """The folder of the BCCD photos in Pascal VOC; without it a skip on a laptop and a failure in CI, with the reason."""
    if "SUTDOL_TEST_DATA" not in os.environ:
        missing("SUTDOL_TEST_DATA is not set: no real blood cells (bccd/BCCD) here")
    return Path(os.environ["SUTDOL_TEST_DATA"]) / "bccd" / "BCCD"
