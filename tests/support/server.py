"""A real MEC server for a test: uvicorn in a thread, on a free loopback port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mecroute.errors import MecrouteError
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings

#: For `write_tiny_gguf(says=...)`: what a test's model repeats for ever at temperature 0. None of its
#: letters is in that model's vocabulary but as a byte, so a prompt that ends with some of it is continued.
SAYS = "HELO-WRD"


@contextmanager
def running_node(settings: ServerSettings, *, wait: bool = True) -> Iterator[NodeServer]:
    """Run a node, and stop it when the block ends.

    Args:
        settings: the node's settings; use `port=0`.
        wait: whether to wait until the models named in the settings are loaded.

    Raises:
        MecrouteError: none of those models could be loaded.
    """
    with NodeServer(settings) as server:
        thread = threading.Thread(target=_run, args=(server,), name="node-under-test", daemon=True)
        thread.start()
        try:
            if wait:
                server.wait_ready(60)
            yield server
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive(), "the server did not stop"


def _run(server: NodeServer) -> None:
    with suppress(MecrouteError):  # `wait_ready` raises the same in the test's own thread
        server.run()


@contextmanager
def running_server(settings: ServerSettings) -> Iterator[str]:
    """Run a node until the block ends.

    Yields:
        Its URL, without a slash at the end and without `/v1`.
    """
    with running_node(settings) as server:
        yield server.url
