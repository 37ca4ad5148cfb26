"""A promise made on an event loop and kept by a thread: `Ticket` is made by the request, `settle` is called by threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sutdol.errors import SutdolError


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a request waits for; made on the event loop."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    future: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def gone(self) -> bool:
        """Nobody waits any more; work for it may be dropped. Readable from any thread."""
        return self.future.done()


class HasTicket(Protocol):
    """Whatever is handed in for an answer."""

    @property
    def ticket(self) -> Ticket: ...


Job = TypeVar("Job", bound=HasTicket)
Outcome = tuple[Ticket | None, Any]
"""What the request gets: a reply, or an exception that it raises. Without a ticket nobody waits."""


def settle(outcomes: Iterable[Outcome]) -> None:
    """Tell the waiting requests their answers or errors; one wake-up of the loop for all of them. From any thread.

    Those who have gone, and those whose event loop has ended, hear nothing.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Any]]] = {}
    for outcome in outcomes:
        ticket, result = outcome
        if ticket is not None:
            by_loop.setdefault(ticket.loop, []).append((ticket, result))
    for loop, theirs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, theirs)


async def outcomes(submit: Callable[[Job], None], jobs: Sequence[Job], *, at_once: int) -> list[Any]:
    """Submit many, `at_once` of them at a time; what each was settled with, in order, expected failures in their place."""
    turn = asyncio.Semaphore(at_once)

    async def one(job: Job) -> Any:
        async with turn:
            try:
                submit(job)
                return await job.ticket.future
            except SutdolError as error:
                return error
            finally:
                job.ticket.future.cancel()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(job)) for job in jobs]
    return [task.result() for task in tasks]


def _settle(outcomes: list[tuple[Ticket, Any]]) -> None:
    for ticket, result in outcomes:
        if ticket.future.done():
            continue
        if isinstance(result, BaseException):
            ticket.future.set_exception(result)
        else:
            ticket.future.set_result(result)
