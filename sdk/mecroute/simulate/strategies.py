"""The strategies by name: mecroute's agents, and what they are compared with."""

from __future__ import annotations

from mecroute.config.schema import RouterConfig
from mecroute.errors import InvalidRequestError
from mecroute.simulate.agents import Agents
from mecroute.simulate.baselines import Fixed, LeastQueue, RoundRobin, Strategy, Threshold
from mecroute.simulate.world import Asked, World

#: The strategies, in the order in which they are reported.
STRATEGIES = ("mecroute", "device-only", "cloud-only", "round-robin", "least-queue", "threshold")


def make_strategy(
    name: str, world: World, config: RouterConfig, asked: list[Asked], *, seed: int
) -> Strategy:
    """The strategy of that name.

    Args:
        config: how mecroute's router scores.
        asked: the requests to come; the threshold is set so that half of them count as hard.

    Raises:
        InvalidRequestError: there is none of that name.
    """
    match name:
        case "mecroute":
            return Agents(world, config)
        case "device-only":
            return Fixed(world.device)
        case "cloud-only":
            return Fixed(world.cloud)
        case "round-robin":
            return RoundRobin(world)
        case "least-queue":
            return LeastQueue(world, seed=seed)
        case "threshold":
            return Threshold(world, threshold=_median_complexity(asked))
    raise InvalidRequestError(f"there is no strategy '{name}'", hint=f"known: {', '.join(STRATEGIES)}")


def _median_complexity(asked: list[Asked]) -> float:
    return sorted(request.complexity for request in asked)[len(asked) // 2]
