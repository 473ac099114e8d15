"""Asks every request of the workload once of each of three language models, and keeps what they answered.

    python benchmarks/tiers_collect.py DATA OUT --model device=s.gguf --model mec=m.gguf --model cloud=l.gguf
    python benchmarks/tiers_collect.py DATA OUT --server device=URL --server mec=URL --server cloud=URL

The first starts a server for each model, the second asks servers that run already. One request after another,
each of one tier after another, so that whatever else the machine does falls on all alike. Answers are greedy
and kept to the choices by a grammar; log-probabilities are asked for. OUT/answers.jsonl gets a line per
answer; what is there is not asked again, so that it can be stopped at any time and go on (`--seconds` does so
by itself).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from servers import Server, mecroute, running
from tiers_answers import Answer, read_answers
from tiers_workload import SEED, Item, read_workload

TIERS = ("device", "mec", "cloud")
CONTEXT = 1024
#: One for each set's instructions and one to spare, so that they stay in memory.
PARALLEL = 4


def ask(http: httpx.Client, model: str, item: Item, tier: str) -> Answer:
    """One streamed answer.

    Raises:
        SystemExit: the server refused, or what came is none of the choices.
    """
    body = {
        **item.body(), "model": model, "logprobs": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    said, logprobs, usage, first = "", [], {}, None
    begun = time.perf_counter()
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            response.read()
            sys.exit(f"{tier} answered {response.status_code} to {item.id}: {response.text[:500]}")
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                piece = choice["delta"].get("content")
                if piece and first is None:
                    first = time.perf_counter()
                said += piece or ""
                logprobs += _logprobs(choice)
    ended = time.perf_counter()
    if said not in item.choices or first is None:
        sys.exit(f"{tier} answered {said!r} to {item.id}, which is none of the choices")
    return Answer(
        id=item.id, set=item.set, tier=tier, answer=said, right=said == item.answer,
        ttft_ms=round((first - begun) * 1e3, 2), latency_ms=round((ended - begun) * 1e3, 2),
        prompt_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        logprobs=logprobs,
    )  # fmt: skip


def _logprobs(choice: dict[str, Any]) -> list[float]:
    return [round(one["logprob"], 4) for one in (choice.get("logprobs") or {}).get("content") or ()]


def _named(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or name not in TIERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not TIER=VALUE with a tier of {', '.join(TIERS)}")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of clinc150, hellaswag and arc_challenge")
    parser.add_argument("out", type=Path, help="folder for answers.jsonl")
    parser.add_argument("--model", type=_named, action="append", default=[], metavar="TIER=GGUF")
    parser.add_argument("--server", type=_named, action="append", default=[], metavar="TIER=URL")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    args = parser.parse_args()
    named = dict(args.model or args.server)
    if set(named) != set(TIERS) or (args.model and args.server):
        parser.error(f"name {', '.join(TIERS)}, each with --model or each with --server")
    items = read_workload(args.data)
    random.Random(SEED).shuffle(items)  # calibration among the rest, under the same conditions
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "answers.jsonl"
    known = {(one.id, one.tier) for one in read_answers(path)}
    left = [item for item in items if any((item.id, tier) not in known for tier in TIERS)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        clients: dict[str, tuple[httpx.Client, str]] = {}
        for tier, value in named.items():
            url, model = value, "auto"
            if args.model:
                server: Server = mecroute(
                    Path(value), context=CONTEXT, parallel=PARALLEL, threads=args.threads
                )
                server = Server(tier, server.command, server.url, server.model)
                stack.enter_context(running(server))
                url = server.url
            http = stack.enter_context(httpx.Client(base_url=url, timeout=300))
            model = http.get("/v1/models").raise_for_status().json()["data"][0]["id"]
            clients[tier] = http, model
        for item in _first_of_each(items):  # the instructions are in memory before anything is timed
            for tier, (http, model) in clients.items():
                ask(http, model, item, tier)
        begun, done = time.monotonic(), 0
        with path.open("a") as out:
            for item in left:
                if time.monotonic() - begun > args.seconds:
                    break
                for tier, (http, model) in clients.items():
                    if (item.id, tier) not in known:
                        out.write(json.dumps(asdict(ask(http, model, item, tier))) + "\n")
                        out.flush()
                done += 1
    print(f"{done} requests in {time.monotonic() - begun:.0f} s, {len(left) - done} left", flush=True)


def _first_of_each(items: list[Item]) -> list[Item]:
    return list({item.set: item for item in reversed(items)}.values())


if __name__ == "__main__":
    main()
