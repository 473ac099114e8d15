"""Ways to choose a place for each request: mecroute's agents, and what they are compared with."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace

from mecroute.agents.monitor import MonitorAgent
from mecroute.agents.router import RouterAgent
from mecroute.config.schema import RouterConfig
from mecroute.context import Context, DeviceState, NetworkState, RequestFeatures
from mecroute.decision import Decision
from mecroute.errors import InvalidRequestError
from mecroute.outcome import Segment
from mecroute.request import ModelSelector, Request
from mecroute.requirements import Requirements
from mecroute.routing.dispatch import Dispatch
from mecroute.simulate.world import MAX_ATTEMPTS, Asked, Place, World
from mecroute.state.store import StateStore
from mecroute.target import TargetState
from mecroute_registry.facts import Task

_CONTEXT_LENGTH = 10_000_000  # the traces hold prompts of any length; what fits is not what is compared


class Strategy(ABC):
    """Chooses places. `choose` and `heard` are what `World.run` calls."""

    @abstractmethod
    def choose(self, asked: Asked) -> list[int]:
        """The places to try, best first."""

    def heard(  # noqa: B027 - not abstract on purpose: most strategies do not care
        self, asked: Asked, place: int, times: tuple[float, float] | None
    ) -> None:
        """What became of a request at a place."""


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


class Agents(Strategy):
    """mecroute itself: the Router and Monitor agents of every client, fed with what the client would know."""

    def __init__(self, world: World, config: RouterConfig) -> None:
        self._world = world
        self._reports = Reports(world)
        self._router = RouterAgent(config)
        clients = range(world.scenario.clients)
        store = StateStore(enabled=False)
        self._monitors = [MonitorAgent(store, clock=world.clock) for _ in clients]
        self._dispatches = [Dispatch(hedge_budget=0, clock=world.clock) for _ in clients]
        self._known: dict[int, tuple[object, list[TargetState]]] = {}
        self._by_id = {place.target.id: index for index, place in enumerate(world.places)}
        self._decisions: dict[int, Decision] = {}
        self._selector = ModelSelector.parse("auto")
        self._device, self._network = DeviceState("simulated"), NetworkState()

    def choose(self, asked: Asked) -> list[int]:
        """The candidates of a decision, in its order."""
        monitor, slo = self._monitors[asked.client], self._world.scenario.slo
        features = RequestFeatures(asked.complexity, (), asked.prompt_tokens, asked.output_tokens)
        request = Request(
            task="chat",
            model=self._selector,
            body={},
            requirements=Requirements(max_latency_ms=slo.ttft_ms + slo.per_token_ms * asked.output_tokens),
            id=f"req-{asked.number}",
            started=self._world.clock.now_s,
        )
        dispatch = self._dispatches[asked.client]
        decision = self._router.decide(
            request,
            Context(features, self._device, self._network),
            self._targets(asked.client, monitor),
            battery_floor=0.0,
            correction=monitor.correction,
            adjustment=monitor.adjustment,
            dispatch=dispatch,
        )
        self._decisions[asked.number] = decision
        first = decision.candidates[:MAX_ATTEMPTS]
        if first:
            dispatch.begin(first[0].target.id)
        return [self._by_id[c.target.id] for c in first]

    def heard(self, asked: Asked, place: int, times: tuple[float, float] | None) -> None:
        """Let the monitor learn, as it does from a finished segment."""
        monitor, target = self._monitors[asked.client], self._world.places[place].target
        decision = self._decisions[asked.number]
        if times is None:
            monitor.failed(target.id, "its queue is full")
            return
        del self._decisions[asked.number]
        self._dispatches[asked.client].end(decision.candidates[0].target.id)
        segment = Segment(
            target_id=target.id,
            tier=target.tier,
            output_tokens=asked.output_tokens,
            ttft_ms=times[0],
            latency_ms=times[1],
        )
        monitor.answered(decision, segment)

    def _targets(self, client: int, monitor: MonitorAgent) -> Iterator[TargetState]:
        """What the client knows of each place. A node's state is made once per report, as the Resource agent
        does; whether it answers is looked up each time."""
        world = self._world
        device = world.server(world.device, client)
        yield self._state(world.device, client, device.running, device.queued)
        reports = self._reports.of(client)
        of, known = self._known.get(client, (None, []))
        if of is not reports:
            known = [self._state(world.cloud, client, 0, 0)]
            known += [self._state(node, client, running, queued) for node, running, queued in reports]
            self._known[client] = reports, known
        for index, state in enumerate(known):
            target_id = state.target.id
            availability, resting = monitor.availability(target_id), monitor.resting(target_id)
            if availability != state.availability or resting != state.unavailable:
                state = known[index] = replace(state, availability=availability, unavailable=resting)
            yield state

    def _state(self, index: int, client: int, running: int, queued: int) -> TargetState:
        place: Place = self._world.places[index]
        machine = place.machine
        return TargetState(
            target=place.target,
            tasks=_TASKS,
            abilities=_ABILITIES,
            context_length=_CONTEXT_LENGTH,
            accuracy=machine.accuracy,
            accuracy_source="measured",
            prefill_tokens_per_s=machine.prefill_tokens_per_s,
            decode_tokens_per_s=machine.decode_tokens_per_s,
            speed_source="its profile",
            round_trip_ms=self._world.round_trip_ms(index, client),
            running=running,
            queued=queued,
            parallel=machine.parallel,
            input_usd_per_mtok=machine.input_usd_per_mtok,
            output_usd_per_mtok=machine.output_usd_per_mtok,
            reached_over_network=index != self._world.device,
        )


_TASKS: frozenset[Task] = frozenset({"chat"})
_ABILITIES: frozenset[str] = frozenset()

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
