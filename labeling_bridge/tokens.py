"""The bridge's account on Label Studio, kept between processes: its token (PAT) and the access token made of it last.

    home/label-studio.json, 0600: {"url", "email", "token", "access", "of", "until"}

A PAT is shown once, so it must be kept; the access token is kept because every job opens a connection of its own and would
ask for a new one each time. `of` says of which PAT it was made, `until` (epoch seconds) how long it is used.

Errors: none of its own; a file that cannot be read as JSON counts as empty.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCESS_TTL_S = 300.0
"""What Label Studio gives an access token."""
LEEWAY_S = 60.0


@dataclass(frozen=True)
class TokenFile:
    """What is known of one account on one server; `path` None remembers nothing."""

    path: Path | None
    url: str
    email: str

    def token(self) -> str:
        """The PAT; empty when none is kept."""
        return str(self._read().get("token", ""))

    def access(self, pat: str) -> tuple[str, float] | None:
        """The access token made of `pat` and for how many more seconds to use it; None when it has run out."""
        kept = self._read()
        seconds = float(kept.get("until", 0.0)) - time.time()
        if not pat or kept.get("of") != _digest(pat) or not 0 < seconds <= ACCESS_TTL_S:
            return None
        return str(kept["access"]), seconds

    def keep(self, token: str, pat: str = "", access: str = "") -> float:
        """Write the file anew, in one step; returns for how many seconds `access`, made of `pat` now, is to be used."""
        seconds = ACCESS_TTL_S - LEEWAY_S
        if self.path is not None:
            known: dict[str, Any] = {"url": self.url, "email": self.email, "token": token}
            if access:
                known |= {"access": access, "of": _digest(pat), "until": time.time() + seconds}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}.{threading.get_ident()}")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(known, file)
            fresh.replace(self.path)
        return seconds

    def _read(self) -> dict[str, Any]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            kept = json.loads(self.path.read_text())
        except ValueError:
            return {}
        mine = isinstance(kept, dict) and (kept.get("url"), kept.get("email")) == (self.url, self.email)
        return kept if mine else {}


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]
