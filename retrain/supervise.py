"""One training child: started, listened to, cancelled, and never left behind.

    spec.json -> `python -m retrain.child` -> JSON lines -> on_event -> exit status

Cancelling is asked first (RUN_DIR/cancel, seen at the next batch), then SIGTERM, then SIGKILL. When the job's lease is lost
the child is killed at once: somebody else may be about to start one. If this process dies, the kernel kills the child.

Errors: TrainingError with the child's last words; Cancelled and ConflictError from `check`.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from retrain.child import EXIT_CANCELLED
from sutdol.errors import Cancelled, TrainingError

CANCEL_GRACE_S = 15.0
"""For the child to see the cancel file: one batch, or one decoded image."""
TERM_GRACE_S = 3.0
CHECK_EVERY_S = 0.5


def train(
    run_dir: Path,
    environment: dict[str, str],
    *,
    on_event: Callable[[dict[str, Any]], None],
    check: Callable[[], None],
) -> None:
    """Run the child of RUN_DIR/spec.json to its end.

    Args:
        environment: complete; see `settings.child_environment` and the family's `environment`.
        on_event: called with every line that the child says; may raise.
        check: called about twice a second; raises Cancelled or ConflictError.
    """
    (run_dir / "cancel").unlink(missing_ok=True)
    with (run_dir / "child.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "retrain.child", str(run_dir), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd=Path(__file__).resolve().parents[1],
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for us; we decide what becomes of the child
        )
    last_words = ""
    try:
        for event in _events(child, check):
            if event.get("event") == "error":
                last_words = str(event.get("text"))
            on_event(event)
        status = child.wait()
    except Cancelled:
        _stop(child, run_dir)
        raise
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if status == EXIT_CANCELLED:
        raise Cancelled("the training was cancelled")
    if status != 0:
        raise TrainingError(last_words or _how_it_died(status, run_dir))


def _events(child: subprocess.Popen[bytes], check: Callable[[], None]) -> Any:
    """The child's lines as they come, until it closes its end; `check` is called in between."""
    assert child.stdout is not None
    rest, checked = b"", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(timeout=CHECK_EVERY_S)
            if time.monotonic() - checked >= CHECK_EVERY_S:
                check()
                checked = time.monotonic()
            if not ready:
                continue
            data = os.read(child.stdout.fileno(), 65_536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield msgspec.json.decode(line)


def _stop(child: subprocess.Popen[bytes], run_dir: Path) -> None:
    (run_dir / "cancel").touch()
    for signal_number, grace_s in ((None, CANCEL_GRACE_S), (signal.SIGTERM, TERM_GRACE_S)):
        if signal_number is not None:
            child.send_signal(signal_number)
        try:
            child.communicate(timeout=grace_s)  # reads on, or the child would block on a full pipe
            return
        except subprocess.TimeoutExpired:
            continue
    child.kill()


def _how_it_died(status: int, run_dir: Path) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        hint = "; the machine may be out of memory" if status == -signal.SIGKILL else ""
        return f"the training process was ended by {name}{hint}"
    lines = (run_dir / "child.log").read_text(errors="replace").strip().splitlines()
    return f"the training process ended with status {status}" + (f": {lines[-1][:300]}" if lines else "")
