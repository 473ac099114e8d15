"""The simulated world: servers in virtual time, the requests that come, and what became of them."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from mecroute.network.links import BURST_BYTES
from mecroute.simulate.queueing import Job, Server, ServerModel
from mecroute.simulate.scenario import Machine, Scenario
from mecroute.simulate.trace import Arrival
from mecroute.target import Target

#: What the device's model is called; a registry's models have versions.
DEVICE_MODEL = "device-model:1"
#: Targets tried for one request, under every strategy.
MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the simulation.

    Args:
        difficulty: 0..1, what it takes; known to nobody.
        complexity: 0..1, what the client takes it for.
        luck: 0..1, the same under every strategy: the answer is right where it is below the probability.
    """

    number: int
    at_s: float
    client: int
    prompt_tokens: int
    output_tokens: int
    difficulty: float
    complexity: float
    luck: float


@dataclass(frozen=True, slots=True)
class Place:
    """One place that can serve: a target with its machine. Devices serve their own client only."""

    target: Target
    machine: Machine
    zone: int | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """What a client hears of a request at a place. Times in ms from the call.

    Args:
        way_ms: of them, what the network took.
        lost: exchanges that were lost and sent again.
        sent_bytes: of the request.
    """

    ttft_ms: float
    latency_ms: float
    way_ms: float
    lost: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class ClientState:
    """A client's device and network at a moment.

    Args:
        speed_share: above 0, at most 1; what is left of the device's speed.
        battery: 0..1; None on mains power.
    """

    offline: bool
    speed_share: float
    battery: float | None


@dataclass(slots=True)
class Result:
    """What became of one request. Times in ms from the call; None where it was refused everywhere."""

    place: int | None = None
    ttft_ms: float | None = None
    latency_ms: float | None = None
    cost_usd: float = 0.0
    right: bool = False
    in_slo: bool = False


class Clock:
    """Virtual monotonic seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The virtual time."""
        return self.now_s


#: Gives the places to try for a request, best first.
Choose = Callable[[Asked], list[int]]
#: Told what became of a request at a place; None when it was refused or could not be reached.
Tell = Callable[[Asked, int, "Heard | None"], None]
#: What a lost exchange costs before it is sent again.
_AGAIN_MS = 1000.0
_MOST_LOST = 5
_WORD = 2**64 - 1
_LOW_BATTERY, _GOOD_BATTERY = 0.1, 0.8


