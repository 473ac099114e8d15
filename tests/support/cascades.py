"""A small model on a node, a large one in a cloud, and judged answers: what tests of cascades start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mecroute import Config
from mecroute.cascade.calibration import Pair
from mecroute.cascade.file import keep_judged
from mecroute.cascade.marks import Marks
from mecroute.config import CloudConfig, DeviceConfig, NodeConfig, RegistryConfig, RouterConfig, StateConfig
from mecroute.config.cascade import CascadeConfig
from mecroute.state.store import StateStore
from support.upstream import WORDS, Upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]
SMALL, LARGE = "mec/n1/small:1", "cloud/c1/big"
FIRST = "The quick answer."
SECOND = "".join(WORDS)
SURE, UNSURE = -0.01, -2.0


def report(**facts: Any) -> dict[str, Any]:
    model = {
        "ref": "small:1", "state": "ready", "context_length": 4096, "parallel": 4, "accuracy": 0.4,
        "prefill_tokens_per_s": 50_000, "decode_tokens_per_s": 50_000,
    }  # fmt: skip
    return {"node": "n", "hardware": "test", "models": [model | facts]}


def text_of(reply: Any) -> Any:
    """The text of a whole answer."""
    return reply.choices[0].message.content


def settings(tmp_path: Path, small: Upstream, large: Upstream, **more: Any) -> Config:
    cascade = CascadeConfig(**{"enabled": True, "tiers": ("mec",)} | more.pop("cascade", {}))
    facts = {"region": "us-1", "continues_prefix": True, "input_usd_per_mtok": 10.0} | more.pop("cloud", {})
    return Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        router=RouterConfig(
            **{"policy": "quality-first", "tie_margin": 0, "cost_target_usd": 1} | more.pop("router", {}),
            cascade=cascade,
        ),
        nodes=(NodeConfig(name="n1", url=small.url, region="eu-1", **more.pop("node", {})),),
        cloud=(CloudConfig(name="c1", base_url=f"{large.url}/v1", model="big", **facts),),
        **more,
    )


def judged(count: int = 600, *, threshold: float = -0.5) -> list[Pair]:
    """Answers that are right where their mean log-probability is above a threshold."""
    values = [-2.0 * at / count for at in range(count)]
    return [Pair(Marks(mean_logprob=v, min_logprob=v, agreement=1.0), v > threshold) for v in values]


def calibrated(config: Config, pairs: list[Pair] | None = None, target: str = SMALL) -> Config:
    store = StateStore(config.state.path)
    found = keep_judged(store, config.router.cascade, target, judged() if pairs is None else pairs)
    store.close()
    assert pairs is not None or found.threshold is not None, "it must be known from which score on to keep"
    return config
