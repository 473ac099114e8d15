"""What a whole call of our client costs beyond the bare HTTP request, against its peers (LiteLLM, openai).

A trivial server answers at once, in a process of its own. Every client is a process of its own too, keeps
its connection, and takes turns with the others: batches of calls one after the other, many rounds, in an
order that rotates. Overhead = a client's percentile minus that of raw httpx in the same run. Before that, the
decision alone is timed among 3, 100 and 1,000 targets.

    make bench-overhead
    python benchmarks/overhead.py [--rounds 40] [--calls 25] [--json]

LiteLLM is installed into `.bench/overhead` (a virtual environment) the first time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / ".bench" / "overhead"
PEERS = ("litellm", "openai")
MESSAGES = [
    {"role": "user", "content": "Summarise in one sentence why the harbour bridge was closed on Friday."}
]
WARM_UP = 30
ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "High winds. " * 8}}
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 24, "total_tokens": 44},
}  # fmt: skip
REPORT = {
    "node": "n1", "hardware": "test",
    "models": [
        {"ref": "m", "state": "ready", "context_length": 4096, "parallel": 8, "accuracy": 0.8,
         "prefill_tokens_per_s": 5000, "decode_tokens_per_s": 500}
    ],
}  # fmt: skip
Ask = Callable[[], Awaitable[Any]]


class Server(asyncio.Protocol):
    """HTTP/1.1, as little of it as will do: every POST gets the same answer, every GET a node's report."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            body = json.dumps(REPORT if head.startswith(b"get") else ANSWER).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
                + body
            )


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


async def raw_httpx(url: str, stack: contextlib.AsyncExitStack) -> Ask:
    import httpx

    client = await stack.enter_async_context(httpx.AsyncClient())

    async def ask() -> Any:
        response = await client.post(f"{url}/v1/chat/completions", json={"model": "m", "messages": MESSAGES})
        return response.json()["choices"][0]["message"]["content"]

    return ask


async def mecroute(url: str, stack: contextlib.AsyncExitStack) -> Ask:
    from mecroute import AsyncClient, Config
    from mecroute.config import CloudConfig, DeviceConfig, NodeConfig, RegistryConfig, StateConfig

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    config = Config(
        registry=RegistryConfig(path=folder / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=folder / "state.sqlite3"),
        nodes=(NodeConfig(name="n1", url=url),),
        cloud=(CloudConfig(name="c1", base_url=f"{url}/v1", model="m", input_usd_per_mtok=1),),
    )
    client = await stack.enter_async_context(AsyncClient(config))

    async def ask() -> Any:
        reply = await client.chat.completions.create(model="auto", messages=MESSAGES)
        return reply.choices[0].message.content

    return ask


async def openai(url: str, stack: contextlib.AsyncExitStack) -> Ask:
    from openai import AsyncOpenAI

    client = await stack.enter_async_context(AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))

    async def ask() -> Any:
        reply = await client.chat.completions.create(model="m", messages=MESSAGES)
        return reply.choices[0].message.content

    return ask


async def litellm(url: str, stack: contextlib.AsyncExitStack) -> Ask:
    del stack
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a price list at import
    from litellm import Router

    deployments = [
        {
            "model_name": "m",
            "litellm_params": {"model": "openai/m", "api_base": f"{url}/v1", "api_key": key},
        }
        for key in ("one", "two")
    ]
    router = Router(model_list=deployments)

    async def ask() -> Any:
        reply = await router.acompletion(model="m", messages=MESSAGES)
        return reply.choices[0].message.content

    return ask


CLIENTS = {"raw httpx": raw_httpx, "mecroute": mecroute, "openai": openai, "litellm Router": litellm}


async def work(name: str, url: str) -> None:
    """One client: reads how many calls to make, line by line, and prints how long each took (s)."""
    async with contextlib.AsyncExitStack() as stack:
        ask = await CLIENTS[name](url, stack)
        for line in iter(sys.stdin.readline, ""):
            took = []
            for _ in range(int(line)):
                begun = time.perf_counter()
                text = await ask()
                took.append(time.perf_counter() - begun)
                assert text.startswith("High winds."), text
            print(json.dumps(took), flush=True)


