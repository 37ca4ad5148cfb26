"""`serve(context, routers, families=...)`: one process, one port, until SIGTERM or SIGINT.

The port is looked at first, because two granians bind one port without an error. Granian runs embedded on this process's own
event loop, so that a `kill -9` leaves nothing behind. On a signal new connections are refused, requests in flight get
GRACE_S, streams that are open then are cut.

Errors: SetupError when the port is in use or the address is not ours.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence

import structlog
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server
from litestar import Router

from serving.app import create_app
from serving.front import Front
from serving.training import Families, no_families
from sutdol.context import Context
from sutdol.errors import SetupError
from sutdol.process import one_thread_for_matrices

GRACE_S = 5.0
_HEADER_TIMEOUT_MS = 15_000
_BACKLOG = 1024
_MAX_CONNECTIONS = 16_384
_FILES_FOR_OURSELVES = 512
"""Of the files that this process may open, those that connections must leave: database, images, models."""


def serve(context: Context, routers: Sequence[Router] = (), *, families: Families = no_families) -> None:
    """Serve until a signal comes. Returns when everything accepted is answered and logged.

    Args:
        families: what can be trained, see `training.Families`.

    Raises:
        SetupError: the port is in use, or the address cannot be bound.
    """
    settings = context.settings
    one_thread_for_matrices()
    check_port(settings.host, settings.port)
    asyncio.run(_run(create_app(context, list(routers), families=families), settings.host, settings.port))


def check_port(host: str, port: int) -> None:
    """Raise SetupError unless `port` is free on `host`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SetupError(f"port {port} is in use", hint="choose another with --port") from error
            raise SetupError(
                f"{host}:{port} cannot be bound: {error.strerror}", hint="see --host and --port"
            ) from error


def _connections() -> int:
    """How many connections may be open at once; beyond it they wait outside until one ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(min(_MAX_CONNECTIONS, most - _FILES_FOR_OURSELVES), 64)


async def _run(app: Front, host: str, port: int) -> None:
    server = Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,  # the lifespan is ours, see below
        backlog=_BACKLOG,
        backpressure=_connections(),
        http=HTTPModes.http1,  # looking for HTTP/2 first, granian waits for ever for a client that says nothing
        http1_settings=HTTP1Settings(header_read_timeout=_HEADER_TIMEOUT_MS),
        log_level=LogLevels.error,
    )
    log = structlog.get_logger("serving")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with app.litestar.lifespan():
        gc.collect()
        gc.freeze()  # what was imported and loaded is never collected again; spares the long pauses
        serving = asyncio.create_task(server.serve())
        stopping = asyncio.create_task(stop.wait())
        log.info("serving", url=f"http://{host}:{port}", pid=os.getpid())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        app.litestar.state.close_streams()
        server.stop()  # type: ignore[no-untyped-call]
        _, late = await asyncio.wait({serving}, timeout=GRACE_S)
    if late:
        log.warning("open streams were cut", after_s=GRACE_S)
        # Granian's own threads wait for those streams and cannot be told; all answers are logged by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    if serving.exception() is not None:
        raise SetupError(f"the HTTP server ended: {serving.exception()}") from serving.exception()
    if not stop.is_set():
        raise SetupError("the HTTP server ended by itself", hint=f"is {host}:{port} usable?")
