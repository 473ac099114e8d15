"""Our MEC server against llama-server: same GGUF, threads, context and requests, in one run, alternating.

Scenarios:
    fresh    every prompt is new: what batching does
    shared   every prompt begins with the same system message of about 512 tokens: what prefix reuse does
    arriving the same, with a system message that is new in every round: requests come with it together
    turns    three times as many conversations as slots, each of four turns, one turn of each after the other
    mixed    short chats while a prompt of about 4,000 tokens arrives every few seconds
    repeat   the answer repeats a passage of the prompt: what speculation from the prompt does. Both servers
             speculate, ours with prompt-lookup, theirs with ngram-simple; `plain` is ours without

`prompt tok` counts the prompt tokens that a round's answers report as computed rather than cached.

For each round both servers get the same prompts one after the other, in alternating order; figures are
medians over the rounds, and each ratio is the median of the rounds' own ratios (ours / theirs).

    make bench-serving DATA=model.gguf
    python benchmarks/serving.py model.gguf [--rounds 5] [--concurrency 1,4,8,16] [--scenarios fresh,shared]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from peers import build

TOKENS = 48
REQUESTS_PER_WORKER = 3
CONTEXT = 2048
LONG_CONTEXT = 8192
TURNS = 4
TURN_TOKENS = 24
CONVERSATIONS_PER_SLOT = 3
TOPICS = ("harbour", "mountain", "orchard", "railway", "glacier", "market", "lantern", "violin", "desert")
STORY = (
    "the old quiet river carried boats past a mill where people traded grain cloth and stories while "
    "children counted birds above the bridge and the evening light turned every window gold"
)


@dataclass
class Sample:
    """One round of one server. Times in seconds."""

    tokens: int = 0
    computed: int = 0
    wall: float = 0.0
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "tok/s": self.tokens / self.wall,
            "ttft p50 ms": quantile(self.ttft, 0.50) * 1e3,
            "ttft p95 ms": quantile(self.ttft, 0.95) * 1e3,
            "gap p95 ms": quantile(self.gaps, 0.95) * 1e3,
            "prompt tok": float(max(1, self.computed)),
        }


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def text(rng: random.Random, words: int) -> str:
    vocabulary = STORY.split()
    return " ".join(rng.choice(vocabulary) for _ in range(words))


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
        question = f"Tell a long story about a {rng.choice(TOPICS)}. It begins so: {text(rng, 20)}"
        messages = [{"role": "user", "content": question}]
        if scenario in ("shared", "arriving"):
            messages.insert(0, {"role": "system", "content": system})
        made.append(messages)
    return made


@contextmanager
def server(command: list[str], url: str, log: Path) -> Iterator[str]:
    """Run a server until the block ends; yields its URL once it is healthy."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        for _ in range(1200):
            try:
                if httpx.get(f"{url}/v1/models", timeout=2).status_code == 200 and healthy(url):
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(url: str) -> bool:
    """Ready in the way of either server."""
    return any(httpx.get(f"{url}{path}", timeout=2).status_code == 200 for path in ("/readyz", "/health"))


