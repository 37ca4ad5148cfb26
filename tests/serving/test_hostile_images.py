"""The zoo through the front door: the right status for each, never a 5xx, bounded memory, and nothing false in the log."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from shared_server import MAX_BODY, Served, logged

from tests.image_zoo import HEIGHT, WIDTH, Animal, zoo

MOST_MEMORY = 200_000_000


def memory(pid: int, name: str) -> int:
    """A line of /proc/PID/status in bytes: VmRSS is now, VmHWM the most since `forget_peak`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def forget_peak(pid: int) -> int:
    """Start measuring anew; the memory in use now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory(pid, "VmRSS")


@pytest.fixture(scope="module")
def animals() -> dict[str, Animal]:
    return {name: animal for name, animal in zoo().items() if len(animal.data) < MAX_BODY}


def test_every_animal_gets_its_status_and_little_memory(
    served: Served, client: httpx.Client, animals: dict[str, Animal]
) -> None:
    """One of them is enough to take a careless server down."""
    pid = served.server.process.pid
    before, wrong, read = logged(served), {}, 0
    for name, animal in animals.items():
        start = forget_peak(pid)
        reply = client.post("/v1/predict/tiny", content=animal.data, headers={"Content-Type": "text/html"})
        grown = memory(pid, "VmHWM") - start
        if reply.status_code not in animal.statuses or grown > MOST_MEMORY:
            wrong[name] = (reply.status_code, animal.statuses, f"{grown / 1e6:.0f} MB")
        elif reply.status_code != 200 and reply.headers["content-type"] != "application/problem+json":
            wrong[name] = (reply.status_code, reply.headers["content-type"], reply.text)
        elif animal.upright and reply.json()["image"] != {"width": WIDTH, "height": HEIGHT}:
            wrong[name] = (reply.json()["image"],)
        read += reply.status_code == 200
    assert wrong == {}
    assert len(animals) >= 100
    assert logged(served) == before + read
