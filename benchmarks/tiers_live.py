"""Asks a part of the workload through a real `AsyncClient`, and holds it against what the replay says of it.

    python benchmarks/tiers_live.py DATA MODELS [--out .bench/tiers] [--requests 150] [--policies balanced,…]

The encoder and SmolLM2-135M run in the client's process, Qwen 0.5B on a MEC node and Qwen 1.5B behind a
cloud's API, both servers on this machine. The client begins with what the replay learned from the calibration
requests (`tiers_replay.py`), and learns on. Each policy is asked the same requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mecroute import AsyncClient, Config
from mecroute.config import (
    CloudConfig,
    DeviceConfig,
    NodeConfig,
    RegistryConfig,
    RouterConfig,
    StateConfig,
    TextModelConfig,
)
from mecroute.device.hardware import hardware_class
from mecroute.state.store import StateStore
from mecroute_registry.facts import ModelFacts, Profile
from mecroute_registry.store import Registry
from servers import Server, mecroute, running
from tiers import LANGUAGE_MODELS, model_files, read_all
from tiers_collect import CONTEXT, PARALLEL
from tiers_encoder import CLASSIFIER
from tiers_front import Run
from tiers_replay import TARGETS, Answers, Replay, tier_of
from tiers_workload import SEED, Item, read_workload

THREADS = 2


async def ask(client: AsyncClient, item: Item, **asked: Any) -> tuple[str, bool, float]:
    """The tier that answered, whether it was right, and milliseconds from the call to the answer."""
    if item.set == "intents":
        classes = await client.classify(item.text, labels=item.choices, requirements=asked)
        where, said = classes.mecroute, classes.data[0].label
    else:
        reply = await client.chat.completions.create(**item.body(), requirements=asked)
        where, said = reply.mecroute, reply.choices[0].message.content
    assert where is not None
    return tier_of(where.outcome.target_id), said == item.answer, where.outcome.latency_ms


async def ask_all(config: Config, warm_up: Sequence[Item], items: Sequence[Item], policy: str) -> list[Any]:
    """One request after another, after some that load the models and fill the caches."""
    async with AsyncClient(config) as client:
        for item in warm_up:
            for tier in TARGETS:
                if tier != "encoder" or item.set == "intents":
                    await ask_of(client, item, tier)
        return [await ask(client, item, policy=policy) for item in items]


async def ask_of(client: AsyncClient, item: Item, tier: str) -> None:
    """Ask one tier, whatever a policy would choose."""
    model = f"{TARGETS[tier].tier}/{TARGETS[tier].model}"
    if item.set == "intents":
        await client.classify(item.text, labels=item.choices, model=model)
    else:
        await client.chat.completions.create(model=model, **item.body())


def configure(folder: Path, out: Path, gguf: Path, replay: Replay, edge: Server, cloud: Server) -> Config:
    """A client with the four targets of the replay."""
    device, profile = TARGETS["device"], replay.profiles["device"]
    assert profile.decode_tokens_per_s is not None
    name, version = device.model.split(":")
    registry = Registry(folder / "registry")
    facts = ModelFacts(name=name, version=version, deployment_tiers=("device",), accuracy=profile.accuracy)
    model = registry.register(gguf, facts)
    registry.add_profile(
        model,
        Profile(
            hardware=hardware_class(), tier="device", measured_at=datetime.now(UTC), threads=THREADS,
            prompt_tokens=100, output_tokens=1, runs=1,
            prefill_tokens_per_s=profile.prefill_tokens_per_s,
            decode_tokens_per_s=profile.decode_tokens_per_s,
            ttft_ms_p50=0, ttft_ms_p95=0, latency_ms_p50=0, latency_ms_p95=0,
        ),
    )  # fmt: skip
    encoder = TextModelConfig(
        name=TARGETS["encoder"].model,
        path=out / CLASSIFIER,
        accuracy=replay.profiles["encoder"].accuracy,
    )
    stand_in = CloudConfig(
        name=TARGETS["cloud"].node, base_url=f"{cloud.url}/v1", model=TARGETS["cloud"].model,
        quality=replay.profiles["cloud"].accuracy, stand_in=True, context_length=CONTEXT,
    )  # fmt: skip
    return Config(
        registry=RegistryConfig(path=folder / "registry"),
        device=DeviceConfig(threads=THREADS, context=CONTEXT, text_models=(encoder,)),
        state=StateConfig(path=folder / "state.sqlite3"),
        router=RouterConfig(hedge="never"),
        nodes=(NodeConfig(name=TARGETS["mec"].node, url=edge.url),),
        cloud=(stand_in,),
    )


def compare(
    items: Sequence[Item], answers: Answers, seen: Sequence[Any], run: Run, chosen: Sequence[str]
) -> dict[str, Any]:
    """Live and replayed, side by side."""
    tiers = [tier for tier, _, _ in seen]
    same = [one == other for one, other in zip(tiers, chosen, strict=True)]
    recorded = [answers[item.id, tier] for item, tier in zip(items, tiers, strict=True)]
    return {
        "requests": len(items),
        "same_tier": float(np.mean(same)),
        "shares_live": {tier: count / len(items) for tier, count in Counter(tiers).items()},
        "shares_replayed": {tier: count / len(items) for tier, count in Counter(chosen).items()},
        "accuracy_live": float(np.mean([right for _, right, _ in seen])),
        "accuracy_replayed": run.accuracy,
        "mean_ms_live": float(np.mean([took for _, _, took in seen])),
        "mean_ms_replayed": run.mean_ms,
        "mean_ms_recorded_of_live_choices": float(np.mean([one.latency_ms for one in recorded])),
        "same_answers": float(
            np.mean([one.right == right for one, (_, right, _) in zip(recorded, seen, strict=True)])
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of clinc150, hellaswag and arc_challenge")
    parser.add_argument("models", type=Path, help="folder of the models")
    parser.add_argument("--out", type=Path, default=Path(".bench/tiers"), help="what was collected")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--policies", default="latency-first,balanced")
    args = parser.parse_args()
    files, every, answers = model_files(args.models), read_workload(args.data), read_all(args.out)
    items = [item for item in every if all((item.id, tier) in answers for tier in LANGUAGE_MODELS)]
    measured = [item for item in items if item.part == "measured"]
    asked = random.Random(SEED).sample(measured, min(args.requests, len(measured)))
    warm_up = list({item.set: item for item in items if item.part == "calibration"}.values())
    found = {}
    with ExitStack() as stack:
        servers = {}
        for tier in ("mec", "cloud"):
            server = mecroute(files[tier], context=CONTEXT, parallel=PARALLEL, threads=THREADS)
            if server.model != TARGETS[tier].model:
                parser.error(f"{files[tier]} is not called {TARGETS[tier].model}.gguf")
            servers[tier] = Server(tier, server.command, server.url, server.model)
            stack.enter_context(running(servers[tier]))
        for policy in args.policies.split(","):
            with TemporaryDirectory() as name:
                folder = Path(name)
                replay = Replay(items, answers, store=StateStore(folder / "state.sqlite3"))
                run, chosen = replay.run(asked, policy, policy)
                replay.monitor.close()
                config = configure(
                    folder, args.out, files["device"], replay, servers["mec"], servers["cloud"]
                )
                seen = asyncio.run(ask_all(config, warm_up, asked, policy))
            found[policy] = compare(asked, answers, seen, run, chosen)
            print(json.dumps({policy: found[policy]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
