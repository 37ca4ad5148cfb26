"""A network that loses answers: a TCP proxy in front of Label Studio whose imports happen and are never confirmed."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from types import TracebackType
from typing import Self


class LossyProxy:
    """Forwards everything; the next `lose` imports reach the server, and their answers are swallowed.

    `early` closes the client's side as soon as the request is through, while the server is still at work.
    """

    def __init__(self, upstream_port: int, *, lose: int = 0, early: bool = False) -> None:
        self.lose, self.early = lose, early
        self.chance, self.rng = 1.0, random.Random(0)
        """With which probability an import is one of those."""
        self.lost = 0
        self.requests: list[str] = []
        """Method and path of what was asked."""
        self._upstream = ("127.0.0.1", upstream_port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in [self._server, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream)
            except OSError:  # the server is down, and so is what is asked of it
                client.close()
                continue
            self._open += [client, server]
            thread = threading.Thread(target=self._serve, args=(client, server), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        swallow = threading.Event()
        back = threading.Thread(target=self._back, args=(server, client, swallow), daemon=True)
        back.start()
        try:
            request, wanted = b"", 0
            while data := client.recv(65536):
                fresh = data.split(b"\r\n", 1)[0]
                if fresh.endswith(b" HTTP/1.1"):
                    self.requests.append(fresh[:-9].decode())
                an_import = fresh.startswith(b"POST") and b"/import" in fresh
                if an_import and self.lost < self.lose and self.rng.random() < self.chance:
                    self.lost += 1
                    swallow.set()
                    request, wanted = b"", 0
                server.sendall(data)
                if swallow.is_set() and self.early:
                    request += data
                    head, _, body = request.partition(b"\r\n\r\n")
                    if not wanted and b"\r\n\r\n" in request:
                        length = [h for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")]
                        wanted = int(length[0].split(b":")[1]) if length else 0
                    if wanted and len(body) >= wanted:
                        client.shutdown(socket.SHUT_RDWR)
                        break
        except OSError:
            pass
        back.join(60)
        for each in (client, server):
            each.close()

    @staticmethod
    def _back(server: socket.socket, client: socket.socket, swallow: threading.Event) -> None:
        try:
            while data := server.recv(65536):
                if swallow.is_set():
                    client.shutdown(socket.SHUT_RDWR)  # the answer has come, so the work is done; nobody hears of it
                    return
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
