"""What is wrong with this installation, and the fix: the findings of `sutdol doctor` from where this server stands.

    GET /v1/doctor -> every finding
    Standing       -> only whether the other programs are there (workers, clock, Label Studio, broker), looked at every LOOK_S

Labeling's own checks need Label Studio's client, which a serving process never loads: for those run the command.
"""

from __future__ import annotations

import threading
import time

from litestar import Router, get

from serving import reads
from serving.auth import Keyring, needs
from sutdol import report
from sutdol.client import reachable
from sutdol.context import Context
from sutdol.report import Finding

LOOK_S = 10.0
ROLES = {"work": "sutdol work", "clock": "sutdol clock"}
"""Role of a process -> the command that starts one."""


def build(context: Context, keyring: Keyring) -> Router:
    """The route of this file."""

    @get(
        "/v1/doctor",
        guards=[needs(keyring, "admin")],
        sync_to_thread=True,
        summary="What is wrong with this installation, and the fix",
        tags=["operations"],
        operation_id="doctor",
    )
    def doctor() -> list[Finding]:
        return findings(context)

    return Router("/", route_handlers=[doctor])


def findings(context: Context) -> list[Finding]:
    """Everything that can be checked from here; takes a second or two."""
    return [*programs(context), *report.findings(context.settings)]


def programs(context: Context) -> list[Finding]:
    """Whether a process of each other role is alive."""
    alive = {r.role for r in reads.replicas(context.database, lease_s=context.settings.lease_s) if r.alive}
    return [
        Finding(
            role,
            role in alive,
            "is alive" if role in alive else f"no process of the role {role} is alive",
            None if role in alive else f"start one with `{command}`, or everything with `sutdol up`",
        )
        for role, command in ROLES.items()
    ]


def studio(context: Context) -> list[Finding]:
    """Whether Label Studio answers; nothing while no model has a project there."""
    if not reads.projects(context.database):
        return []
    url = context.settings.studio_url
    if reachable(f"{url}/health"):
        return [Finding("Label Studio", True, f"answers on {url}", None)]
    text = f"Label Studio does not answer on {url}: predictions and trainings go on, labels wait"
    return [Finding("Label Studio", False, text, "start it, or mend SUTDOL_LABEL_STUDIO_URL")]


class Standing:
    """What is away of the other programs; looked at by at most one thread at a time, and not oftener than every LOOK_S."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._away: list[Finding] = []

    def away(self) -> list[Finding]:
        """The findings that are not well, as of the last look. Blocks for up to two seconds when it looks anew."""
        if time.monotonic() - self._looked_at > LOOK_S and self._lock.acquire(blocking=False):
            try:
                broker = report.findings(self._context.settings, only=("broker",))
                self._away = [f for f in (*programs(self._context), *studio(self._context), *broker) if not f.well]
                self._looked_at = time.monotonic()
            finally:
                self._lock.release()
        return self._away
