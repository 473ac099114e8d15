"""Our MEC server against a peer: same GGUF, threads, context and requests, in one run, alternating.

Scenarios:
    fresh    every prompt is new: what batching does
    shared   every prompt begins with the same system message of about 512 tokens: what prefix reuse does
    mixed    short chats while a prompt of about 4,000 tokens arrives every few seconds

For each round both servers get the same prompts one after the other, in alternating order; figures are
medians over the rounds, and each ratio is the median of the rounds' own ratios (ours / theirs).

    make bench-serving DATA=model.gguf
    python benchmarks/serving.py model.gguf [--rounds 5] [--concurrency 1,4,8,16] [--scenarios fresh,shared]
    python benchmarks/serving.py model.gguf --peer llama-cpp-python --scenarios fresh --concurrency 8
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import httpx

from load import Sample, ask, client, question, text
from peers import binaries, python_server
from servers import Server, llama_cpp_python, llama_server, mecroute, running

TOKENS = 48
REQUESTS_PER_WORKER = 3
CONTEXT = 2048
LONG_CONTEXT = 8192


def prompts(scenario: str, count: int, seed: int) -> list[list[dict[str, str]]]:
    """The same prompts for both servers; new ones for every seed."""
    rng = random.Random(seed)
    system = text(random.Random(7), 480)
    made = []
    for _ in range(count):
        messages = [{"role": "user", "content": question(rng)}]
        if scenario == "shared":
            messages.insert(0, {"role": "system", "content": system})
        made.append(messages)
    return made


async def load(server: Server, scenario: str, concurrency: int, seed: int) -> Sample:
    """One round on one server."""
    queue = prompts(scenario, concurrency * REQUESTS_PER_WORKER, seed)
    sample = Sample()
    async with client(server.url) as http:

        async def worker() -> None:
            while queue:
                status = await ask(http, server.model, queue.pop(), sample, max_tokens=TOKENS)
                if status != 200:
                    sys.exit(f"{server.name} answered {status}")

        begun = time.perf_counter()
        long = asyncio.create_task(long_prompts(http, server, seed)) if scenario == "mixed" else None
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        sample.wall = time.perf_counter() - begun
        if long is not None:
            long.cancel()
            await asyncio.gather(long, return_exceptions=True)
    return sample


async def long_prompts(http: httpx.AsyncClient, server: Server, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        messages = [{"role": "user", "content": text(rng, 3900)}]
        await ask(http, server.model, messages, Sample(), max_tokens=TOKENS)
        await asyncio.sleep(2)


def compare(ours: Server, theirs: Server, scenario: str, concurrency: int, rounds: int) -> dict[str, Any]:
    figures: dict[str, list[dict[str, float]]] = {ours.name: [], theirs.name: []}
    for number in range(rounds + 1):
        for server in (ours, theirs) if number % 2 else (theirs, ours):
            seed = zlib.crc32(f"{scenario} {concurrency} {number}".encode())
            sample = asyncio.run(load(server, scenario, concurrency, seed))
            if number:  # the first round warms both up
                figures[server.name].append(sample.figures())
    mine, other = figures[ours.name], figures[theirs.name]
    return {
        "scenario": scenario,
        "concurrency": concurrency,
        "mecroute": {k: statistics.median(f[k] for f in mine) for k in mine[0]},
        "peer": {k: statistics.median(f[k] for f in other) for k in other[0]},
        "peer_name": theirs.name,
        "ratio": {
            k: statistics.median(a[k] / b[k] for a, b in zip(mine, other, strict=True)) for k in mine[0]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file with a chat template")
    parser.add_argument("--peer", choices=("llama-server", "llama-cpp-python"), default="llama-server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", default="1,4,8,16")
    parser.add_argument("--scenarios", default="fresh,shared,mixed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-server", type=Path, help="a built llama-server; default: build it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.model.is_file():
        parser.error(f"no model at {args.model}: name a GGUF file, as in make bench-serving DATA=model.gguf")
    concurrency = [int(part) for part in args.concurrency.split(",")]
    rows = []
    for scenario in args.scenarios.split(","):
        levels = [4] if scenario == "mixed" else concurrency
        parallel = max(levels) + (1 if scenario == "mixed" else 0)
        context = LONG_CONTEXT if scenario == "mixed" else CONTEXT
        ours = mecroute(args.model, context=context, parallel=parallel, threads=args.threads)
        if args.peer == "llama-server":
            binary = args.llama_server or binaries()["llama-server"]
            theirs = llama_server(
                binary, args.model, context=context, parallel=parallel, threads=args.threads
            )
        else:
            theirs = llama_cpp_python(python_server(), args.model, context=context, threads=args.threads)
        with running(ours), running(theirs):
            for level in levels:
                row = compare(ours, theirs, scenario, level, args.rounds)
                rows.append(row)
                if not args.json:
                    show(row)
    if args.json:
        print(json.dumps(rows))


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['scenario']}, concurrency {row['concurrency']}")
    for name in row["ratio"]:
        ours, theirs = row["mecroute"][name], row["peer"][name]
        print(
            f"  {name:12} mecroute {ours:9.1f}   {row['peer_name']} {theirs:9.1f}   "
            f"ratio {row['ratio'][name]:.2f}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