async def ask(
    http: httpx.AsyncClient,
    model: str,
    messages: list[dict[str, str]],
    sample: Sample,
    max_tokens: int = TOKENS,
) -> str:
    """One request; its answer."""
    body = {
        "model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    said = ""
    begun = last = time.perf_counter()
    first = True
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                usage = chunk["usage"]
                sample.tokens += usage["completion_tokens"]
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                sample.computed += usage["prompt_tokens"] - cached
            if not chunk["choices"] or not chunk["choices"][0]["delta"].get("content"):
                continue
            said += chunk["choices"][0]["delta"]["content"]
            now = time.perf_counter()
            if first:
                sample.ttft.append(now - begun)
                first = False
            else:
                sample.gaps.append(now - last)
            last = now
    return said


async def converse(http: httpx.AsyncClient, model: str, concurrency: int, seed: int, sample: Sample) -> None:
    """Conversations that go on in turn; each turn carries all that was said before."""
    rng = random.Random(seed)
    talks: list[list[dict[str, str]]] = [[] for _ in range(concurrency * CONVERSATIONS_PER_SLOT)]
    for turn in range(TURNS):
        for talk in talks:
            talk.append({"role": "user", "content": text(rng, 120 if turn == 0 else 30)})
        queue = talks[:]

        async def worker(queue: list[list[dict[str, str]]] = queue) -> None:
            while queue:
                talk = queue.pop(0)
                said = await ask(http, model, talk, sample, TURN_TOKENS)
                talk.append({"role": "assistant", "content": said})

        await asyncio.gather(*(worker() for _ in range(concurrency)))


async def load(url: str, model: str, scenario: str, concurrency: int, seed: int, requests: int) -> Sample:
    """One round on one server."""
    queue = prompts(scenario, concurrency * requests, seed)
    sample = Sample()
    # A new connection each time: llama-server closes a kept one after a stream.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:

        async def worker() -> None:
            while queue:
                await ask(http, model, queue.pop(), sample)

        begun = time.perf_counter()
        long = asyncio.create_task(long_prompts(http, model, seed)) if scenario == "mixed" else None
        if scenario == "turns":
            await converse(http, model, concurrency, seed, sample)
        else:
            await asyncio.gather(*(worker() for _ in range(concurrency)))
        sample.wall = time.perf_counter() - begun
        if long is not None:
            long.cancel()
            await asyncio.gather(long, return_exceptions=True)
    return sample


async def long_prompts(http: httpx.AsyncClient, model: str, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        await ask(http, model, [{"role": "user", "content": text(rng, 3900)}], Sample())
        await asyncio.sleep(2)


def compare(
    urls: dict[str, str], models: dict[str, str], scenario: str, concurrency: int, rounds: int, requests: int
) -> dict:
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    for number in range(rounds + 1):
        order = list(urls) if number % 2 else list(reversed(urls))
        for name in order:
            seed = zlib.crc32(f"{scenario} {concurrency} {number}".encode())
            sample = asyncio.run(load(urls[name], models[name], scenario, concurrency, seed, requests))
            if number:  # the first round warms both up
                figures[name].append(sample.figures())
    ours, theirs = figures["mecroute"], figures["llama-server"]
    row: dict[str, Any] = {"scenario": scenario, "concurrency": concurrency}
    for name, rounds_of in figures.items():
        row[name] = {k: statistics.median(f[k] for f in rounds_of) for k in ours[0]}
    row["ratio"] = ratios(ours, theirs)
    if "plain" in figures:
        row["ratio to plain"] = ratios(ours, figures["plain"])
    return row


def ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    return {k: statistics.median(a[k] / b[k] for a, b in zip(ours, theirs, strict=True)) for k in ours[0]}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file with a chat template")
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
    binary = args.llama_server or build()["llama-server"]
    concurrency = [int(part) for part in args.concurrency.split(",")]
    rows = []
    for scenario in args.scenarios.split(","):
        levels = [4] if scenario == "mixed" else [1, 4] if scenario == "repeat" else concurrency
        parallel = max(levels) + (1 if scenario == "mixed" else 0)
        context = LONG_CONTEXT if scenario == "mixed" else CONTEXT
        ports = free_port(), free_port()
        urls = {"mecroute": f"http://127.0.0.1:{ports[0]}", "llama-server": f"http://127.0.0.1:{ports[1]}"}
        commands: dict[str, list[str]] = {
            "mecroute": [
                sys.executable, "-m", "mecroute_cli", "serve", "--model", str(args.model),
                "--port", str(ports[0]), "--threads", str(args.threads), "--ctx", str(context),
                "--parallel", str(parallel),
            ],
            "llama-server": [
                str(binary), "-m", str(args.model), "--port", str(ports[1]), "--host", "127.0.0.1",
                "-t", str(args.threads), "-tb", str(args.threads), "-c", str(context * parallel),
                "-np", str(parallel), "--no-webui",
            ],
        }  # fmt: skip
        if scenario == "repeat":
            port = free_port()
            urls["plain"] = f"http://127.0.0.1:{port}"
            plain = [str(port) if part == str(ports[0]) else part for part in commands["mecroute"]]
            commands["plain"] = plain
            commands["mecroute"] = [*commands["mecroute"], "--speculation", "prompt-lookup"]
            commands["llama-server"] += ["--spec-type", "ngram-simple"]
        ours = args.model.name.removesuffix(".gguf")
        models = {name: "any" if name == "llama-server" else ours for name in urls}
        logs = {name: Path(f".bench-{name}.log").absolute() for name in urls}
        with ExitStack() as servers:
            for name, url in urls.items():
                servers.enter_context(server(commands[name], url, logs[name]))
            for level in levels:
                row = compare(urls, models, scenario, level, args.rounds, args.requests)
                rows.append(row)
                if not args.json:
                    show(row)
        for log in logs.values():
            log.unlink()
    if args.json:
        print(json.dumps(rows))


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['scenario']}, concurrency {row['concurrency']}")
    for name in row["ratio"]:
        ours, theirs = row["mecroute"][name], row["llama-server"][name]
        line = (
            f"  {name:12} mecroute {ours:9.1f}   llama-server {theirs:9.1f}   ratio {row['ratio'][name]:.2f}"
        )
        if "plain" in row:
            line += f"   plain {row['plain'][name]:9.1f}   ratio {row['ratio to plain'][name]:.2f}"
        print(line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
