"""Predicted cost of one request on one target."""

from __future__ import annotations

from mecroute.target import TargetState


def cost_usd(state: TargetState, prompt_tokens: int, output_tokens: float) -> float:
    """Price of so many tokens in USD, from the target's prices per million tokens."""
    return (prompt_tokens * state.input_usd_per_mtok + output_tokens * state.output_usd_per_mtok) / 1_000_000
