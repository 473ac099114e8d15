"""Our MEC server against a peer: same GGUF, threads, context and requests, in one run, alternating.

Scenarios:
    fresh    every prompt is new: what batching does
    shared   every prompt begins with the same system message of about 512 tokens: what prefix reuse does
    arriving the same, with a system message that is new in every round: requests come with it together
    turns    three times as many conversations as slots, each of four turns, one turn of each after the other
    mixed    short chats while a prompt of about 4,000 tokens arrives every few seconds
    repeat   the answer repeats a passage of the prompt: what speculation from the prompt does. Both servers
             speculate, ours with prompt-lookup, theirs with ngram-simple; `plain` is ours without

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
from contextlib import ExitStack
from dataclasses import replace
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
TURNS = 4
TURN_TOKENS = 24
CONVERSATIONS_PER_SLOT = 3


def prompts(scenario: str, count: int, seed: int) -> list[list[dict[str, str]]]:
    """The same prompts for both servers; new ones for every seed."""
    rng = random.Random(seed)
    if scenario == "repeat":
        passages = [text(rng, 60) for _ in range(count)]
        return [
            [{"role": "user", "content": f"Repeat this text, word for word, and nothing else:\n\n{passage}"}]
            for passage in passages
        ]
    system = text(random.Random(7 if scenario == "shared" else f"system {seed}"), 480)
    made = []
    for _ in range(count):
        messages = [{"role": "user", "content": question(rng)}]
        if scenario in ("shared", "arriving"):
            messages.insert(0, {"role": "system", "content": system})
        made.append(messages)
    return made


async def load(server: Server, scenario: str, concurrency: int, seed: int, requests: int) -> Sample:
    """One round on one server."""
    queue = prompts(scenario, concurrency * requests, seed)
    sample = Sample()
    async with client(server.url) as http:

        async def worker() -> None:
            while queue:
                status = await ask(http, server.model, queue.pop(), sample, max_tokens=TOKENS)
                if status != 200:
                    sys.exit(f"{server.name} answered {status}")

        begun = time.perf_counter()
        long = asyncio.create_task(long_prompts(http, server, seed)) if scenario == "mixed" else None
        if scenario == "turns":
            await converse(http, server, concurrency, seed, sample)
        else:
            await asyncio.gather(*(worker() for _ in range(concurrency)))
        sample.wall = time.perf_counter() - begun
        if long is not None:
            long.cancel()
            await asyncio.gather(long, return_exceptions=True)
    return sample


async def converse(
    http: httpx.AsyncClient, server: Server, concurrency: int, seed: int, sample: Sample
) -> None:
    """Conversations that go on in turn; each turn carries all that was said before."""
    rng = random.Random(seed)
    talks: list[list[dict[str, str]]] = [[] for _ in range(concurrency * CONVERSATIONS_PER_SLOT)]
    for turn in range(TURNS):
        for talk in talks:
            talk.append({"role": "user", "content": text(rng, 120 if turn == 0 else 30)})
        queue = talks[:]

        async def worker(queue: list[list[dict[str, str]]] = queue) -> None:
            while queue:
                talk, said = queue.pop(0), []
                await ask(http, server.model, talk, sample, max_tokens=TURN_TOKENS, said=said)
                talk.append({"role": "assistant", "content": "".join(said)})

        await asyncio.gather(*(worker() for _ in range(concurrency)))


async def long_prompts(http: httpx.AsyncClient, server: Server, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        messages = [{"role": "user", "content": text(rng, 3900)}]
        await ask(http, server.model, messages, Sample(), max_tokens=TOKENS)
        await asyncio.sleep(2)


def compare(
    servers: list[Server], scenario: str, concurrency: int, rounds: int, requests: int
) -> dict[str, Any]:
    """The first server against each of the others."""
    figures: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for number in range(rounds + 1):
        for server in servers if number % 2 else reversed(servers):
            seed = zlib.crc32(f"{scenario} {concurrency} {number}".encode())
            sample = asyncio.run(load(server, scenario, concurrency, seed, requests))
            if number:  # the first round warms them up
                figures[server.name].append(sample.figures())
    mine = figures[servers[0].name]
    return {
        "scenario": scenario,
        "concurrency": concurrency,
        "figures": {
            name: {k: statistics.median(f[k] for f in of) for k in mine[0]} for name, of in figures.items()
        },
        "ratio to": {
            server.name: {
                k: statistics.median(a[k] / b[k] for a, b in zip(mine, figures[server.name], strict=True))
                for k in mine[0]
            }
            for server in servers[1:]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file with a chat template")
    parser.add_argument("--peer", choices=("llama-server", "llama-cpp-python"), default="llama-server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=REQUESTS_PER_WORKER, help="of each caller in a round")
    parser.add_argument("--concurrency", default="1,4,8,16")
    parser.add_argument("--scenarios", default="fresh,shared,mixed,repeat")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-server", type=Path, help="a built llama-server; default: build it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.model.is_file():
        parser.error(f"no model at {args.model}: name a GGUF file, as in make bench-serving DATA=model.gguf")
    concurrency = [int(part) for part in args.concurrency.split(",")]
    rows = []
    for scenario in args.scenarios.split(","):
        levels = [4] if scenario == "mixed" else [1, 4] if scenario == "repeat" else concurrency
        parallel = max(levels) + (1 if scenario == "mixed" else 0)
        context = LONG_CONTEXT if scenario == "mixed" else CONTEXT
        size = {"context": context, "threads": args.threads}
        servers = [mecroute(args.model, parallel=parallel, **size)]
        if args.peer == "llama-server":
            binary = args.llama_server or binaries()["llama-server"]
            servers.append(llama_server(binary, args.model, parallel=parallel, **size))
        else:
            servers.append(llama_cpp_python(python_server(), args.model, **size))
        if scenario == "repeat":
            servers.append(replace(mecroute(args.model, parallel=parallel, **size), name="plain"))
            servers[0] = servers[0].told("--speculation", "prompt-lookup")
            if args.peer == "llama-server":
                servers[1] = servers[1].told("--spec-type", "ngram-simple")
        with ExitStack() as started:
            for server in servers:
                started.enter_context(running(server))
            for level in levels:
                row = compare(servers, scenario, level, args.rounds, args.requests)
                rows.append(row)
                if not args.json:
                    show(row)
    if args.json:
        print(json.dumps(rows))


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['scenario']}, concurrency {row['concurrency']}")
    figures = row["figures"]
    ours, mine = next(iter(figures.items()))
    for name, value in mine.items():
        line = f"  {name:12} {ours} {value:9.1f}"
        for peer, ratio in row["ratio to"].items():
            line += f"   {peer} {figures[peer][name]:9.1f}   ratio {ratio[name]:.2f}"
        print(line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
