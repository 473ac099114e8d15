"""A cascade that begins on the device: our own engine's log-probabilities are what is judged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mecroute import Client
from mecroute.cascade.calibration import Pair
from mecroute.cascade.marks import Marks
from mecroute.config import DeviceConfig
from mecroute_registry.facts import ModelFacts
from mecroute_registry.store import Registry
from support.cascades import HELLO, LARGE, SECOND, calibrated, settings, text_of
from support.tiny_gguf import write_tiny_gguf
from support.upstream import upstream

TARGET = "device/tiny:1"


@pytest.mark.parametrize(("right_above", "is_kept"), [(0.0001, True), (0.98, False)])
def test_the_device_answers_first(tmp_path: Path, right_above: float, is_kept: bool) -> None:
    with upstream() as large:
        config = settings(tmp_path, large, large, cascade={"tiers": ("device",)}).model_copy(
            update={"device": DeviceConfig(threads=1, context=256), "nodes": ()}
        )
        registry = Registry(config.registry.path)
        model = write_tiny_gguf(tmp_path / "tiny.gguf")
        registry.register(
            model, ModelFacts(name="tiny", version="1", deployment_tiers=("device",), accuracy=0.3)
        )
        # Answers down to this score were right, and all below it were wrong.
        chances = [right_above + (1 - right_above) * at / 400 for at in range(1, 400)]
        pairs = [Pair(Marks(**_logprobs(p)), True) for p in chances]
        pairs += [Pair(Marks(**_logprobs(right_above * at / 400)), False) for at in range(1, 400)]
        calibrated(config, pairs, TARGET)
        with Client(config) as client:
            reply = client.chat.completions.create(
                messages=HELLO, max_tokens=8, temperature=0, requirements={"cascade": True}
            )
    told = reply.mecroute
    assert told.decision.cascade is not None, told.decision.explain()
    assert (told.decision.cascade.first, told.decision.cascade.escalate_to) == (TARGET, LARGE)
    verdict = told.outcome.cascade
    assert verdict is not None
    assert verdict.score is not None
    assert 0 < verdict.score < 0.98
    assert verdict.kept == is_kept
    assert told.tier == ("device" if is_kept else "cloud")
    assert (text_of(reply) == SECOND) == (not is_kept)
    assert "logprobs" not in reply.to_dict()["choices"][0]


def _logprobs(chance: float) -> dict[str, float]:
    return {"mean_logprob": math.log(chance), "min_logprob": math.log(chance)}
