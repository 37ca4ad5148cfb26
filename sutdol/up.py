"""`sutdol up`: all processes of an installation on this machine, kept running.

    Label Studio (unless SUTDOL_LABEL_STUDIO_URL names one) | serve | worker for `bridge` | for `train` | for `batch` | clock

Each is the same command that a cluster would run by itself, with the same settings in its environment; each writes to
`logs/<name>.log` in the home folder. A child that dies is started again; all of them die with this process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

from sutdol import keys, settings
from sutdol.context import Context
from sutdol.process import Supervisor, require_free_port, start_child
from sutdol.tables import ApiKey

COMMANDS = {
    "serve": ["serve"],
    "work-bridge": ["work", "--queue", "bridge"],
    "work-train": ["work", "--queue", "train"],
    "work-batch": ["work", "--queue", "batch"],
    "clock": ["clock"],
}


def first_key(context: Context) -> str | None:
    """An admin key when the installation has none yet, else None; it cannot be shown again."""
    from sqlmodel import select

    with context.database.begin() as session:
        if session.exec(select(ApiKey).limit(1)).first() is not None:
            return None
        return keys.create(session, "first admin", ["admin"])


def run(
    context: Context, *, start_studio: Callable[[Context], subprocess.Popen[bytes]] | None, say: Callable[[str], None]
) -> None:
    """Start everything and stay until SIGTERM or SIGINT.

    Args:
        start_studio: starts the real Label Studio; None where another one is used.

    Raises:
        SetupError: a port is in use.
    """
    config = context.settings
    require_free_port(config.host, config.port, remedy="choose another one with SUTDOL_PORT")
    if start_studio:
        require_free_port(
            "127.0.0.1", config.label_studio_port, remedy="choose another one with SUTDOL_LABEL_STUDIO_PORT"
        )
    logs = config.home / "logs"
    environment = settings.child_environment(config)
    supervisor = Supervisor(say)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    if start_studio:
        supervisor.add("label-studio", lambda: start_studio(context))
    for name, arguments in COMMANDS.items():
        command = [sys.executable, "-m", "sutdol", *arguments]
        supervisor.add(name, _starter(command, environment, logs / f"{name}.log"))
    say(f"serving on {config.url} (console: {config.url}/console), Label Studio on {config.studio_url}, logs in {logs}")
    supervisor.run()


def _starter(command: list[str], environment: dict[str, str], log: object) -> Callable[[], subprocess.Popen[bytes]]:
    from pathlib import Path

    return lambda: start_child(command, environment=environment, log=Path(str(log)))
