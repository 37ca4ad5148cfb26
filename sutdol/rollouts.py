"""A challenger gets a share of the traffic before it may become champion: shadow (answers unseen) or canary (answers count).

    start -> alias `challenger` + one row -> every replica follows it -> promote, or end (by hand, or by the watch)

Which requests belong to the share depends on their content alone, so a client that retries meets the same version.

Errors: ConflictError (nothing promoted yet, the version is not ready or is the champion), InputError, NotFoundError.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlmodel import Session

from sutdol import registry
from sutdol.errors import ConflictError, InputError
from sutdol.events import tell
from sutdol.tables import Decision, Rollout, now

Mode = Literal["shadow", "canary"]


def start(
    session: Session, model: str, version: int, *, mode: Mode, share: float, max_disagreement: float, who: str
) -> Rollout:
    """Let `version` answer (`canary`) or be tried unseen (`shadow`) for `share` of the traffic; replaces a running one.

    Args:
        share: in (0, 1].
        max_disagreement: share of compared answers that may differ from the champion's before it is ended; 0: not watched.
    """
    if mode not in ("shadow", "canary") or not 0 < share <= 1 or not 0 <= max_disagreement <= 1:
        raise InputError(
            f"rollout: expected shadow or canary, a share in (0, 1] and a disagreement in [0, 1], "
            f"found {mode}, {share:g}, {max_disagreement:g}"
        )
    row = registry.get_version(session, model, version)
    champion = registry.alias(session, model, "champion")
    if champion is None:
        raise ConflictError(f"{model} has no champion to compare with", hint="promote a version first")
    if row.state != "ready" or champion == version:
        state = "the champion already" if champion == version else row.state
        raise ConflictError(f"version {version} of {model} is {state}, it cannot be a challenger")
    registry.set_alias(session, model, "challenger", version)
    rollout = session.get(Rollout, model) or Rollout(model=model, version=version, mode=mode, share=share, who=who)
    rollout.version, rollout.mode, rollout.share, rollout.who = version, mode, share, who
    rollout.max_disagreement, rollout.started_at = max_disagreement, now()
    session.add(rollout)
    words = f"version {version} runs as {mode} for {share:.0%} of the traffic"
    tell(session, f"rollout.{mode}", f"{model}: {words}", model=model, version=version, share=share, who=who)
    return rollout


def end(session: Session, model: str, *, who: str, text: str, record: dict[str, Any] | None = None) -> Decision | None:
    """Take the challenger away; None when there is none."""
    rollout = session.get(Rollout, model)
    if rollout is None:
        return None
    session.delete(rollout)
    registry.set_alias(session, model, "challenger", None)
    champion = registry.alias(session, model, "champion")
    decision = Decision(
        model=model,
        kind="rollout",
        verdict="ended",
        candidate=rollout.version,
        champion=champion,
        text=text,
        record=record or {},
        who=who,
    )
    session.add(decision)
    tell(session, "rollout.ended", f"{model}: version {rollout.version}: {text}", model=model, version=rollout.version)
    return decision