class World:
    """Places with their servers, and the events between them.

    Args:
        scenario: what there is.
        seed: of everything that is drawn.
    """

    def __init__(self, scenario: Scenario, *, seed: int) -> None:
        self.scenario = scenario
        self.clock = Clock()
        rng = random.Random(seed)  # noqa: S311 - drawn, not secret
        self.places: list[Place] = [Place(Target("device", DEVICE_MODEL), scenario.device)]
        self.places.append(Place(Target("cloud", "cloud-model", node="cloud"), scenario.cloud))
        shares = [kind.share for kind in scenario.node_classes]
        for index in range(scenario.nodes):
            kind = rng.choices(scenario.node_classes, shares)[0]
            zone = index % scenario.zones
            target = Target("mec", f"{kind.name}-model", node=f"node-{index}")
            self.places.append(Place(target, kind, zone))
        self.device, self.cloud, self.nodes = 0, 1, range(2, len(self.places))
        # One server per place, and one per client for the device.
        self._servers = [_server(place.machine) for place in self.places]
        self._devices = [_server(scenario.device) for _ in range(scenario.clients)]
        spread, count = scenario.network.rate_spread, scenario.clients
        #: Of each client: its access over the median one, its phase, and whether it is on a battery.
        self._rates = [math.exp(rng.gauss(0, spread)) for _ in range(count)]
        self._phases = [rng.random() for _ in range(count)]
        self._on_battery = [rng.random() < scenario.conditions.battery_share for _ in range(count)]
        self._seed = seed

    def server(self, place: int, client: int) -> Server:
        """The server behind a place, as one client sees it."""
        return self._devices[client] if place == self.device else self._servers[place]

    def round_trip_ms(self, place: int, client: int) -> float:
        """Between a client and a place."""
        network, zone = self.scenario.network, self.places[place].zone
        if place == self.device:
            return 0.0
        if zone is None:
            return network.cloud_ms
        apart = abs(zone - client % self.scenario.zones)
        return network.same_zone_ms + network.per_zone_ms * min(apart, self.scenario.zones - apart)

    def client_state(self, client: int) -> ClientState:
        """A client's device and network now."""
        conditions = self.scenario.conditions
        position = self.clock.now_s / conditions.cycle_s + self._phases[client]

        def befalls(share: float, apart: float) -> bool:
            return (position + apart) % 1.0 < share

        battery = None
        if self._on_battery[client]:
            battery = _LOW_BATTERY if befalls(conditions.low_battery_share, 0.0) else _GOOD_BATTERY
        return ClientState(
            offline=befalls(conditions.offline_share, 0.33),
            speed_share=conditions.throttled_speed if befalls(conditions.throttled_share, 0.67) else 1.0,
            battery=battery,
        )

    def sent_bytes(self, request: Asked) -> int:
        """Of a request's body."""
        return int(request.prompt_tokens * self.scenario.network.bytes_per_token)

    def way(self, request: Asked, place: int) -> tuple[float, int]:
        """What the network takes of one request to a place, in ms, and how often it was sent again; the same
        under every strategy."""
        if place == self.device:
            return 0.0, 0
        network = self.scenario.network
        trip = self.round_trip_ms(place, request.client)
        drawn = _drawn(self._seed, request.number, place, 1)
        # Laplace: its mean deviation is the jitter. A trip never takes less than half of the usual.
        side, share = (1, 2 * drawn - 1) if drawn >= 0.5 else (-1, 1 - 2 * drawn)
        trip += max(-trip / 2, -side * trip * network.jitter * math.log(max(1e-9, 1 - share)))
        lost = 0
        if network.loss and (again := _drawn(self._seed, request.number, place, 2)) < network.loss:
            lost = min(_MOST_LOST, max(1, int(math.log(max(again, 1e-12)) / math.log(network.loss))))
        rate = self._rates[request.client]
        up = max(0, self.sent_bytes(request) - BURST_BYTES) / (network.upload_bytes_per_s * rate)
        answer = request.output_tokens * network.bytes_per_token
        down = max(0.0, answer - BURST_BYTES) / (network.download_bytes_per_s * rate)
        return trip + (up + down) * 1000 + lost * _AGAIN_MS, lost

    def run(self, asked: list[Asked], choose: Choose, heard: Tell) -> list[Result]:
        """Let every request come, under one way of choosing; returns their results in order."""
        results = [Result() for _ in asked]
        events: list[tuple[float, int, Server, int]] = []
        serial = 0
        for request in asked:
            while events and events[0][0] <= request.at_s:
                serial = self._happen(events, serial, results, heard)
            self.clock.now_s = request.at_s
            for place in choose(request)[:MAX_ATTEMPTS]:
                server = self.server(place, request.client)
                machine = self.places[place].machine
                state = self.client_state(request.client)
                if state.offline and place != self.device:
                    heard(request, place, None)
                    continue
                speed = state.speed_share if place == self.device else 1.0
                job = Job(
                    prefill_s=request.prompt_tokens / machine.prefill_tokens_per_s / speed,
                    decode_s=request.output_tokens / machine.decode_tokens_per_s / speed,
                    arrived_s=request.at_s,
                    tag=(request, place),
                )
                if server.submit(job, request.at_s):
                    serial = _plan(events, serial, server)
                    break
                heard(request, place, None)
        while events:
            serial = self._happen(events, serial, results, heard)
        return results

    def _happen(
        self, events: list[tuple[float, int, Server, int]], serial: int, results: list[Result], heard: Tell
    ) -> int:
        at_s, _, server, version = heapq.heappop(events)
        if server.version != version:
            return serial
        self.clock.now_s = max(self.clock.now_s, at_s)
        for job in server.advance(at_s):
            self._settle(job, results, heard)
        return _plan(events, serial, server)

    def _settle(self, job: Job, results: list[Result], heard: Tell) -> None:
        assert isinstance(job.tag, tuple)
        assert job.first_token_s is not None
        assert job.done_s is not None
        request, index = job.tag
        place, slo = self.places[index], self.scenario.slo
        way_ms, lost = self.way(request, index)
        ttft_ms = way_ms + (job.first_token_s - job.arrived_s) * 1000
        latency_ms = way_ms + (job.done_s - job.arrived_s) * 1000
        machine = place.machine
        results[request.number] = Result(
            place=index,
            ttft_ms=ttft_ms,
            latency_ms=latency_ms,
            cost_usd=(
                request.prompt_tokens * machine.input_usd_per_mtok
                + request.output_tokens * machine.output_usd_per_mtok
            )
            / 1e6,
            right=request.luck < p_right(machine.accuracy, request.difficulty),
            in_slo=ttft_ms <= slo.ttft_ms
            and latency_ms <= slo.ttft_ms + slo.per_token_ms * request.output_tokens,
        )
        heard(request, index, Heard(ttft_ms, latency_ms, way_ms, lost, self.sent_bytes(request)))


