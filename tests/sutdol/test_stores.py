"""What every entry of STORES promises; S3 is a real server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sutdol.context import open_context
from sutdol.errors import NotFoundError, SetupError
from sutdol.settings import load
from sutdol.stores import STORES, Store, open_store
from tests.s3_server import s3


@pytest.fixture(params=sorted(STORES), scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store of each kind."""
    folder = tmp_path_factory.mktemp("store")
    if request.param == "s3":
        with s3(folder) as (url, options):
            settings = load(
                home=folder / "home",
                store_url=url,
                store_endpoint=options["endpoint"],
                store_region=options["region"],
                store_access_key=options["access_key_id"],
                store_secret_key=options["secret_access_key"],
            )
            context = open_context(settings)
            yield context.store
            context.database.close()
    else:
        yield open_store(f"{request.param}://{folder}/a folder")


def test_every_store_keeps_what_it_was_given_first(store: Store) -> None:
    """Keys are hashes and numbers that are given out once; nothing is ever overwritten."""
    assert store.put("samples/a", b"first")
    assert not store.put("samples/a", b"second")
    assert store.get("samples/a") == b"first"
    assert store.has("samples/a")
    assert store.keys("samples") == ["samples/a"]
    store.delete("samples/a")
    store.delete("samples/a")
    assert not store.has("samples/a")
    with pytest.raises(NotFoundError):
        store.get("samples/a")


def test_every_store_takes_and_gives_files_in_pieces(store: Store, tmp_path: Path) -> None:
    """Exports and models may be larger than the memory."""
    data = bytes(range(256)) * 40_000
    (tmp_path / "in").write_bytes(data)
    store.put_file("exports/big.zip", tmp_path / "in")
    store.fetch("exports/big.zip", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert b"".join(store.chunks("exports/big.zip")) == data
    with pytest.raises(NotFoundError):
        store.fetch("exports/none.zip", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_signed_address_opens_one_object_and_no_other(store: Store) -> None:
    """Labelers' browsers fetch images straight from S3; other stores have no addresses of their own."""
    store.put("samples/signed", b"pixels")
    address = store.presigned("samples/signed", 60)
    if address is None:
        return
    assert httpx.get(address).content == b"pixels"
    assert httpx.get(address.replace("samples/signed", "samples/other")).status_code in (403, 404)
    assert httpx.get(address.split("?")[0]).status_code == 403


def test_an_unknown_store_lists_the_known_ones() -> None:
    """So that the right URL can be guessed."""
    with pytest.raises(SetupError, match="file://"):
        open_store("ftp://somewhere")
