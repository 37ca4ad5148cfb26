"""Where images and models lie: keys to bytes, by URL scheme. STORES maps the scheme to its opener.

Keys are relative, `/`-separated: `samples/<sha256>`, `models/<slug>/<version>/<file>`, `evaluations/<id>.jsonl`,
`exports/<job>.zip`.
Objects are immutable: `put` never overwrites, because every key is a hash or a number that is given out once.

Errors: NotFoundError for a missing key, SetupError for a URL that cannot be opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, MemoryStore, S3Store, from_url

from sutdol.errors import NotFoundError, SetupError

AnyStore = LocalStore | MemoryStore | S3Store


class Store:
    """A flat, immutable key-value store; safe to share between threads."""

    def __init__(self, inner: AnyStore, *, root: Path | None = None) -> None:
        self._inner = inner
        self.root = root
        """The folder, when the store is one on this machine."""

    def put(self, key: str, data: bytes) -> bool:
        """Store `data` whole or not at all; False when the key was there already (its bytes stay)."""
        try:
            obstore.put(self._inner, key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def put_file(self, key: str, path: Path) -> None:
        """Store a file in parts, so that it need not fit into memory; only for keys that are given out once."""
        obstore.put(self._inner, key, path)

    def get(self, key: str) -> bytes:
        """The bytes of `key`.

        Raises:
            NotFoundError: there is no such key.
        """
        try:
            return bytes(obstore.get(self._inner, key).bytes())
        except FileNotFoundError:
            raise NotFoundError(f"the store holds no {key!r}") from None

    def presigned(self, key: str, seconds: int) -> str | None:
        """An address under which anybody may GET `key` for `seconds`; None where the store has none of its own."""
        if not isinstance(self._inner, S3Store):
            return None
        return str(obstore.sign(self._inner, "GET", key, expires_in=timedelta(seconds=seconds)))

    def chunks(self, key: str) -> Iterator[bytes]:
        """The bytes of `key` in pieces, for what may be too large for memory.

        Raises:
            NotFoundError: there is no such key.
        """
        try:
            found = obstore.get(self._inner, key)
        except FileNotFoundError:
            raise NotFoundError(f"the store holds no {key!r}") from None
        return (bytes(chunk) for chunk in found.stream(min_chunk_size=1_000_000))

    def fetch(self, key: str, path: Path) -> None:
        """Write the bytes of `key` to a new file, whole or not at all; they are never whole in memory.

        Raises:
            NotFoundError: there is no such key.
        """
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                for piece in obstore.get(self._inner, key).stream(min_chunk_size=4_000_000):
                    file.write(piece)
        except FileNotFoundError:
            part.unlink(missing_ok=True)
            raise NotFoundError(f"the store holds no {key!r}") from None
        part.replace(path)

    def has(self, key: str) -> bool:
        try:
            obstore.head(self._inner, key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove `key`; nothing happens when it is not there."""
        try:
            obstore.delete(self._inner, key)
        except FileNotFoundError:
            return

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with the path `prefix`, sorted."""
        return sorted(str(meta["path"]) for batch in obstore.list(self._inner, prefix) for meta in batch)


def _folder(url: str) -> Store:
    path = Path(unquote(urlparse(url).path))
    path.mkdir(parents=True, exist_ok=True)
    return Store(LocalStore(path), root=path)


def _s3(url: str, options: dict[str, str]) -> Store:
    client = {"allow_http": True} if options.get("endpoint", "").startswith("http://") else {}
    return Store(from_url(url, client_options=client, **options))  # type: ignore[call-overload]


STORES: dict[str, Callable[[str, dict[str, str]], Store]] = {
    "file": lambda url, _: _folder(url),
    "memory": lambda url, _: Store(MemoryStore()),
    "s3": _s3,
}


def open_store(url: str, options: dict[str, str] | None = None) -> Store:
    """The store behind `url` (`file:///folder`, `memory://`, `s3://bucket/prefix`).

    Args:
        options: for S3: `endpoint`, `region`, `access_key_id`, `secret_access_key`; what is missing comes from the AWS
            variables or the machine's role.

    Raises:
        SetupError: an unknown scheme, or a folder that cannot be made.
    """
    scheme = urlparse(url).scheme
    if scheme not in STORES:
        raise SetupError(f"store URL {url!r}: expected one of {', '.join(f'{s}://' for s in STORES)}")
    try:
        return STORES[scheme](url, options or {})
    except OSError as error:
        raise SetupError(
            f"store {url!r} cannot be opened: {error}", hint="set SUTDOL_STORE_URL or SUTDOL_HOME"
        ) from error
