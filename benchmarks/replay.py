"""Replays a trace of real requests at twice what the machine can do: our MEC server against llama-server.

The trace is the Azure LLM inference trace (CSV) or Mooncake's (JSON lines; its prefix hashes become prompts
that share beginnings). Its arrival pattern and its proportions are kept; tokens are divided by `--shrink`,
and time is stretched until the work offered is `--load` times the capacity. That is measured first: the
larger of what the two servers complete per second when as many callers ask at once as they have sequences,
counted from when they have got going; what is under way at the end counts by its share.

Every request has a deadline: `--slack` times what it takes in a full batch without waiting. It is sent in our
header, which llama-server ignores; on either server the caller hangs up when it has passed. Nobody asks
twice. `max_tokens` is the length that the trace tells.

    goodput        requests answered whole before their deadline, per second
    refusal p95    from sending a request to being refused (429, 503 or 504 at once)

    make bench-trace DATA=model.gguf TRACE=trace.csv
    python benchmarks/replay.py model.gguf trace.csv [--seconds 15] [--rounds 5] [--load 2]
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
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from load import Sample, ask, client, quantile, question, text
from mecroute.simulate.trace import Arrival, read_trace
from peers import binaries
from servers import Server, llama_server, mecroute, running

CONTEXT = 2048
#: Before a server's capacity is counted.
WARM_UP_S = 3.0
#: Seeds from here on are none of a counted prompt's: Random(-1) is Random(1), and a cache would hold it.
CALIBRATION_SEEDS = 1_000_000
#: Tokens of one of Mooncake's prefix blocks.
BLOCK = 512


@dataclass
class Outcomes:
    """What became of the requests of one replay. Times in seconds."""

    wall: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    refused_after: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "goodput/s": self.counts["met"] / self.wall,
            "refusal p95 ms": quantile(self.refused_after, 0.95) * 1e3,
        }


def shrunk(trace: Iterable[Arrival], shrink: float) -> list[Arrival]:
    """The same with fewer tokens, as many as fit the context."""
    return [
        replace(
            one,
            prompt_tokens=max(8, min(round(one.prompt_tokens / shrink), CONTEXT - 300)),
            output_tokens=max(2, min(round(one.output_tokens / shrink), 200)),
        )
        for one in trace
    ]


def tokens_per_word(server: Server) -> float:
    """How many tokens of the model's a word of our prompts has."""
    body = {"model": server.model, "messages": [{"role": "user", "content": text(random.Random(0), 100)}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "max_tokens": 1}, timeout=120)
    answer.raise_for_status()
    return float(answer.json()["usage"]["prompt_tokens"]) / 100


