"""A mixed load for minutes on end: does the memory, do the threads or the open files of a node grow?

Chats (streamed, whole, with a forced tool call or a JSON schema), embeddings, callers that hang up in
mid-stream, requests that are wrong, and deadlines that cannot be met, from several callers at once. Every few
seconds memory (RSS), threads and open files are noted. The first fifth warms up; then the medians of the
first and of the last quarter are compared. Told to stop (Ctrl-C), it reports on what has been until then.

    make bench-soak DATA=model.gguf MINUTES=30
    python benchmarks/soak.py model.gguf [--minutes 30]

Ends with 1 if memory grew by more than 3%, or threads or open files by more than 2.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from load import question
from servers import Server, mecroute, running

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Ulm", "Bonn"]}},
            "required": ["town"],
        },
    },
}
SCHEMA = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"]}


async def caller(server: Server, number: int, ends_at: float, counts: Counter[str]) -> None:
    """One caller that does something else each time."""
    rng = random.Random(number)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        while time.monotonic() < ends_at:
            kind = rng.choice(
                (
                    "stream",
                    "stream",
                    "whole",
                    "tool",
                    "schema",
                    "embed",
                    "hang up",
                    "wrong",
                    "late",
                    "messages",
                )
            )
            try:
                status = await one_request(http, server, kind, rng)
            except httpx.HTTPError as error:
                counts[f"{kind}: {type(error).__name__}"] += 1
                continue
            counts[f"{kind}: {status}"] += 1


async def one_request(http: httpx.AsyncClient, server: Server, kind: str, rng: random.Random) -> int:
    chat: dict[str, Any] = {
        "model": server.model,
        "messages": [{"role": "user", "content": question(rng, rng.choice((5, 40, 200)))}],
        "max_tokens": rng.choice((4, 16, 32)),
    }
    path, headers, body = "/v1/chat/completions", {}, chat
    if kind == "embed":
        path, body = "/v1/embeddings", {"model": server.model, "input": question(rng)}
    elif kind == "messages":
        path = "/v1/messages"
    elif kind == "tool":
        body = {**chat, "tools": [TOOL], "tool_choice": "required", "max_tokens": 64}
    elif kind == "schema":
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        body = {**chat, "response_format": form, "max_tokens": 64}
    elif kind == "wrong":
        body = {**chat, "temperature": "hot"}
    elif kind == "late":
        headers = {"x-mecroute-deadline-ms": "1"}
    if kind in ("stream", "hang up"):
        async with http.stream("POST", path, json={**body, "stream": True}, headers=headers) as answer:
            lines = 0
            async for _ in answer.aiter_lines():
                lines += 1
                if kind == "hang up" and lines > 4:
                    break
            return answer.status_code
    return (await http.post(path, json=body, headers=headers)).status_code


async def watch(pid: int, every_s: float, rows: list[dict[str, float]]) -> None:
    node, begun = psutil.Process(pid), time.monotonic()
    while True:
        await asyncio.sleep(every_s)
        memory = node.memory_info().rss / 1e6
        at = time.monotonic() - begun
        rows.append({"s": at, "rss_mb": memory, "threads": node.num_threads(), "files": node.num_fds()})


async def soak(
    server: Server,
    pid: int,
    args: argparse.Namespace,
    rows: list[dict[str, float]],
    counts: Counter[str],
) -> None:
    ends_at = time.monotonic() + args.minutes * 60
    watching = asyncio.create_task(watch(pid, args.every, rows))
    await asyncio.gather(*(caller(server, number, ends_at, counts) for number in range(args.callers)))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--every", type=float, default=5, help="seconds between two looks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.model.is_file():
        parser.error(f"no model at {args.model}")
    server = mecroute(args.model, context=2048, parallel=4, threads=args.threads)
    with running(server) as process:
        rows: list[dict[str, float]] = []
        counts: Counter[str] = Counter()
        with suppress(KeyboardInterrupt):
            asyncio.run(soak(server, process.pid, args, rows, counts))
        for _ in range(50):  # what callers have left goes within a step or two
            if not httpx.get(f"{server.url}/admin/node", timeout=5).json()["models"][0]["running"]:
                break
            time.sleep(0.1)
        alive = httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200
        left = httpx.get(f"{server.url}/admin/node", timeout=5).json()["models"][0]
    if not rows:
        sys.exit("stopped before the first look")
    settled = rows[len(rows) // 5 :]
    quarter = max(1, len(settled) // 4)
    growth = {
        name: (
            statistics.median(row[name] for row in settled[:quarter]),
            statistics.median(row[name] for row in settled[-quarter:]),
        )
        for name in ("rss_mb", "threads", "files")
    }
    answered = sum(counts.values())
    errors = {name: n for name, n in counts.items() if not name.rpartition(" ")[2].isdigit()}
    errors |= {name: n for name, n in counts.items() if name.rpartition(" ")[2] == "500"}
    grew = growth["rss_mb"][1] > 1.03 * growth["rss_mb"][0] or any(
        growth[name][1] > growth[name][0] + 2 for name in ("threads", "files")
    )
    if args.json:
        print(json.dumps({"growth": growth, "counts": counts, "errors": errors, "rows": rows}))
    else:
        minutes = rows[-1]["s"] / 60
        print(f"{answered} requests in {minutes:.1f} minutes: {dict(sorted(counts.items()))}")
        for name, (first, last) in growth.items():
            print(f"{name:8} first quarter {first:8.1f}   last quarter {last:8.1f}   {last / first - 1:+.1%}")
        print(
            f"running {left['running']}, queued {left['queued']} at the end; ready: {alive}; errors: {errors}"
        )
    if grew or not alive or left["running"] or errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
