"""API keys, shared secrets and image signatures.

A key is `sut_<id>_<secret>` with 256 random bits; only the SHA-256 of the secret is stored (a slow hash protects
passwords that people choose, not random bits). Image URLs carry an HMAC-SHA256 over the sample id, keyed by a secret that
all processes share through the database; task data in Label Studio lives for ever, so the signature does not expire.

Errors: AuthError for a missing, malformed, unknown, expired or revoked key (401), or one without the scope (403).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from sqlmodel import Session, select

from sutdol.db import Database, upsert
from sutdol.errors import AuthError, InputError, unknown
from sutdol.events import tell
from sutdol.tables import ApiKey, Secret, now

SCOPES = ("predict", "label", "admin")


def create(session: Session, name: str, scopes: list[str], *, expires_at: float | None = None) -> str:
    """Make a key and return it; it cannot be shown again."""
    for scope in scopes:
        if scope not in SCOPES:
            raise InputError(f"scope {scope!r}: expected one of {', '.join(SCOPES)}")
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    row = ApiKey(id=key_id, secret_sha256=_digest(secret), name=name, scopes=scopes, expires_at=expires_at)
    session.add(row)
    tell(session, "key.created", f"key {key_id} ({name}) with {', '.join(scopes)}", key_id=key_id)
    return f"sut_{key_id}_{secret}"


def parse(key: str) -> tuple[str, str]:
    """(id, sha256 of the secret) of a presented key; constant work, no database.

    Raises:
        AuthError: not of the form sut_<id>_<secret>.
    """
    parts = key.split("_", 2)
    if len(parts) != 3 or parts[0] != "sut" or not parts[1] or not parts[2]:
        raise AuthError(
            "API key: expected the form sut_<id>_<secret>", hint="send it as `Authorization: Bearer sut_...`"
        )
    return parts[1], _digest(parts[2])


def state(row: ApiKey) -> str:
    """valid | expired | revoked."""
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at < now() else "valid"


def check(row: ApiKey | None, secret_sha256: str, scope: str | None) -> None:
    """Raise AuthError unless `row` is the key that was presented, alive, and allowed to do `scope` (None: anything)."""
    if row is None or not hmac.compare_digest(row.secret_sha256, secret_sha256):
        raise AuthError("API key: unknown", hint="make one with `sutdol keys create NAME`")
    if state(row) == "revoked":
        raise AuthError(f"API key {row.id} was revoked")
    if state(row) == "expired":
        raise AuthError(f"API key {row.id} has expired", hint="make a new one with `sutdol keys create NAME`")
    if scope is not None and scope not in row.scopes and "admin" not in row.scopes:
        raise AuthError(f"API key {row.id} has the scopes {', '.join(row.scopes)}, this needs {scope!r}", status=403)


def revoke(session: Session, key_id: str) -> None:
    """Make a key useless from now on; servers follow within a second.

    Raises:
        NotFoundError: there is no such key.
    """
    row = session.get(ApiKey, key_id)
    if row is None:
        raise unknown("API key", key_id, list(session.exec(select(ApiKey.id))))
    row.revoked_at = now()
    session.add(row)
    tell(session, "key.revoked", f"key {key_id} ({row.name}) was revoked", key_id=key_id)


def secret(database: Database, name: str) -> str:
    """The shared secret `name`; made at first use, the same for all processes of this installation."""
    with database.read() as session:
        row = session.get(Secret, name)
    if row is None:
        with database.begin() as session:
            upsert(session, Secret(name=name, value=secrets.token_urlsafe(32)), keys=["name"], update=[])
            row = session.get_one(Secret, name)
    return row.value


def sign(sample_id: str, signing_secret: str) -> str:
    """The `sig` of an image URL: 32 hex digits of HMAC-SHA256 over the sample id."""
    return hmac.new(signing_secret.encode(), sample_id.encode(), hashlib.sha256).hexdigest()[:32]


def signature_is_right(sample_id: str, signature: str, signing_secret: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(sign(sample_id, signing_secret).encode(), signature.encode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