def p_right(accuracy: float, difficulty: float) -> float:
    """Probability of a right answer: 1 at difficulty 0, and `accuracy` at the mean difficulty of 1/2."""
    return max(0.0, 1 - 2 * difficulty * (1 - accuracy))


def draw_requests(trace: list[Arrival], scenario: Scenario, *, seed: int) -> list[Asked]:
    """Give each arrival a client and a difficulty (Beta(2, 2), mean 1/2)."""
    rng = random.Random(seed)  # noqa: S311 - drawn, not secret
    asked = []
    for number, arrival in enumerate(trace):
        difficulty = rng.betavariate(2, 2)
        seen = difficulty + rng.gauss(0, scenario.complexity_noise)
        asked.append(
            Asked(
                number=number,
                at_s=arrival.at_s,
                client=rng.randrange(scenario.clients),
                prompt_tokens=arrival.prompt_tokens,
                output_tokens=arrival.output_tokens,
                difficulty=difficulty,
                complexity=min(1.0, max(0.0, seen)),
                luck=rng.random(),
            )
        )
    return asked


def capacity_per_s(scenario: Scenario, trace: list[Arrival], *, seed: int) -> float:
    """Requests of a trace that all the MEC nodes together could end per second, with full batches."""
    prompt = sum(a.prompt_tokens for a in trace) / len(trace)
    output = sum(a.output_tokens for a in trace) / len(trace)
    total = 0.0
    world = World(scenario, seed=seed)
    for index in world.nodes:
        machine = world.places[index].machine
        alone_s = prompt / machine.prefill_tokens_per_s + output / machine.decode_tokens_per_s
        total += machine.parallel / (1 + machine.contention * (machine.parallel - 1)) / alone_s
    return total


def _drawn(*numbers: int) -> float:
    """0..1 (1 excluded), the same for the same numbers (SplitMix64: Steele, Lea and Flood 2014)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _WORD
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
        mixed ^= mixed >> 31
    return (mixed >> 11) / 2**53


def _server(machine: Machine) -> Server:
    return Server(
        ServerModel(
            prefill_tokens_per_s=machine.prefill_tokens_per_s,
            decode_tokens_per_s=machine.decode_tokens_per_s,
            parallel=machine.parallel,
            contention=machine.contention,
            max_queue=machine.max_queue,
        )
    )


def _plan(events: list[tuple[float, int, Server, int]], serial: int, server: Server) -> int:
    at_s = server.next_event_s()
    if at_s is not None:
        serial += 1
        server.version += 1
        heapq.heappush(events, (at_s, serial, server, server.version))
    return serial
