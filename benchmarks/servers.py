"""The servers that are compared, as processes on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Server:
    """How one server is started and addressed.

    Args:
        name: as it is shown.
        command: starts it.
        url: where it listens.
        model: the name to ask it by.
        ready: a path that answers 200 once it can serve.
    """

    name: str
    command: tuple[str, ...]
    url: str
    model: str
    ready: str = "/readyz"

    def told(self, *options: str) -> Server:
        """The same with more options on its command line."""
        return replace(self, command=(*self.command, *options))


def mecroute(model: Path, *, context: int, parallel: int, threads: int, max_queue: int = 64) -> Server:
    """Our server. `context` is tokens per sequence."""
    port = free_port()
    command = (
        sys.executable, "-m", "mecroute_cli", "serve", "--model", str(model), "--port", str(port),
        "--threads", str(threads), "--ctx", str(context), "--parallel", str(parallel),
        "--max-queue", str(max_queue),
    )  # fmt: skip
    name = model.name.removesuffix(".gguf").removesuffix(".onnx")
    return Server("mecroute", command, f"http://127.0.0.1:{port}", name)


def llama_server(binary: Path, model: Path, *, context: int, parallel: int, threads: int) -> Server:
    """llama.cpp's server, with the same room for each sequence."""
    port = free_port()
    command = (
        str(binary), "-m", str(model), "--port", str(port), "--host", "127.0.0.1",
        "-t", str(threads), "-tb", str(threads), "-c", str(context * parallel), "-np", str(parallel),
        "--no-webui",
    )  # fmt: skip
    return Server("llama-server", command, f"http://127.0.0.1:{port}", "any", "/health")


def llama_cpp_python(python: Path, model: Path, *, context: int, threads: int) -> Server:
    """llama-cpp-python's packaged server. It runs one request at a time; told not to, it would cut the stream
    that is running whenever another caller comes."""
    port = free_port()
    command = (
        str(python), "-m", "llama_cpp.server", "--model", str(model), "--host", "127.0.0.1",
        "--port", str(port), "--n_ctx", str(context), "--n_threads", str(threads),
        "--n_threads_batch", str(threads), "--interrupt_requests", "false",
    )  # fmt: skip
    return Server("llama-cpp-python", command, f"http://127.0.0.1:{port}", "any", "/v1/models")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; enters once it can serve."""
    # Told to stop, this process must still stop the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    log = Path(f".bench-{server.name}-{os.getpid()}.log").absolute()
    with log.open("wb") as out:
        # A group of its own: LitServe leaves its workers behind when only its first process is ended.
        process = subprocess.Popen(server.command, stdout=out, stderr=out, start_new_session=True)
    try:
        for _ in range(1200):
            try:
                if httpx.get(server.url + server.ready, timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None:
                sys.exit(f"{server.name} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.unlink()
