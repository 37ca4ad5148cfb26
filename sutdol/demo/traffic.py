"""An application that calls the predict endpoint, in a process of its own: `python -m sutdol.demo.traffic FOLDER`.

It reads `control.json` in the folder whenever that changes (a Control) and writes one line for each request to
`traffic.jsonl` (a Sent). With a rate of 0 every client sends again as soon as it has its answer, and repeats images it has
sent before, as a burst of retries would. A refused connection is written as status 0 and tried again.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import IO

import httpx
import msgspec

from sutdol.client import ApiError, AsyncClient

REPEATED = 200
"""How many recent frames a burst repeats."""


class Control(msgspec.Struct, frozen=True):
    """What to send: frames of `world` to `model`, `rate` requests a second in all (0: as fast as `clients` can)."""

    url: str
    key: str
    model: str
    world: str
    rate: float
    clients: int = 8
    stop: bool = False


class Sent(msgspec.Struct, frozen=True):
    """One request: epoch seconds, HTTP status (0: connection refused or cut), what was sent and what came back."""

    begun: float
    ended: float
    status: int
    world: str
    source: int
    label: str | None
    file: str
    prediction_id: str | None = None
    version: int | None = None
    top: str | None = None
    confidence: float | None = None
    unfamiliar: bool = False
    error: str | None = None


class FrameRow(msgspec.Struct, frozen=True):
    """A line of a world's list; see `digits.Frame`."""

    file: str
    source: int
    label: str | None = None


class Stream:
    """Frames of each world in a shuffled, endless order; remembers the recent ones."""

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._waiting: dict[str, list[FrameRow]] = {}
        self._recent: dict[str, list[FrameRow]] = {}

    def next(self, world: str, *, again: bool) -> FrameRow:
        """A frame not sent before (until all were), or, with `again`, one of the recent ones."""
        recent = self._recent.setdefault(world, [])
        if again and recent:
            return self._random.choice(recent)
        if not self._waiting.get(world):
            frames = msgspec.json.decode((self._folder / f"{world}.json").read_bytes(), type=list[FrameRow])
            self._random.shuffle(frames)
            self._waiting[world] = frames
        frame = self._waiting[world].pop()
        recent.append(frame)
        del recent[:-REPEATED]
        return frame


class Application:
    """Eight clients under one control file."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self._folder = folder
        self._log = log
        self._stream = Stream(folder)
        self._control = self._read()
        self._next_at = 0.0

    async def run(self) -> None:
        """Until the control file says stop."""
        async with AsyncClient(self._control.url, self._control.key, connections=64) as client:
            watcher = asyncio.create_task(self._watch())
            await asyncio.gather(*(self._client(client, i) for i in range(self._control.clients)))
            await watcher

    async def _watch(self) -> None:
        while not self._control.stop:
            await asyncio.sleep(0.05)
            self._control = self._read()
            self._log.flush()

    async def _client(self, client: AsyncClient, number: int) -> None:
        while not (control := self._control).stop:
            if control.rate > 0:
                self._next_at = max(self._next_at + 1 / control.rate, time.monotonic())
                await asyncio.sleep(min(self._next_at - time.monotonic(), 1.0))
                if self._control is not control and self._control.stop:
                    return
            await self._send(client, control)

    async def _send(self, client: AsyncClient, control: Control) -> None:
        frame = self._stream.next(control.world, again=control.rate == 0)
        data = (self._folder / frame.file).read_bytes()
        begun = time.time()
        common = (control.world, frame.source, frame.label, frame.file)
        try:
            answer = await client.predict(control.model, data)
        except ApiError as error:
            sent = Sent(begun, time.time(), error.status, *common, error=str(error))
        except httpx.TransportError as error:
            sent = Sent(begun, time.time(), 0, *common, error=type(error).__name__)
            await asyncio.sleep(0.2)
        else:
            top = answer.predictions[0].name if answer.predictions else None
            sent = Sent(
                begun,
                time.time(),
                200,
                *common,
                answer.prediction_id,
                answer.version,
                top,
                answer.confidence,
                answer.unfamiliar,
            )
        self._log.write(msgspec.json.encode(sent) + b"\n")

    def _read(self) -> Control:
        return msgspec.json.decode((self._folder / "control.json").read_bytes(), type=Control)


def main() -> None:
    """Entry point; the folder is the only argument."""
    folder = Path(sys.argv[1])
    with (folder / "traffic.jsonl").open("ab") as log:
        asyncio.run(Application(folder, log).run())


if __name__ == "__main__":
    main()
