"""Our processes among themselves: ports, dying with the parent, supervision on one machine."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sutdol.errors import SetupError

_PR_SET_PDEATHSIG = 1
_OPENBLAS_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when its parent is gone; elsewhere nothing happens.

    For `preexec_fn` and for the first line of a child. The signal follows the parent *thread*: start children from one
    that lives as long as the process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def one_thread_for_matrices() -> int:
    """Tell numpy's OpenBLAS to work in the thread that calls it; how many libraries were told.

    A server has a thread for each core already. OpenBLAS would wake one more per core for every product of a megabyte, and
    have them wait in a loop: measured, three times the CPU of an answer. Its variable (OPENBLAS_NUM_THREADS) is read when
    numpy is imported, which is too early for us.
    """
    if sys.platform != "linux":
        return 0
    with open("/proc/self/maps") as file:
        libraries = {line.split()[-1] for line in file if "openblas" in line and line.split()[-1].startswith("/")}
    told = 0
    for path in libraries:
        library = ctypes.CDLL(path)
        for name in _OPENBLAS_SETTERS:
            setter = getattr(library, name, None)
            if setter is not None:
                setter(1)
                told += 1
                break
    return told


def port_is_free(host: str, port: int) -> bool:
    """Whether nobody listens there. Binding alone would not tell: some servers set SO_REUSEPORT."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host if host != "0.0.0.0" else "127.0.0.1", port)) != 0


def require_free_port(host: str, port: int, *, remedy: str) -> None:
    """Raises SetupError naming the port and the remedy when somebody listens there."""
    if not port_is_free(host, port):
        raise SetupError(f"port {port} on {host} is in use", hint=remedy)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Supervisor:
    """Keeps named child processes running: a dead one is started again after a pause that grows from 0.2 to 10 s.

    Args:
        say: told in words what happens.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._starters: dict[str, Callable[[], subprocess.Popen[bytes]]] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._stopping = threading.Event()

    def add(self, name: str, starter: Callable[[], subprocess.Popen[bytes]]) -> None:
        """Start a child now and keep it running."""
        self._starters[name] = starter
        self._start(name)

    def pid(self, name: str) -> int:
        """The process id of the child as it runs now."""
        return self._children[name].pid

    def run(self) -> None:
        """Supervise until `stop`; then every child gets SIGTERM, and SIGKILL after 15 seconds."""
        while not self._stopping.wait(0.1):
            for name, child in self._children.items():
                if child.poll() is None:
                    if time.monotonic() - self._started[name] > 30:
                        self._failures[name] = 0
                    continue
                if name not in self._due:
                    pause = min(0.2 * 2 ** self._failures.get(name, 0), 10.0)
                    self._failures[name] = self._failures.get(name, 0) + 1
                    self._due[name] = time.monotonic() + pause
                    self._say(f"{name} ended with {child.returncode}, starts again in {pause:.1f} s")
                elif time.monotonic() >= self._due[name]:
                    del self._due[name]
                    self._start(name)
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + 15
        for name, child in self._children.items():
            try:
                child.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                self._say(f"{name} did not stop in time and was killed")
                child.kill()
                child.wait()

    def stop(self) -> None:
        """Let `run` end; safe in a signal handler."""
        self._stopping.set()

    def _start(self, name: str) -> None:
        self._children[name] = self._starters[name]()
        self._started[name] = time.monotonic()


def start_child(
    arguments: list[str], *, environment: Mapping[str, str], log: Path, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one and writes both outputs to the end of `log`; it works in `folder`, or here."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            arguments,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent if os.name == "posix" else None,
        )
