"""Runs a node as a process: one listening socket, one event loop, and a graceful stop."""

from __future__ import annotations

import asyncio
import errno
import resource
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from mecroute.engines.llama.adapters import check_adapter
from mecroute.errors import ConfigError, MecrouteError, NodeNotReadyError, UsageError
from mecroute_registry.gguf import read_gguf
from mecroute_registry.onnx import read_onnx
from mecroute_registry.onnx_folder import model_file
from mecroute_server.announce import Announcer
from mecroute_server.app import create_app
from mecroute_server.connections import ConnectionGuard
from mecroute_server.settings import ServerSettings
from mecroute_server.slot import is_onnx_file
from mecroute_server.tls_accept import TlsAcceptor

if TYPE_CHECKING:
    from mecroute_server.node import Node

_BACKLOG = 2048
#: Files that a node opens for other things than connections: models, its registry, its logs, its store.
_OTHER_FILES = 128
#: After the grace period, how long ended answers have to tell their callers so before connections are cut.
_LAST_WORDS_S = 5


def serve(settings: ServerSettings, *, on_ready: Callable[[NodeServer], None] | None = None) -> None:
    """Serve until SIGTERM, which ends in a normal return, or SIGINT.

    Args:
        settings: the node's settings.
        on_ready: called once, on the event loop's thread, when the node listens and the models named in the
            settings are loaded; default: a line on stderr.

    Raises:
        UsageError: the port is in use, or may not be used.
        ConfigError: there is no such address.
        InvalidModelFileError: a model file cannot be served; found before anything listens.
        MecrouteError: models are named in the settings and none of them could be loaded.
        KeyboardInterrupt: SIGINT; raised once everything is closed.
    """
    with NodeServer(settings) as server:
        server.run(on_ready=on_ready or _say_ready)


