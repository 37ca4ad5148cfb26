"""Processes among themselves: nobody outlives the one who started it, and who dies is started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sutdol.errors import SetupError
from sutdol.process import Supervisor, free_port, port_is_free, require_free_port, start_child


def until(condition: Callable[[], object], *, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_dead_child_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    """`sutdol up` is one thing to start and one thing to stop."""
    said: list[str] = []
    supervisor = Supervisor(said.append)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    supervisor.add("sleeper", lambda: start_child(sleep, environment=os.environ, log=tmp_path / "log"))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    first = supervisor.pid("sleeper")
    os.kill(first, signal.SIGKILL)
    until(lambda: supervisor.pid("sleeper") != first)
    second = supervisor.pid("sleeper")
    supervisor.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert not alive(second)
    assert "sleeper ended with -9" in said[0]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """After `kill -9` of `sutdol up` no server may keep the port."""
    program = (
        "import os, sys, time; from pathlib import Path; from sutdol.process import start_child\n"
        "child = start_child([sys.executable, '-c', 'import time; time.sleep(60)'], environment=os.environ, "
        "log=Path(sys.argv[1]) / 'log')\n"
        "print(child.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not alive(child))


def test_a_port_in_use_is_named_with_the_remedy() -> None:
    """The command line refuses early."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        with pytest.raises(SetupError, match=f"port {port}.*--port"):
            require_free_port("127.0.0.1", port, remedy="choose another with --port")
    assert port_is_free("127.0.0.1", free_port())


def test_matrices_are_multiplied_by_the_thread_that_asks() -> None:
    """Threads that spin while they wait took more than half of a serving process's CPU."""
    code = """
import os, time
import numpy as np
from sutdol.process import one_thread_for_matrices
told = one_thread_for_matrices()
a, b = np.ones((1, 2000), np.float32), np.ones((2000, 2000), np.float32)
def others():
    return time.process_time() - time.thread_time()
a @ b
deadline, before = time.monotonic() + 20, -1.0
while others() - before > 0.001 and time.monotonic() < deadline:
    before = others()  # numpy's threads spin for some 0.1 s of their own after the import, then sleep
    time.sleep(0.25)
cpu, own = time.process_time(), time.thread_time()
for _ in range(300):
    a @ b
print(told, (time.process_time() - cpu) / (time.thread_time() - own))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    if sys.platform == "linux":
        assert int(said[0]) >= 1
        assert float(said[1]) < 1.1
