"""The bridge's jobs by name; a worker binds them. Queue and attempts of each stand in `sutdol.jobs.KINDS`."""

from __future__ import annotations

from labeling_bridge.backup import export, restore
from labeling_bridge.pictures import rotate
from labeling_bridge.push import push
from labeling_bridge.quality import quality
from labeling_bridge.read import read
from labeling_bridge.reask import reask
from labeling_bridge.refresh import refresh
from labeling_bridge.review import adopt, review
from labeling_bridge.sweep import sweep
from labeling_bridge.window import window
from sutdol.jobs import Handler

HANDLERS: dict[str, Handler] = {
    "bridge.window": window,
    "bridge.push": push,
    "bridge.read": read,
    "bridge.hint": read,
    "bridge.sweep": sweep,
    "bridge.refresh": refresh,
    "bridge.reask": reask,
    "bridge.quality": quality,
    "bridge.export": export,
    "bridge.restore": restore,
    "bridge.review": review,
    "bridge.adopt": adopt,
    "bridge.rotate": rotate,
}