def messages(one: Arrival, args: argparse.Namespace, seed: int) -> list[dict[str, str]]:
    """A prompt of about that length; the beginnings of Mooncake's are shared as its hashes say."""
    words = max(1, int(one.prompt_tokens / args.tokens_per_word) - 15)
    per_block = max(1, int(BLOCK / args.shrink / args.tokens_per_word))
    shared = [text(random.Random(block), per_block) for block in one.blocks[: words // per_block]]
    own = random.Random(seed)
    content = " ".join([*shared, question(own, max(1, words - per_block * len(shared)))])
    return [{"role": "user", "content": content}]


async def closed_loop(
    server: Server, trace: list[Arrival], args: argparse.Namespace, seconds: float
) -> float:
    """Requests completed per second with as many callers as sequences, after `WARM_UP_S`."""
    counts_from = time.perf_counter() + WARM_UP_S
    ends_at = counts_from + seconds
    spans: list[tuple[float, float]] = []
    upcoming = iter(enumerate(trace))
    async with client(server.url) as http:

        async def caller() -> None:
            while (begun := time.perf_counter()) < ends_at:
                number, one = next(upcoming)
                prompt = messages(one, args, CALIBRATION_SEEDS + number)
                status = await ask(http, server.model, prompt, Sample(), max_tokens=one.output_tokens)
                if status != 200:
                    sys.exit(f"{server.name} answered {status} while its capacity was measured")
                spans.append((begun, time.perf_counter()))

        await asyncio.gather(*(caller() for _ in range(args.parallel)))
    # A request counts by the share of its time that lies within those seconds.
    inside = (max(0.0, min(end, ends_at) - max(begun, counts_from)) / (end - begun) for begun, end in spans)
    return sum(inside) / seconds


async def replay(server: Server, trace: list[Arrival], args: argparse.Namespace, deadline: Any) -> Outcomes:
    """Send each request at its time; `deadline` gives its seconds."""
    outcomes = Outcomes()
    # Made beforehand: requests that arrive together are not to wait for each other's texts.
    prompts = [messages(one, args, number) for number, one in enumerate(trace)]
    async with client(server.url) as http:

        async def one_request(one: Arrival, prompt: list[dict[str, str]]) -> None:
            await asyncio.sleep(max(0.0, begun + one.at_s - time.perf_counter()))
            left = deadline(one)
            headers = {"x-mecroute-deadline-ms": f"{left * 1000:.0f}"}
            sent = time.perf_counter()
            try:
                async with asyncio.timeout(left):
                    status = await ask(
                        http, server.model, prompt, Sample(), max_tokens=one.output_tokens, headers=headers
                    )
            except TimeoutError:
                outcomes.counts["late"] += 1
                return
            except httpx.HTTPError:
                outcomes.counts["error"] += 1
                return
            took = time.perf_counter() - sent
            if status == 200:
                outcomes.counts["met"] += 1
            elif status in (429, 503, 504):
                outcomes.counts["refused"] += 1
                outcomes.refused_after.append(took)
            else:
                outcomes.counts[f"status {status}"] += 1

        begun = time.perf_counter() + 0.1
        await asyncio.gather(*map(one_request, trace, prompts))
        outcomes.wall = max(time.perf_counter() - begun, trace[-1].at_s)
    return outcomes


async def solo_rates(server: Server, args: argparse.Namespace) -> tuple[float, float]:
    """Prompt tokens per second, and tokens per second of each answer in a full batch."""
    prompt = Arrival(0, 600, 2)
    sample = Sample()
    async with client(server.url) as http:
        status = await ask(http, server.model, messages(prompt, args, 10**6), sample, max_tokens=2)
        if status != 200 or not sample.ttft:
            sys.exit(
                f"{server.name} answered {status} and {len(sample.ttft)} pieces to a prompt of 600 tokens"
            )
        prefill = 600 / sample.ttft[0]
        batch = Sample()
        short = Arrival(0, 16, 48)
        await asyncio.gather(
            *(
                ask(http, server.model, messages(short, args, 10**6 + at), batch, max_tokens=48)
                for at in range(args.parallel)
            )
        )
    return prefill, 1 / statistics.mean(batch.gaps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file with a chat template")
    parser.add_argument("trace", type=Path, help="AzureLLMInferenceTrace_*.csv or mooncake_*.jsonl")
    parser.add_argument("--seconds", type=float, default=15, help="of each replay")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", type=float, default=2.0, help="times the capacity")
    parser.add_argument("--shrink", type=float, default=12.0, help="divides the trace's tokens")
    parser.add_argument("--slack", type=float, default=3.0)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", type=float, default=10, help="seconds per server")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--llama-server", type=Path, help="a built llama-server; default: build it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for path in (args.model, args.trace):
        if not path.is_file():
            parser.error(f"no file at {path}")
    trace = shrunk(read_trace(args.trace), args.shrink)
    binary = args.llama_server or binaries()["llama-server"]
    common = {"context": CONTEXT, "parallel": args.parallel, "threads": args.threads}
    ours = mecroute(args.model, **common)
    theirs = llama_server(binary, args.model, **common)
    rng = random.Random(args.seed)
    rounds: dict[str, list[Outcomes]] = {ours.name: [], theirs.name: []}
    with running(ours), running(theirs):
        args.tokens_per_word = tokens_per_word(ours)
        start = rng.randrange(len(trace) // 2)
        capacities = {
            server.name: asyncio.run(closed_loop(server, trace[start:], args, args.calibrate))
            for server in (theirs, ours)
        }
        capacity = max(capacities.values())
        prefill, decode = asyncio.run(solo_rates(theirs, args))

        def deadline(one: Arrival) -> float:
            return float(args.slack * (one.prompt_tokens / prefill + one.output_tokens / decode))

        count = max(10, round(args.load * capacity * args.seconds))
        if not args.json:
            told = ", ".join(f"{name} {rate:.2f}/s" for name, rate in capacities.items())
            print(f"capacity: {told}; {count} requests in {args.seconds:g} s = {args.load:g} x capacity")
            print(f"deadlines: {args.slack:g} x (prompt / {prefill:.0f} + output / {decode:.1f}) s")
        for number in range(args.rounds):
            first = rng.randrange(max(1, len(trace) - count))
            window = trace[first : first + count]
            span = max(window[-1].at_s - window[0].at_s, 1e-6)
            stretched = [
                replace(one, at_s=(one.at_s - window[0].at_s) * args.seconds / span) for one in window
            ]
            for server in (ours, theirs) if number % 2 else (theirs, ours):
                outcomes = asyncio.run(replay(server, stretched, args, deadline))
                rounds[server.name].append(outcomes)
                if not args.json:
                    print(f"round {number + 1} {server.name:13} {dict(outcomes.counts)}", flush=True)
    rows = {name: [outcomes.figures() for outcomes in done] for name, done in rounds.items()}
    median = {
        name: {key: statistics.median(row[key] for row in found) for key in found[0]}
        for name, found in rows.items()
    }
    ratio = statistics.median(
        mine["goodput/s"] / max(other["goodput/s"], 1e-9)
        for mine, other in zip(rows[ours.name], rows[theirs.name], strict=True)
    )
    if args.json:
        print(json.dumps({"capacity": capacities, "median": median, "goodput_ratio": ratio}))
        return
    print(f"goodput        mecroute {median[ours.name]['goodput/s']:.2f}/s   "
          f"llama-server {median[theirs.name]['goodput/s']:.2f}/s   ratio {ratio:.2f}")  # fmt: skip
    refused_after = [took for outcomes in rounds[ours.name] for took in outcomes.refused_after]
    print(f"refusal p95    mecroute {quantile(refused_after, 0.95) * 1e3:.1f} ms of {len(refused_after)}")


if __name__ == "__main__":
    main()
