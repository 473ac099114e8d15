"""Policies: built in, configured, from another package's entry point; and what happens when one fails."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import pytest

from mecroute.agents.router import RouterAgent
from mecroute.config import RouterConfig
from mecroute.config.schema import BUILT_IN_POLICIES, Weighting
from mecroute.context import Context, DeviceState, NetworkState, RequestFeatures
from mecroute.decision import Decision
from mecroute.errors import ConfigError, InvalidRequestError
from mecroute.policies import BUILT_IN
from mecroute.predict.residuals import Correction
from mecroute.request import ingest
from mecroute.target import Target, TargetState

CHAT = frozenset({"chat"})
DEVICE = TargetState(
    Target("device", "m:small"), CHAT, frozenset(), 2048, accuracy=0.6,
    prefill_tokens_per_s=300, decode_tokens_per_s=30,
)  # fmt: skip
FAST = TargetState(
    Target("mec", "m:fast", node="n1"), CHAT, frozenset(), 4096, accuracy=0.7,
    prefill_tokens_per_s=4000, decode_tokens_per_s=400, input_usd_per_mtok=2, output_usd_per_mtok=6,
)  # fmt: skip
BEST = TargetState(
    Target("cloud", "big", node="c1"), CHAT, frozenset(), 9999, accuracy=0.99,
    prefill_tokens_per_s=3000, decode_tokens_per_s=20, input_usd_per_mtok=4, output_usd_per_mtok=12,
)  # fmt: skip


def decide(config: RouterConfig | None = None, *, model: str = "auto", **requirements: object) -> Decision:
    body = {"messages": [{"role": "user", "content": "x"}]}
    request = ingest("chat", model=model, body=body, requirements=requirements)
    context = Context(RequestFeatures(0.9, (), 300, 120), DeviceState("t"), NetworkState())
    return RouterAgent(config or RouterConfig()).decide(
        request, context, (DEVICE, FAST, BEST), battery_floor=0, correction=lambda _: Correction()
    )


def first(decision: Decision) -> str:
    assert decision.primary is not None
    return decision.primary.target.tier


def offer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, value: str = "own_policy:score"
) -> None:
    """Install a package that offers a policy `own`, the way pip would."""
    (tmp_path / "own_policy.py").write_text(code)
    info = tmp_path / "own_policy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-policy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mecroute.policies]\nown = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_policy", raising=False)


def test_the_names_that_are_reserved_are_the_built_in_ones() -> None:
    assert set(BUILT_IN) == BUILT_IN_POLICIES


@pytest.mark.parametrize("policy", BUILT_IN.values(), ids=lambda policy: policy.name)
def test_the_weights_of_every_policy_sum_to_one(policy) -> None:
    assert sum(policy.weights.values()) == pytest.approx(1)
    assert decide(policy=policy.name).policy == policy.name


def test_each_policy_goes_where_its_name_says() -> None:
    assert first(decide(policy="cheap")) == "device"
    assert first(decide(policy="latency-first")) == "mec"
    assert first(decide(policy="quality-first")) == "cloud"


def test_a_policy_with_a_floor_tightens_the_requests_own_and_never_loosens_it() -> None:
    private = decide(policy="private")
    assert {c.target.tier for c in private.candidates} == {"device", "mec"}
    assert private.requirements.privacy == "edge"
    alone = decide(policy="private", privacy="device")
    assert {c.target.tier for c in alone.candidates} == {"device"}


def test_a_configured_default_and_a_weighting_of_ones_own() -> None:
    own = {"mine": Weighting(quality=1.0)}
    config = RouterConfig(policy="mine", policies=own)
    assert first(decide(config)) == "cloud"
    assert decide(config).weights == {"latency": 0, "quality": 1, "cost": 0, "availability": 0}
    assert first(decide(config, policy="cheap")) == "device"


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match="no policy 'fastest'") as caught:
        decide(policy="fastest")
    assert "balanced, cheap, latency-first, private, quality-first" in caught.value.message
    with pytest.raises(ConfigError, match=r"router.policy: there is no policy 'fastest'"):
        RouterAgent(RouterConfig(policy="fastest"))


def test_code_by_entry_point_scores_what_passed_the_constraints(tmp_path: Path, monkeypatch) -> None:
    offer(tmp_path, monkeypatch, "def score(candidate, features, requirements):\n"
          "    return 1.0 if candidate.target.node == 'n1' else candidate.scores.total / 10\n")  # fmt: skip
    decision = decide(policy="own")
    assert first(decision) == "mec"
    assert decision.primary is not None
    assert decision.primary.scores.total == 1.0
    assert [c.target.tier for c in decide(policy="own", privacy="device").candidates] == ["device"]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def score(c, f, r):\n    raise RuntimeError('no')\n", "failed: RuntimeError: no"),
        ("def score(c, f, r):\n    return float('nan')\n", "gave nan"),
        ("def score(c, f, r):\n    return 'best'\n", "failed: ValueError"),
        ("def score(c):\n    return 1\n", "failed: TypeError"),
    ],
)
def test_code_that_fails_costs_no_request(
    tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture, code: str, told: str
) -> None:
    offer(tmp_path, monkeypatch, code)
    with caplog.at_level(logging.WARNING, logger="mecroute.router"):
        decision = decide(policy="own")
    assert [c.target.id for c in decision.candidates] == [c.target.id for c in decide().candidates]
    assert told in decision.notes[0]
    assert told in caplog.text
    assert all(math.isfinite(c.scores.total) for c in decision.candidates)


@pytest.mark.parametrize(
    ("code", "value", "told"),
    [
        ("import nothing_of_that_name\n", "own_policy:score", "ModuleNotFoundError"),
        ("score = 5\n", "own_policy:score", "is a int and cannot be called"),
        ("raise SystemError('broken')\n", "own_policy:score", "SystemError: broken"),
    ],
)
def test_code_that_cannot_be_loaded_is_a_clear_error(tmp_path: Path, monkeypatch, code, value, told) -> None:
    offer(tmp_path, monkeypatch, code, value)
    with pytest.raises(InvalidRequestError, match=told):
        decide(policy="own")


@pytest.mark.parametrize(
    ("asked", "both"),
    [
        ({"model": "cloud/big", "privacy": "edge"}, ("model 'cloud/big'", "privacy 'edge'")),
        ({"model": "mec", "privacy": "device"}, ("model 'mec'", "privacy 'device'")),
        ({"model": "cloud/big", "policy": "private"}, ("model 'cloud/big'", "policy 'private'")),
        ({"max_latency_ms": 500, "deadline_ms": 100}, ("max_latency_ms (500)", "deadline_ms (100)")),
    ],
)
def test_requirements_that_contradict_each_other_are_both_named(asked: dict, both: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="contradict each other") as caught:
        decide(**asked)
    assert all(name in caught.value.message for name in both)
