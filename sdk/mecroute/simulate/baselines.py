"""Ways to choose a place for each request that mecroute's agents are compared with."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from mecroute.simulate.world import Asked, Heard, World


class Strategy(ABC):
    """Chooses places. `choose` and `heard` are what `World.run` calls."""

    @abstractmethod
    def choose(self, asked: Asked) -> list[int]:
        """The places to try, best first."""

    def heard(  # noqa: B027 - not abstract on purpose: most strategies do not care
        self, asked: Asked, place: int, heard: Heard | None
    ) -> None:
        """What became of a request at a place; None where it was refused or could not be reached."""


class Fixed(Strategy):
    """Always the same place: device only, cloud only."""

    def __init__(self, place: int) -> None:
        self._places = [place]

    def choose(self, asked: Asked) -> list[int]:  # noqa: ARG002 - whatever is asked
        """That place."""
        return self._places


class RoundRobin(Strategy):
    """The nodes in turn; where one refuses, the next."""

    def __init__(self, world: World) -> None:
        self._count = len(world.nodes)
        self._nodes = list(world.nodes)
        self._turn = 0

    def choose(self, asked: Asked) -> list[int]:  # noqa: ARG002 - whatever is asked
        """The next node and those after it."""
        self._turn += 1
        return [self._nodes[(self._turn + i) % self._count] for i in range(min(3, self._count))]


class LeastQueue(Strategy):
    """The nodes with the fewest requests by their last reports; ties at random."""

    def __init__(self, world: World, *, seed: int) -> None:
        self._reports = Reports(world)
        self._rng = random.Random(seed)  # noqa: S311 - drawn, not secret

    def choose(self, asked: Asked) -> list[int]:
        """The least busy nodes, best first."""
        reports = self._reports.of(asked.client)
        order = sorted((running + queued, self._rng.random(), node) for node, running, queued in reports)
        return [node for _, _, node in order[:3]]


class Threshold(Strategy):
    """As RouteLLM routes: the hardest requests to the strong model (the cloud), the others to the weak one
    (the nodes, in turn), so that a given share goes to the cloud.

    Args:
        threshold: complexity from which a request is hard.
    """

    def __init__(self, world: World, *, threshold: float) -> None:
        self._strong = world.cloud
        self._weak = RoundRobin(world)
        self._threshold = threshold

    def choose(self, asked: Asked) -> list[int]:
        """One of the two."""
        return [self._strong] if asked.complexity >= self._threshold else self._weak.choose(asked)


class Reports:
    """What each client last heard of every node: the node, its running and its waiting requests."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._heard: dict[int, tuple[float, list[tuple[int, int, int]]]] = {}

    def of(self, client: int) -> list[tuple[int, int, int]]:
        """One client's reports, renewed when they have grown old."""
        now = self._world.clock.now_s
        at, reports = self._heard.get(client, (float("-inf"), []))
        if now - at >= self._world.scenario.report_age_s or not reports:
            servers = [(node, self._world.server(node, client)) for node in self._world.nodes]
            reports = [(node, server.running, server.queued) for node, server in servers]
            self._heard[client] = (now, reports)
        return reports
