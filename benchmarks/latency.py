"""How well the client predicts latency, on a replay of a trace against real servers on this machine.

Two MEC nodes serve the model, one thread each; an `AsyncClient` routes between them and learns as it goes.
The trace's arrival pattern and proportions are kept; tokens are divided by `--shrink`, and time is stretched
until `--load` times the measured capacity is offered. The first `--warm-up` requests teach; the others count.
`--lull` cuts longer pauses between two arrivals, in which nodes that had done all their work would only wait.

    p50 error     median over the requests of |observed - predicted p50| / observed
    bias          median observed / median predicted p50
    p95 coverage  share of the requests that were no slower than their predicted p95

    make bench-latency DATA=model.gguf TRACE=trace.csv
    python benchmarks/latency.py model.gguf trace.csv [--requests 150] [--load 0.5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from load import quantile
from mecroute import AsyncClient, Config
from mecroute.config import DeviceConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.errors import MecrouteError
from mecroute.simulate.trace import Arrival, fit_trace, read_trace
from replay import CONTEXT, messages, shrunk, tokens_per_word
from servers import mecroute, running

#: Seeds from here on are none of a counted prompt's: Random(-1) is Random(1), and a cache would hold it.
_OTHER_PROMPTS = 10**6


@dataclass
class Prediction:
    """What was predicted of one request, and what came of it. Times in ms."""

    ttft: tuple[float, float]
    whole: tuple[float, float]
    observed_ttft: float | None
    observed_whole: float


async def ask(client: AsyncClient, one: Arrival, args: argparse.Namespace, seed: int) -> Prediction | None:
    """One streamed request; None where it failed."""
    try:
        stream = await client.chat.completions.create(
            model="auto",
            messages=messages(one, args, seed),
            max_tokens=one.output_tokens,
            temperature=0,
            stream=True,
        )
        async for _ in stream:
            pass
    except MecrouteError:
        return None
    provenance = stream.mecroute
    assert provenance is not None
    outcome = provenance.outcome
    primary = next(c for c in provenance.decision.candidates if c.target.id == outcome.target_id)
    return Prediction(
        (primary.ttft_ms, primary.ttft_ms_p95),
        (primary.latency_ms_p50, primary.latency_ms_p95),
        outcome.ttft_ms,
        outcome.latency_ms,
    )


def without_lulls(arrivals: list[Arrival], longest_s: float) -> list[Arrival]:
    """The same with no pause longer than that."""
    at_s = before_s = 0.0
    cut = []
    for one in arrivals:
        at_s += min(one.at_s - before_s, longest_s)
        before_s = one.at_s
        cut.append(replace(one, at_s=at_s))
    return cut


async def capacity(client: AsyncClient, trace: list[Arrival], args: argparse.Namespace) -> float:
    """Requests per second with as many callers as sequences."""
    ends_at = time.perf_counter() + args.calibrate
    done, upcoming = 0, iter(enumerate(trace))

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < ends_at:
            number, one = next(upcoming)
            await ask(client, one, args, _OTHER_PROMPTS + number)
            done += time.perf_counter() < ends_at

    await asyncio.gather(*(caller() for _ in range(2 * args.parallel)))
    return done / args.calibrate


async def replay(args: argparse.Namespace, urls: list[str], trace: list[Arrival], folder: Path) -> Any:
    """The predictions of every counted request, and how many failed."""
    config = Config(
        registry=RegistryConfig(path=folder / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(enabled=False),
        nodes=tuple(NodeConfig(name=f"node-{i}", url=url) for i, url in enumerate(urls)),
    )
    async with AsyncClient(config) as client:
        rate = args.load * await capacity(client, trace, args)
        arrivals = fit_trace(trace, requests=args.warm_up + args.requests, rate_per_s=rate)
        arrivals = without_lulls(arrivals, args.lull)
        begun = time.perf_counter()

        async def later(number: int, one: Arrival) -> Prediction | None:
            await asyncio.sleep(max(0.0, begun + one.at_s - time.perf_counter()))
            return await ask(client, one, args, number)

        found = await asyncio.gather(*(later(number, one) for number, one in enumerate(arrivals)))
    counted = found[args.warm_up :]
    return rate, [one for one in counted if one is not None], sum(one is None for one in counted)


def figures(pairs: list[tuple[float, tuple[float, float]]]) -> dict[str, float]:
    """Of observed times and their predicted p50 and p95."""
    return {
        "p50 error": statistics.median(abs(seen - p50) / seen for seen, (p50, _) in pairs),
        "bias": statistics.median(seen for seen, _ in pairs)
        / statistics.median(p50 for _, (p50, _) in pairs),
        "p95 coverage": sum(seen <= p95 for seen, (_, p95) in pairs) / len(pairs),
        "observed p50 ms": quantile([seen for seen, _ in pairs], 0.5),
        "observed p95 ms": quantile([seen for seen, _ in pairs], 0.95),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file with a chat template")
    parser.add_argument("trace", type=Path, help="AzureLLMInferenceTrace_*.csv or mooncake_*.jsonl")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--warm-up", type=int, default=50)
    parser.add_argument("--load", type=float, default=0.5, help="times the capacity")
    parser.add_argument("--shrink", type=float, default=8.0, help="divides the trace's tokens")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--calibrate", type=float, default=15, help="seconds")
    parser.add_argument("--lull", type=float, default=math.inf, help="seconds; the longest pause")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for path in (args.model, args.trace):
        if not path.is_file():
            parser.error(f"no file at {path}")
    try:
        trace = shrunk(read_trace(args.trace, limit=5000), args.shrink)
    except MecrouteError as error:
        parser.error(error.message)
    size = {"context": CONTEXT, "parallel": args.parallel, "threads": 1}
    nodes = [replace(mecroute(args.model, **size), name=f"mecroute-{i}") for i in range(2)]
    with ExitStack() as started, tempfile.TemporaryDirectory() as folder:
        for node in nodes:
            started.enter_context(running(node))
        args.tokens_per_word = tokens_per_word(nodes[0])
        urls = [node.url for node in nodes]
        rate, found, failed = asyncio.run(replay(args, urls, trace, Path(folder)))
    result = {
        "rate_per_s": rate,
        "counted": len(found),
        "failed": failed,
        "whole": figures([(one.observed_whole, one.whole) for one in found]),
        "ttft": figures([(one.observed_ttft, one.ttft) for one in found if one.observed_ttft is not None]),
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{len(found)} requests at {rate:.2f}/s ({args.load:g} x capacity), {failed} failed")
    for name in ("ttft", "whole"):
        row = result[name]
        assert isinstance(row, dict)
        print(
            f"{name:6} p50 error {row['p50 error']:.1%}   bias {row['bias']:.2f}   "
            f"p95 coverage {row['p95 coverage']:.1%}   "
            f"observed p50 {row['observed p50 ms']:.0f} ms, p95 {row['observed p95 ms']:.0f} ms"
        )


if __name__ == "__main__":
    main()
