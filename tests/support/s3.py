"""A real S3 server on loopback that checks signatures: nanio, in its own process."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_START_S = 30.0


class S3Server(NamedTuple):
    """Where the server listens and the one key pair it accepts."""

    endpoint_url: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """Return the variables with which boto3 finds these credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run an S3 server that keeps its buckets under `folder/s3`; it has ended when this returns."""
    data = folder / "s3"
    data.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = f"AK{secrets.token_hex(8).upper()}", secrets.token_hex(20)
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(folder),
        "NANIO_ACCESS_KEY": access_key,
        "NANIO_SECRET_KEY": secret_key,
    }
    log_path = folder / "s3.log"
    with log_path.open("ab") as log:
        process, port = _start(data, environment, log.fileno(), log_path)
        try:
            yield S3Server(f"http://127.0.0.1:{port}", access_key, secret_key)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(
    data: Path, environment: dict[str, str], log: int, log_path: Path
) -> tuple[subprocess.Popen[bytes], int]:
    # Another process may take the free port before the server does; then it exits and we choose again.
    for _ in range(3):
        port = free_port()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nanio", "serve", "--host", "127.0.0.1", "--port", str(port)),
                *("--data-dir", str(data), "--no-access-log", "--log-level", "warning"),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            if _answers(process, port):
                return process, port
        except BaseException:
            process.kill()
            process.wait()
            raise
    raise RuntimeError(f"the S3 server did not start:\n{log_path.read_text(errors='replace')[-2000:]}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_S
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        if time.monotonic() > deadline:
            raise TimeoutError(f"the S3 server did not listen within {_START_S:.0f} s")
        time.sleep(0.02)
    return False


def free_port() -> int:
    """Return a loopback TCP port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
