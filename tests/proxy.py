"""A proxy between client and server on the loopback interface.

It counts round trips, delays them as a network does, and lets a test act at the moment
when a message passes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from select import select
from types import TracebackType
from typing import Self

from sqlalchemy import make_url

from servers import Server


class Proxy:
    """Listens on a port of its own, and passes everything on to ``server``.

    A round trip is counted when the server answers to what the client sent since its
    last answer, in however many pieces.

    :param delay: seconds that a round trip takes longer, half of them each way. What is
        sent meanwhile travels along: the delay is not a limit of what passes.
    """

    def __init__(self, server: Server, delay: float = 0) -> None:
        self._target = (server.host, server.port)
        self._listener = socket.create_server((server.host, 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.delay = delay
        self.round_trips = 0
        #: Called with what a client sends, and with what the server answers, before it
        #: is passed on. Returns bytes to pass on these instead, and cut the connection.
        self.on_request: Callable[[bytes], object] | None = None
        self.on_answer: Callable[[bytes], object] | None = None

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        host, port = self._listener.getsockname()
        return host, port

    def url(self, url: str) -> str:
        """The URL of a database, by way of the proxy."""
        host, port = self.address
        through = make_url(url).set(host=host, port=port)
        return through.render_as_string(hide_password=False)

    def cut(self) -> None:
        """Cut all connections, as a network failure does."""
        # not those of a client that connects again meanwhile
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # the listener was closed
            try:
                server = socket.create_connection(self._target)
            except OSError:  # the server is down
                client.close()
                continue
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            unanswered = threading.Event()
            self._start(self._pass_requests, client, server, unanswered)
            self._start(self._pass_answers, server, client, unanswered)

    def _pass_requests(
        self, client: socket.socket, server: socket.socket, unanswered: threading.Event
    ) -> None:
        def note(data: bytes) -> None:
            _act(self.on_request, data, server)
            unanswered.set()

        self._pass(client, server, note)

    def _pass_answers(
        self, server: socket.socket, client: socket.socket, unanswered: threading.Event
    ) -> None:
        def note(data: bytes) -> None:
            if unanswered.is_set():
                unanswered.clear()
                self.round_trips += 1
            _act(self.on_answer, data, client)

        self._pass(server, client, note)

    def _pass(
        self,
        source: socket.socket,
        target: socket.socket,
        note: Callable[[bytes], None],
    ) -> None:
        # when it arrives, and what
        travelling: deque[tuple[float, bytes]] = deque()
        sources = [source]
        with source, contextlib.suppress(OSError):
            while sources or travelling:
                wait = None
                if travelling:
                    wait = max(0, travelling[0][0] - time.monotonic())
                if select(sources, [], [], wait)[0]:
                    if data := source.recv(1 << 16):
                        note(data)
                        travelling.append((time.monotonic() + self.delay / 2, data))
                    else:
                        sources = []
                while travelling and travelling[0][0] <= time.monotonic():
                    target.sendall(travelling.popleft()[1])
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _act(
    hook: Callable[[bytes], object] | None, data: bytes, target: socket.socket
) -> None:
    instead = None if hook is None else hook(data)
    if isinstance(instead, bytes):
        target.sendall(instead)
        raise ConnectionAbortedError
