"""Child processes that are ready when they say so, and are gone when they should be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from mecroute.errors import TierUnreachableError
from mecroute_cli.stack import bound_child

_POLL_S = 0.05
_LOG_TAIL_LINES = 6


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class ChildProcess:
    """One program in a process group of its own, with its output in a log file.

    Start it from the main thread: on Linux the kernel ends it when the thread that started it ends.

    Args:
        name: what to call it in messages.
        command: program and arguments.
        log: where stdout and stderr go; started anew.
        environment: the whole environment of the child.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        bond = [sys.executable, "-I", "-S", str(Path(bound_child.__file__)), str(os.getpid())]
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*bond, *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait_until_ready(self, url: str, *, timeout_s: float, any_answer: bool = False) -> None:
        """Poll `url` until it answers 200.

        Args:
            url: a health endpoint of the child.
            timeout_s: > 0, when to give up.
            any_answer: accept any HTTP answer as a sign of life.

        Raises:
            TierUnreachableError: the child ended, or did not answer in time; its last words are quoted.
        """
        deadline = time.monotonic() + timeout_s
        with httpx.Client(timeout=2.0, trust_env=False) as http:
            while time.monotonic() < deadline:
                if not self.alive:
                    raise self._failed(f"ended with exit code {self._process.returncode}")
                try:
                    status = http.get(url).status_code
                except httpx.HTTPError:
                    status = None
                if status == 200 or (any_answer and status is not None):
                    return
                time.sleep(_POLL_S)
        raise self._failed(f"was not ready after {timeout_s:.0f} s")

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Ask it to end, and end its whole group when it does not."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End it and its whole group at once, without a word."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _failed(self, what: str) -> TierUnreachableError:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = " | ".join(lines[-_LOG_TAIL_LINES:])
        return TierUnreachableError(
            f"{self.name} {what}" + (f"; it said: {said}" if said else ""), hint=f"its log is {self.log}"
        )