class Worker:
    """A client in a process of its own."""

    def __init__(self, name: str, python: Path | str, url: str) -> None:
        self.name = name
        self.times: list[float] = []
        self._process = subprocess.Popen(
            [str(python), __file__, "--worker", name, "--url", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def calls(self, count: int) -> list[float]:
        """Make so many calls, one after the other."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self._process.wait()}")
        return [float(value) for value in json.loads(line)]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def peers_python() -> Path:
    """The interpreter that has the peers; they are installed the first time."""
    python = FOLDER / "bin" / "python"
    if not (FOLDER / ".ready").exists():
        venv.create(FOLDER, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
        (FOLDER / ".ready").touch()
    return python


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def time_calls(rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """p50 and p95 of a whole call in ms, per client."""
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    python = peers_python()
    homes = {"openai": python, "litellm Router": python}
    workers = [Worker(name, homes.get(name, sys.executable), url) for name in CLIENTS]
    try:
        for worker in workers:
            worker.calls(WARM_UP)
        for number in range(rounds):
            turn = number % len(workers)
            for worker in (*workers[turn:], *workers[:turn]):
                worker.times += worker.calls(calls)
    finally:
        for worker in workers:
            worker.close()
        server.terminate()
        server.wait()
    return {
        worker.name: {
            "p50": statistics.median(worker.times) * 1e3,
            "p95": percentile(worker.times, 0.95) * 1e3,
        }
        for worker in workers
    }


def time_decisions() -> dict[int, dict[str, float]]:
    """p50 and p95 in µs of reading a request and deciding where it goes, by the number of targets."""
    from mecroute.agents.context import ContextAgent
    from mecroute.agents.router import RouterAgent
    from mecroute.config import RouterConfig
    from mecroute.context import DeviceState, NetworkState
    from mecroute.predict.difficulty import SHIPPED, difficulty_source
    from mecroute.predict.residuals import Residuals
    from mecroute.request import ingest
    from mecroute.routing.dispatch import Dispatch
    from mecroute.target import Target, TargetState

    dice = random.Random(7)
    agent, residuals, dispatch = RouterAgent(RouterConfig()), Residuals(), Dispatch()
    reader = ContextAgent(
        usual_output_tokens=lambda _: None,
        read_device=lambda: DeviceState("test"),
        read_network=NetworkState,
        difficulty=difficulty_source(SHIPPED),
    )
    found = {}
    for count in (3, 100, 1000):
        targets = [
            TargetState(
                Target("device" if i == 0 else "cloud" if i == 1 else "mec", f"m:{i % 4}", node=f"n{i}"),
                frozenset({"chat"}), frozenset({"tools"}), 8192, accuracy=0.6 + 0.1 * (i % 4),
                prefill_tokens_per_s=dice.uniform(300, 3000), decode_tokens_per_s=dice.uniform(20, 90),
                round_trip_ms=dice.uniform(1, 40), running=dice.randint(0, 8), parallel=4,
                input_usd_per_mtok=0.1 * (i % 2),
            )
            for i in range(count)
        ]  # fmt: skip
        took = []
        for _ in range(max(60, 3000 // count)):
            request = ingest("chat", model="auto", body={"messages": MESSAGES})
            begun = time.perf_counter()
            decision = agent.decide(
                request,
                reader.assess(request),
                targets,
                battery_floor=0.15,
                correction=lambda target: residuals.correction(target.id),
                dispatch=dispatch,
            )
            assert decision.primary is not None
            took.append(time.perf_counter() - begun)
        found[count] = {"p50": statistics.median(took) * 1e6, "p95": percentile(took, 0.95) * 1e6}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=25, help="per client and round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve or asked.worker:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve() if asked.serve else work(asked.worker, asked.url))
        return
    peers_python()
    decisions = time_decisions()
    calls = time_calls(asked.rounds, asked.calls)
    raw = calls["raw httpx"]
    overheads = {
        name: {share: took[share] - raw[share] for share in ("p50", "p95")} for name, took in calls.items()
    }
    ratios = {
        share: overheads["mecroute"][share] / overheads["litellm Router"][share] for share in ("p50", "p95")
    }
    if asked.json:
        print(json.dumps({"decisions_us": decisions, "calls_ms": calls, "overheads_ms": overheads,
                          "ratio_to_litellm": ratios}, indent=2))  # fmt: skip
        return
    for count, took in decisions.items():
        print(f"decision among {count:>5} targets: p50 {took['p50']:8.0f} µs, p95 {took['p95']:8.0f} µs")
    print(f"\n{'whole call, ms':16}{'p50':>8}{'p95':>8}{'over raw p50':>14}{'p95':>8}")
    for name, took in calls.items():
        over = overheads[name]
        print(f"{name:16}{took['p50']:8.2f}{took['p95']:8.2f}{over['p50']:14.2f}{over['p95']:8.2f}")
    print(
        f"\nour overhead / LiteLLM Router's: p50 {ratios['p50']:.3f} (1/{1 / ratios['p50']:.1f}), "
        f"p95 {ratios['p95']:.3f} (1/{1 / ratios['p95']:.1f})"
    )


if __name__ == "__main__":
    main()
