"""Sentence embeddings of an int8 MiniLM: our server against a raw loop over `session.run`, and LitServe.

The raw loop computes the same texts, tokenized, sorted by length and padded beforehand, in batches of every
size that is tried, its threads spinning or not; the best counts, and so does the best of LitServe's batch
sizes with one worker (its default), and with two that have half of the threads each. The servers get one text
per request from 32 callers at once, with tokenizing, HTTP and base64 around each. All run in turn, with the
same number of threads; the callers share the machine with the servers. Each ratio is the median over the
rounds.

    make bench-embeddings DATA=folder-of-all-MiniLM-L6-v2
    python benchmarks/embeddings.py FOLDER [--words 100] [--rounds 5] [--seconds 3]

FOLDER holds the model as safetensors, as `benchmarks/minilm.py` reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import minilm
import peers
from load import RawClient, text
from servers import Server, free_port, mecroute, running

CONCURRENCY = 32
BATCHES = (1, 4, 8, 16, 32, 64)
#: Batch sizes and workers; each worker has its share of the threads.
LITSERVE_TRIED = {"litserve": ((1, 1), (8, 1), (32, 1)), "litserve, 2 workers": ((1, 2), (8, 2))}


class RawLoop:
    """`session.run` on batches that were prepared beforehand."""

    def __init__(self, folder: Path, texts: list[str], threads: int) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self._sessions = {}
        for spins in (False, True):  # threads that wait for each other may sleep or spin
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
            self._sessions[spins] = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.enable_padding()
        texts = sorted(texts, key=len)
        self._feeds = {
            size: [self._feed(tokenizer, texts[at : at + size]) for at in range(0, len(texts), size)]
            for size in BATCHES
        }

    @staticmethod
    def _feed(tokenizer: Any, texts: list[str]) -> dict[str, np.ndarray]:
        encoded = tokenizer.encode_batch(texts)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        ids = np.array([one.ids for one in encoded], np.int64)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}

    def per_second(self, size: int, spins: bool, seconds: float) -> float:
        """Texts computed per second in batches of `size`."""
        session = self._sessions[spins]
        done, begun = 0, time.perf_counter()
        while True:
            for feed in self._feeds[size]:
                session.run(None, feed)
                done += len(feed["input_ids"])
                if (took := time.perf_counter() - begun) > seconds:
                    return done / took


async def serve_round(
    url: str, path: str, model: str, texts: list[str], seconds: float
) -> tuple[float, float]:
    """Texts answered per second by 32 callers, and the p95 of an answer's time in ms."""
    bodies = [
        json.dumps({"model": model, "input": one, "encoding_format": "base64"}).encode() for one in texts
    ]
    took: list[float] = []
    begun = time.perf_counter()

    async def caller(number: int) -> None:
        http = RawClient(url)
        at = number
        while time.perf_counter() - begun < seconds:
            sent = time.perf_counter()
            status, answer = await http.post(path, bodies[at % len(bodies)])
            if status != 200:
                sys.exit(f"{url} answered {status}: {answer[:500]!r}")
            took.append(time.perf_counter() - sent)
            at += CONCURRENCY
        await http.close()

    await asyncio.gather(*(caller(number) for number in range(CONCURRENCY)))
    return len(took) / (time.perf_counter() - begun), statistics.quantiles(took, n=20)[18] * 1e3


async def first_vector(url: str, path: str, model: str, one: str) -> np.ndarray:
    http = RawClient(url)
    body = json.dumps({"model": model, "input": one, "encoding_format": "base64"}).encode()
    _, answer = await http.post(path, body)
    await http.close()
    return np.frombuffer(base64.b64decode(json.loads(answer)["data"][0]["embedding"]), np.float32)


def litserve(python: Path, folder: Path, threads: int, batch: int, workers: int) -> Server:
    """LitServe with that model; each worker is a process with its share of the threads."""
    port = free_port()
    app = Path(__file__).with_name("litserve_app.py")
    command = tuple(map(str, (python, app, folder, port, max(1, threads // workers), batch, workers)))
    return Server("litserve", command, f"http://127.0.0.1:{port}", folder.name, "/health")


def best_of(
    tried: tuple[str, tuple[tuple[int, int], ...]],
    python: Path,
    folder: Path,
    texts: list[str],
    args: argparse.Namespace,
) -> Server:
    """The fastest of some batch sizes and numbers of workers."""
    name, hows = tried
    rates: dict[float, Server] = {}
    for batch, workers in hows:
        server = replace(litserve(python, folder, args.threads, batch, workers), name=name)
        with running(server):
            asyncio.run(serve_round(server.url, "/predict", server.model, texts, args.seconds / 4))
            rate, _ = asyncio.run(serve_round(server.url, "/predict", server.model, texts, args.seconds / 2))
        rates[rate] = replace(litserve(python, folder, args.threads, batch, workers), name=name)
    return rates[max(rates)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="all-MiniLM-L6-v2 as safetensors")
    parser.add_argument("--words", type=int, default=100, help="of a text, on average")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--litserve-python", type=Path, help="an interpreter that has LitServe; default: make one"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.folder / "model.safetensors").is_file():
        parser.error(f"no model.safetensors in {args.folder}")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    folder = minilm.write(args.folder, peers.FOLDER)["int8"]
    python = args.litserve_python or peers.litserve()
    rng = random.Random(3)
    texts = [text(rng, rng.randint(args.words // 2, args.words * 3 // 2)) for _ in range(256)]
    theirs = [best_of(tried, python, folder, texts, args) for tried in LITSERVE_TRIED.items()]
    ours = mecroute(folder, context=64, parallel=1, threads=args.threads)
    paths = {ours.name: "/v1/embeddings", **{server.name: "/predict" for server in theirs}}
    loop = RawLoop(folder, texts, args.threads)
    best = max(product(BATCHES, (False, True)), key=lambda how: loop.per_second(*how, args.seconds / 4))
    rounds: list[dict[str, float]] = []
    with ExitStack() as started:
        servers = [ours, *theirs]
        for server in servers:
            started.enter_context(running(server))
        vectors = [
            asyncio.run(first_vector(one.url, paths[one.name], one.model, texts[0])) for one in servers
        ]
        if any(float(vectors[0] @ other) < 0.99 for other in vectors[1:]):
            sys.exit("the servers do not compute the same vectors")
        for number in range(args.rounds + 1):
            found: dict[str, float] = {"raw": loop.per_second(*best, args.seconds)}
            for server in servers if number % 2 else reversed(servers):
                rate, p95 = asyncio.run(
                    serve_round(server.url, paths[server.name], server.model, texts, args.seconds)
                )
                found |= {server.name: rate, f"{server.name} p95 ms": p95}
            if number:  # the first round warms up
                rounds.append(found)
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    ratios = {
        name: statistics.median(one["mecroute"] / one[name] for one in rounds)
        for name in ("raw", *LITSERVE_TRIED)
    }
    if args.json:
        print(json.dumps({"best": best, "median": median, "ratio": ratios}))
        return
    print(f"texts of {args.words} words on average, {CONCURRENCY} callers, {args.threads} threads")
    waits = "spinning" if best[1] else "sleeping"
    print(f"raw session.run, batches of {best[0]}, {waits} threads: {median['raw']:.1f}/s")
    for server in servers:
        told = "" if server is ours else f", batches of up to {server.command[-2]}"
        p95 = median[f"{server.name} p95 ms"]
        print(f"{server.name:22} {median[server.name]:.1f}/s   p95 {p95:.0f} ms{told}")
    print("ratio over " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))


if __name__ == "__main__":
    main()
