"""What every table needs: the clock, ids, JSON columns."""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Column
from sqlmodel import Field


def now() -> float:
    """UTC, seconds since the epoch."""
    return time.time()


def new_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random bits, so ids sort by time."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def first_id(at: float) -> str:
    """No id of `new_id` from that moment (epoch seconds) on sorts before it.

    >>> first_id(now() - 1) < new_id() < first_id(now() + 1)
    True
    """
    return str(UUID(int=int(at * 1000) << 80))


def json_column(*, nullable: bool = False) -> Any:
    """A JSON column: what `sutdol.types` defines, as msgspec.to_builtins gives it."""
    return Field(default=None if nullable else ..., sa_column=Column(JSON, nullable=nullable))
