"""Ten thousand connections that do nothing good: is a node's memory bounded, and does it answer the others?

Idle connections, headers that come a byte a second, bodies that stop halfway: in equal parts. Meanwhile one
well-behaved caller asks for short answers. At the end everything that hangs must have been closed by the
node's own time limits, which are shortened for this run.

    make bench-connections DATA=model.gguf
    python benchmarks/connections.py model.gguf [--connections 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil

from load import Sample, ask, client
from servers import Server, mecroute, running

LIMIT_S = 20


class Nuisances:
    """Connections that are held open. Counts those that the node has closed."""

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url)
        self.open = 0
        self.closed: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, kind: str) -> None:
        reader, writer = await asyncio.open_connection(self._url.host, self._url.port, limit=4096)
        self.open += 1
        task = asyncio.create_task(self._hold(kind, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hold(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if kind == "half a body":
                writer.write(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                    b"content-type: application/json\r\n"
                    b'content-length: 4000\r\n\r\n{"model": "half'
                )
            elif kind == "slow headers":
                for byte in b"POST /v1/chat/completions HTTP/1.1\r\nhost: " + b"x" * 600:
                    writer.write(bytes([byte]))
                    if await self._ended(reader, 1.0):
                        break
            await self._ended(reader, 3600)
        except OSError:
            pass
        finally:
            self.open -= 1
            self.closed[kind] += 1
            writer.close()

    @staticmethod
    async def _ended(reader: asyncio.StreamReader, seconds: float) -> bool:
        """Whether the node closes it within that time; what it says before that is read and dropped."""
        try:
            async with asyncio.timeout(seconds):
                while await reader.read(4096):
                    pass
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def good_caller(server: Server, took: list[float], statuses: Counter[int]) -> None:
    async with client(server.url, 60) as http:
        while True:
            begun = time.perf_counter()
            prompt = [{"role": "user", "content": "Hello"}]
            statuses[await ask(http, server.model, prompt, Sample(), max_tokens=4)] += 1
            took.append(time.perf_counter() - begun)
            await asyncio.sleep(0.25)


async def measure(server: Server, pid: int, count: int) -> dict[str, object]:
    node = psutil.Process(pid)
    took: list[float] = []
    statuses: Counter[int] = Counter()
    good = asyncio.create_task(good_caller(server, took, statuses))
    await asyncio.sleep(5)
    alone = statistics.median(took)
    before = node.memory_info().rss / 1e6
    took.clear()
    nuisances = Nuisances(server.url)
    kinds = ("idle", "slow headers", "half a body")
    begun = time.perf_counter()
    for first in range(0, count, 250):
        await asyncio.gather(*(nuisances.add(kinds[at % 3]) for at in range(first, min(first + 250, count))))
    opened_s = time.perf_counter() - begun
    most, memory, files = nuisances.open, node.memory_info().rss / 1e6, node.num_fds()
    # Twice the limits and some: from then on nothing that hangs may be left.
    for _ in range(3 * LIMIT_S):
        await asyncio.sleep(1)
        memory, files = max(memory, node.memory_info().rss / 1e6), max(files, node.num_fds())
        if not nuisances.open:
            break
    emptied_s = time.perf_counter() - begun
    good.cancel()
    ended = await asyncio.gather(good, return_exceptions=True)
    left, closed = nuisances.open, dict(nuisances.closed)
    await nuisances.close()
    return {
        "opened": count, "opened_s": opened_s, "open_at_once": most, "files_at_most": files,
        "closed_by_the_node": closed, "left_open": left,
        "emptied_s": emptied_s, "rss_before_mb": before, "rss_at_most_mb": memory,
        "kb_per_connection": (memory - before) * 1e3 / count,
        "good_alone_p50_ms": alone * 1e3, "good_p50_ms": statistics.median(took) * 1e3,
        "good_max_ms": max(took) * 1e3, "good_answers": dict(statuses),
        "good_failure": None if isinstance(ended[0], asyncio.CancelledError) else repr(ended[0]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.model.is_file():
        parser.error(f"no model at {args.model}")
    need = args.connections + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        sys.exit(f"this takes {need} open files, and the limit is {hard}: raise it, or ask for fewer")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))
    os.environ |= {
        "MECROUTE_SERVER_MAX_CONNECTIONS": str(args.connections + 500),
        "MECROUTE_SERVER_HEADER_TIMEOUT_S": str(LIMIT_S),
        "MECROUTE_SERVER_BODY_TIMEOUT_S": str(LIMIT_S),
    }
    server = mecroute(args.model, context=512, parallel=2, threads=args.threads)
    with running(server) as process:
        row = asyncio.run(measure(server, process.pid, args.connections))
    if args.json:
        print(json.dumps(row))
    else:
        for name, value in row.items():
            print(f"{name:20} {value:.1f}" if isinstance(value, float) else f"{name:20} {value}")
    if row["left_open"] or row["good_failure"] or set(row["good_answers"]) != {200}:  # type: ignore[call-overload]
        sys.exit(1)


if __name__ == "__main__":
    main()
