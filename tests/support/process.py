"""Runs the command line as a user does: in a process of its own, and in a terminal where that matters."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPONENTS = ("registry", "sdk", "quantize", "mec_server", "cli")
CLI = (sys.executable, "-m", "mecroute_cli")


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with the components importable and `extra` on top."""
    paths = [str(ROOT / component) for component in COMPONENTS]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(extra or {})}


def run_cli(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout_s: float = 120,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, with pipes for stdin, stdout and stderr."""
    return subprocess.run(
        [*CLI, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=child_environment(env),
        cwd=cwd,
        check=False,
    )


@dataclass
class RunningCli:
    """A command that still runs."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def interrupt(self) -> None:
        """What Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float = 60) -> tuple[int, str, str]:
        """Wait for the end: exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err


@contextmanager
def started_cli(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[RunningCli]:
    """Start a command and end it, whatever happens in the block."""
    process = subprocess.Popen(
        [*CLI, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        yield RunningCli(process)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def run_in_terminal(
    *arguments: str, env: Mapping[str, str] | None = None, columns: int = 120, timeout_s: float = 120
) -> tuple[int, str]:
    """Run one command with a pseudo-terminal for stdout and stderr: exit code and all that was drawn."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*CLI, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env=child_environment({"TERM": "xterm-256color", "COLUMNS": str(columns), **(env or {})}),
        start_new_session=True,
    )
    os.close(terminal)
    drawn = bytearray()
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if not select.select([controller], [], [], 0.2)[0]:
                continue
            try:
                piece = os.read(controller, 65536)
            except OSError:  # Linux answers EIO once the last writer has gone
                break
            if not piece:
                break
            drawn += piece
        return process.wait(max(1.0, deadline - time.monotonic())), drawn.decode(errors="replace")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(controller)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie. One with threads that still end has its files open."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z" or threads > 1


def wait_until_gone(pid: int, timeout_s: float = 20) -> bool:
    """Wait for a process to end; whether it did."""
    deadline = time.monotonic() + timeout_s
    while is_running(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
