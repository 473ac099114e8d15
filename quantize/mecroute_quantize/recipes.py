"""Which quantization a tier gets when none is asked for, and what its models are good for.

Measured on SmolLM2-135M-Instruct (source Q4_1, 98.4 MB) with the package's own evaluation data, on
linux-x86_64-2c with AVX512-VNNI; speeds are medians of five requests of 64 tokens in, 32 out,
in one run; accuracy over 100 items, standard error 0.04:

    variant   size MB   perplexity   accuracy   prefill tok/s   decode tok/s
    Q4_0         91.7        25.35       0.80             434            111
    IQ4_NL       92.1        25.47       0.83             441            108
    Q4_1         98.4        21.47       0.83             194             98
    Q5_0        105.0        23.37       0.81             285             96
    Q4_K_M      105.5        22.72       0.83             312             91
    Q8_0        144.8        21.63       0.83             379             90
"""

from __future__ import annotations

from dataclasses import dataclass

from mecroute.errors import UsageError
from mecroute_registry.facts import Tier


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is prepared for a tier.

    Args:
        tier: `device` or `mec`.
        quantization: llama.cpp's name.
        reason: why, in one sentence.
        use_cases: what the variant is registered for.
    """

    tier: Tier
    quantization: str
    reason: str
    use_cases: tuple[str, ...]


RECIPES: dict[Tier, Recipe] = {
    "device": Recipe(
        tier="device",
        quantization="Q4_0",
        reason="the smallest and fastest: llama.cpp repacks it for the CPU's dot-product instructions, which "
        "more than doubled prompt speed over the Q4_1 source, for 18% more perplexity and no difference in "
        "accuracy beyond its standard error",
        use_cases=("simple_qa", "basic_chat"),
    ),
    "mec": Recipe(
        tier="mec",
        quantization="Q8_0",
        reason="the quality of the source (perplexity within 1%), and twice its prompt speed, where 50% more "
        "memory is no concern",
        use_cases=("complex_qa", "reasoning", "code_gen"),
    ),
}


def recipe_for(tier: Tier) -> Recipe:
    """The recipe of a tier.

    Raises:
        UsageError: models are not made for that tier.
    """
    try:
        return RECIPES[tier]
    except KeyError:
        raise UsageError(
            f"no variant is made for the tier '{tier}'", hint="choose one of " + ", ".join(RECIPES)
        ) from None