def listen(settings: ServerSettings) -> socket.socket:
    """Take the port, so that nothing is loaded for a server that cannot listen.

    Returns:
        A listening socket; its port is the one in the settings, or a free one for 0.

    Raises:
        UsageError: the port is in use, or may not be used.
        ConfigError: there is no such address.
    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(
            f"cannot listen on '{host}': {error.strerror or error}", hint="name an address of this machine"
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # At once: two processes may bind with SO_REUSEADDR, and only one of them may listen.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} on {host} is in use", hint="choose another with --port, or stop what uses it"
            ) from error
        if error.errno == errno.EACCES:
            raise UsageError(
                f"port {port} on {host} may not be used by this user",
                hint="choose one above 1023 with --port",
            ) from error
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            hint="name an address of this machine",
        ) from error
    return listener


class NodeServer:
    """One node and its HTTP server; it listens from the moment it is made.

    Use it as a context manager, or call `close`. `run` blocks one thread; every other method may be called
    from any thread.

    Args:
        settings: the node's settings.

    Raises:
        UsageError, ConfigError: see `listen`; or the store's URI is not one that we know.
        InvalidModelFileError: a model file of the settings cannot be served.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._socket = listen(settings)
        host, port = self._socket.getsockname()[:2]
        scheme = "http" if settings.tls is None else "https"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        try:
            tls = settings.tls.context() if settings.tls is not None else None
            app = create_app(settings)
            self.node: Node = app.state.node
            self.node.deployer.check()
            self._announcer = self._make_announcer()
            for adapter in settings.adapters.values():
                check_adapter(adapter)
            for path in settings.model_files:
                if is_onnx_file(path):
                    read_onnx(model_file(path))
                else:
                    read_gguf(path)
        except BaseException:
            self._socket.close()
            raise
        guard = ConnectionGuard(
            max_connections=_connection_limit(settings.max_connections),
            header_timeout_s=settings.header_timeout_s,
            write_timeout_s=settings.write_timeout_s,
        )
        config = uvicorn.Config(
            app,
            http=guard.protocol,  # type: ignore[arg-type] # a function that makes one, not the class
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            server_header=False,
            # Longer than clients keep their connections: the one who closes first should be they.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=settings.shutdown_grace_s + _LAST_WORDS_S,
        )
        self._server = _Server(config, self.node, guard, tls)
        self._settled = threading.Event()
        self._failure: MecrouteError | None = None

    def __enter__(self) -> NodeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *, on_ready: Callable[[NodeServer], None] | None = None) -> None:
        """Serve until `stop`, SIGTERM or SIGINT; signals are taken only on the main thread.

        Raises:
            MecrouteError: models are named in the settings and none of them could be loaded.
            KeyboardInterrupt: SIGINT; raised once everything is closed.
        """
        try:
            with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
                runner.run(self._run(on_ready))
        finally:
            self._settled.set()
        if self._failure is not None:
            raise self._failure
        if self._server.interrupted:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Ask the server to stop: no new requests, and those that run may finish within the grace period."""
        self._server.should_exit = True

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait, in another thread than `run`'s, until the node listens and has loaded its models.

        Raises:
            MecrouteError: none of the models named in the settings could be loaded.
            NodeNotReadyError: it takes longer than `timeout_s`.
        """
        if not self._settled.wait(timeout_s):
            raise NodeNotReadyError(
                f"node '{self.settings.node}' is not ready after {timeout_s:g} s",
                hint="look at its log",
                tier="mec",
            )
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Give the port back, if `run` has not done so."""
        self._socket.close()

    async def _run(self, on_ready: Callable[[NodeServer], None] | None) -> None:
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        watching = asyncio.create_task(self._watch_start(on_ready))
        guarding = asyncio.create_task(self._server.guard.watch())
        announcing = asyncio.create_task(self._announce())
        try:
            await serving
        finally:
            for task in (watching, guarding, announcing):
                task.cancel()
            await asyncio.gather(watching, guarding, announcing, return_exceptions=True)

    async def _announce(self) -> None:
        await self._server.listening.wait()
        if self._announcer is not None:
            await self._announcer.run()

    def _make_announcer(self) -> Announcer | None:
        told, pool = self.settings, self.node.pool
        if not told.announcement.wanted:
            return None
        return Announcer(
            told.announcement,
            node=told.node,
            zone=told.zone,
            region=told.region,
            url=self.url,
            stopping=lambda: pool.draining or pool.closing,
        )

    async def _watch_start(self, on_ready: Callable[[NodeServer], None] | None) -> None:
        await self._server.listening.wait()
        try:
            await self.node.started()
        except MecrouteError as error:
            self._failure = error
            self.stop()
        else:
            if on_ready is not None and not self._server.should_exit:
                on_ready(self)
        self._settled.set()


class _Server(uvicorn.Server):
    """uvicorn, but a graceful stop is a normal end: its own raises the signal again, for exit status 143."""

    def __init__(
        self, config: uvicorn.Config, node: Node, guard: ConnectionGuard, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(config)
        self._node = node
        self.guard = guard
        self._tls = tls
        self._acceptors: list[TlsAcceptor] = []
        self.interrupted = False
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._tls is None or sockets is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            for listener in sockets:
                listener.setblocking(False)
                self._acceptors.append(TlsAcceptor(listener, self._tls, self.guard, self._protocol))
        self.listening.set()

    def _protocol(self) -> asyncio.Protocol:
        return self.guard.protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain()
        self._node.stop_admitting()
        for acceptor in self._acceptors:
            await acceptor.close()
        ending = asyncio.create_task(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    async def _drain(self) -> None:
        """Be not ready for a while before taking no more, so that a balancer stops sending first."""
        if self._node.pool.why_not_ready() is not None:
            return
        self._node.drain()
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._node.settings.drain_delay_s
        # A second signal sets only uvicorn's flag, so that is what is looked at.
        while not self.force_exit and (left_s := ends_at - loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(0.1, left_s))

    async def _end_answers(self) -> None:
        """When the grace period is over, end what still runs with an error that its caller can read."""
        await asyncio.sleep(self._node.settings.shutdown_grace_s)
        await self._node.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)


def _connection_limit(wanted: int) -> int:
    """As many as wanted, if the process may open so many files: out of files, it could not even refuse."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _OTHER_FILES))


def _say_ready(server: NodeServer) -> None:
    models = ", ".join(slot.ref for slot in server.node.pool.ready()) or "none yet; deploy one"
    print(
        f"node '{server.settings.node}' is ready on {server.url} (models: {models})",
        file=sys.stderr,
        flush=True,
    )
