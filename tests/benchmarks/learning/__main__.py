"""`python -m tests.benchmarks.learning`: every benchmark of this folder, one after the other; each also runs alone."""

from __future__ import annotations

import importlib
import pkgutil
import time

import tests.benchmarks.learning as package

LIBRARY = {"__main__", "nets", "populations", "tables", "worlds"}


def main() -> None:
    for name in sorted({m.name for m in pkgutil.iter_modules(package.__path__)} - LIBRARY):
        began = time.monotonic()
        importlib.import_module(f"{package.__name__}.{name}").main()
        print(f"({name}: {time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
