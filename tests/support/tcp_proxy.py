"""A TCP proxy on loopback that breaks connections where a test tells it to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator


class FaultyProxy:
    """Forwards each connection to a port; counts what comes back, slows it down and cuts it off.

    Attributes:
        received: bytes that the server behind sent through so far.
        sent: bytes that its clients sent through.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._cut_at: int | None = None
        self._bytes_per_s: float | None = None
        self._sent_bytes_per_s: float | None = None
        self._down = False
        self._closed = False
        self._threads: list[threading.Thread] = []
        self.received = self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._spawn(self._accept)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def cut_after(self, count: int) -> None:
        """Reset every connection once `count` more bytes came back, and each new one, until `heal`."""
        with self._lock:
            self._cut_at = self.received + count

    def cut_now(self) -> None:
        """Break the connections that are open; new ones are forwarded."""
        self._reset_all()

    def slow_down(self, bytes_per_s: float | None, *, sent_bytes_per_s: float | None = None) -> None:
        """Let no more than this come back, and be sent, per second; None: as much as comes."""
        self._bytes_per_s, self._sent_bytes_per_s = bytes_per_s, sent_bytes_per_s

    def heal(self) -> None:
        """Forward faithfully from now on."""
        with self._lock:
            self._cut_at, self._down, self._bytes_per_s = None, False, None
            self._sent_bytes_per_s = None

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._closed = True
        # A connection of our own wakes the accepting thread, on every platform.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            pass
        self._listener.close()
        self._reset_all()
        for thread in self._threads:
            thread.join(10)

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._down or self._closed:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port), timeout=10)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            self._spawn(self._pump, client, server, False)
            self._spawn(self._pump, server, client, True)

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(16384):
                if counted and not self._count(data, target):
                    return
                target.sendall(data)
                if not counted:
                    with self._lock:
                        self.sent += len(data)
                rate = self._bytes_per_s if counted else self._sent_bytes_per_s
                if rate:
                    time.sleep(len(data) / rate)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {source, target}
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            source.close()

    def _count(self, data: bytes, target: socket.socket) -> bool:
        with self._lock:
            if self._cut_at is not None and self.received + len(data) > self._cut_at:
                rest = data[: max(self._cut_at - self.received, 0)]
                self.received += len(rest)
                self._down = True
            else:
                self.received += len(data)
                return True
        if rest:
            target.sendall(rest)
        self._reset_all()
        return False

    def _reset_all(self) -> None:
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    # SO_LINGER with a zero time makes close send RST instead of FIN.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextlib.contextmanager
def faulty_proxy(target_url: str) -> Iterator[FaultyProxy]:
    """Run a proxy to `http://127.0.0.1:PORT`; it has ended when this returns."""
    proxy = FaultyProxy(int(target_url.rsplit(":", 1)[1]))
    try:
        yield proxy
    finally:
        proxy.close()
