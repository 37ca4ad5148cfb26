"""Every text of the console exists in every language."""

from __future__ import annotations

import re
from pathlib import Path

from babel.messages.pofile import read_po

from serving.web import assets
from serving.web.pages.datasets import ARMS, KINDS, TASKS
from serving.web.pages.evaluation import NAMES
from serving.web.pages.labels import STATES
from serving.web.pages.training import FIELDS
from serving.web.pages.versions import CHANGES
from serving.web.render import SECTIONS

WEB = Path(assets.__file__).parent
DYNAMIC = [
    *(name for _, name in SECTIONS),
    *STATES.values(),
    *NAMES.values(),
    *KINDS.values(),
    *TASKS,
    *ARMS,
    *("added", "removed", "relabelled", "moved", "queued", "running"),
    *("imported", "annotation", "auto", "in_studio", "merged", "valid", "deleted", "invalid", "empty", "margin"),
    *("drawn", "unfamiliar", "empty", "disagree", "diverse", "weak", "gold"),
    *("champion", "challenger", "previous"),
    *("valid", "expired", "revoked", "candidate", "refused"),
    *("fast", "balanced", "accurate", "Loss", "On the val split"),
    *("preparing", "waiting", "training", "exporting", "evaluating", "deciding", "done", "failed", "cancelled"),
    *("chosen", "finished", "eliminated", "queued", "running", "deleted", "shadow", "canary"),
    *CHANGES.values(),
    *FIELDS.values(),
    *("%(n)d s ago", "%(n)d min ago", "%(n)d h ago"),
]
"""Texts that templates translate by variable."""


def texts() -> set[str]:
    found = set(DYNAMIC)
    for file in [*WEB.glob("templates/*.html"), *WEB.rglob("*.py")]:
        found |= {
            m[1] for m in re.findall(r"""(?<![\w.])(?:_|self)\(\s*(["'])((?:\\.|(?!\1).)*)\1""", file.read_text())
        }
    return found


def test_nothing_is_left_untranslated() -> None:
    """Half a Korean page is worse than an English one."""
    for po in sorted(assets.LOCALE.glob("*/LC_MESSAGES/console.po")):
        with po.open("rb") as file:
            catalog = read_po(file)
        known = {str(m.id): str(m.string) for m in catalog if m.id}
        assert not texts() - set(known), po
        assert not [text for text, there in known.items() if not there], po
        assert not set(known) - texts(), f"{po}: no longer used"


def test_placeholders_survive_translation() -> None:
    """A number that is not shown is a lie by omission; one that is not known is a crash."""
    for po in sorted(assets.LOCALE.glob("*/LC_MESSAGES/console.po")):
        with po.open("rb") as file:
            for message in read_po(file):
                if message.id:
                    names = [sorted(re.findall(r"%\((\w+)\)", str(t))) for t in (message.id, message.string)]
                    assert names[0] == names[1], message.id
