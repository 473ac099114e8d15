"""A real MEC server for a test: uvicorn in a thread, on a free loopback port."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mecroute.errors import MecrouteError
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.process import child_environment

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
                server.wait_ready(180)
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


_PROGRAM = """
import sys, json
from pathlib import Path
from mecroute_server import ServerSettings, serve
given = json.loads(sys.argv[1])
given["model_files"] = tuple(Path(path) for path in given["model_files"])
given["registry_root"] = Path(given["registry_root"])
serve(ServerSettings(**given))
"""


@contextmanager
def server_process(
    registry_root: Path, *models: Path, **more: object
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`serve` in a process of its own, with its URL; it is killed when the block ends.

    Args:
        registry_root: of the node.
        models: files to serve.
        more: other settings, as JSON has them.
    """
    settings = {
        "port": 0,
        "registry_root": str(registry_root),
        "model_files": [str(path) for path in models],
        "context": 32768,
        "parallel": 1,
        "threads": 1,
        **more,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    try:
        assert process.stderr
        line = process.stderr.readline()
        assert "is ready on http://127.0.0.1:" in line, line + process.stderr.read()
        yield process, line.split(" is ready on ")[1].split()[0]
    finally:
        process.kill()
        process.communicate()
