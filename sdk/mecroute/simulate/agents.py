"""mecroute itself in virtual time: the Context, Resource, Router and Monitor agents of every client.

They are the agents that run in a client. What a client hears from outside is the world's: the state of its
machine, its nodes' reports, and what its exchanges tell of the network and of the nodes' load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from mecroute.agents.context import ContextAgent
from mecroute.agents.monitor import MonitorAgent
from mecroute.agents.resource import DeviceLoad, ResourceAgent
from mecroute.agents.router import RouterAgent
from mecroute.config.schema import CloudConfig, Config, DeviceConfig, NodeConfig, RouterConfig
from mecroute.context import DeviceState, NetworkState, RequestFeatures
from mecroute.decision import Decision
from mecroute.device.hardware import default_threads, hardware_class
from mecroute.network.health import CloudHealth
from mecroute.network.links import Links
from mecroute.network.traffic import Traffic
from mecroute.nodes.load_header import LOAD_HEADER, ModelLoad
from mecroute.nodes.report import ModelReport, NodeReport
from mecroute.nodes.watch import NodeWatch
from mecroute.outcome import Segment
from mecroute.request import ModelSelector, Request
from mecroute.requirements import Requirements
from mecroute.routing.dispatch import Dispatch, UnderWay
from mecroute.simulate.baselines import Strategy
from mecroute.simulate.scenario import Machine
from mecroute.simulate.world import DEVICE_MODEL, MAX_ATTEMPTS, Asked, Heard, World
from mecroute.state.store import StateStore
from mecroute_registry.facts import ModelVersion, Profile, Tier

_CONTEXT_LENGTH = 1_000_000  # the traces hold prompts of any length; what fits is not what is compared
_MEASURED_AT = datetime(2026, 1, 1, tzinfo=UTC)
_MODEL_BYTES = 1_000_000_000
_DEVICE_MEMORY_BYTES = 8_000_000_000


class Agents(Strategy):
    """One set of agents per client."""

    def __init__(self, world: World, config: RouterConfig) -> None:
        self._world = world
        self._published = Published(world)
        models = _Models(world)
        settings = _settings(world, config)
        router = RouterAgent(config)
        self._clients = [
            _Client(world, number, settings, models, router, self._published)
            for number in range(world.scenario.clients)
        ]
        self._by_id = {place.target.id: index for index, place in enumerate(world.places)}

    def choose(self, asked: Asked) -> list[int]:
        """The candidates of a decision, in its order."""
        decision = self._clients[asked.client].decide(asked)
        return [self._by_id[c.target.id] for c in decision.candidates[:MAX_ATTEMPTS]]

    def heard(self, asked: Asked, place: int, heard: Heard | None) -> None:
        """Let the agents learn, as they do from a finished or failed exchange."""
        self._clients[asked.client].heard(asked, place, heard)


class _Client:
    """The agents of one client."""

    def __init__(
        self,
        world: World,
        number: int,
        settings: Config,
        models: _Models,
        router: RouterAgent,
        published: Published,
    ) -> None:
        clock = world.clock
        self._world = world
        self._number = number
        self._router = router
        self._battery_floor = settings.device.battery_floor
        self._selector = ModelSelector.parse("auto")
        self._asked: Asked | None = None
        self._links = Links(clock=clock)
        health = CloudHealth(clock=clock)
        self._nodes = _Nodes(world, settings.nodes, published, self._links)
        self._traffic = Traffic(self._links, health, self._nodes.watch_of)
        self._monitor = MonitorAgent(StateStore(enabled=False), clock=clock)
        self._dispatch = Dispatch(hedge_budget=0, clock=clock)
        self._context = ContextAgent(
            usual_output_tokens=self._monitor.usual_output_tokens,
            read_device=self._read_device,
            read_network=self._read_network,
            links=self._links,
            clock=clock,
            read_features=self._read_features,
        )
        self._resource = ResourceAgent(
            settings,
            models,
            self._nodes,
            self._monitor,
            loads=self._loads,
            links=self._links,
            health=health,
            can_run_here=True,
        )
        self._under_way: dict[int, tuple[Decision, int, UnderWay]] = {}

    def decide(self, asked: Asked) -> Decision:
        """Steps 2 to 4 of the pipeline."""
        slo = self._world.scenario.slo
        text = "x" * self._world.sent_bytes(asked)
        request = Request(
            task="chat",
            model=self._selector,
            body={"messages": [{"role": "user", "content": text}]},
            requirements=Requirements(max_latency_ms=slo.ttft_ms + slo.per_token_ms * asked.output_tokens),
            id=f"req-{asked.number}",
            started=self._world.clock.now_s,
        )
        self._asked = asked
        context = self._context.assess(request)
        self._nodes.listen()
        decision = self._router.decide(
            request,
            context,
            self._resource.targets(speed_share=context.device.speed_share),
            battery_floor=self._battery_floor,
            correction=self._monitor.correction,
            adjustment=self._monitor.adjustment,
            dispatch=self._dispatch,
        )
        if decision.candidates:
            sent = self._dispatch.begin(decision.candidates[0].target.id)
            self._under_way[asked.number] = decision, 0, sent
        return decision

    def heard(self, asked: Asked, place: int, heard: Heard | None) -> None:
        """What became of a request at a place."""
        target = self._world.places[place].target
        decision, attempt, sent = self._under_way.pop(asked.number)
        sent.end()
        if heard is None:
            if self._world.client_state(self._number).offline and target.tier != "device":
                self._traffic.lost(target)
                self._monitor.failed(target.id, "no route to it")
            else:
                self._monitor.failed(target.id, "its queue is full")
            if attempt + 1 < min(MAX_ATTEMPTS, len(decision.candidates)):
                sent = self._dispatch.begin(decision.candidates[attempt + 1].target.id)
                self._under_way[asked.number] = decision, attempt + 1, sent
            return
        if target.tier != "device":
            for _ in range(heard.lost):
                self._traffic.lost(target)
            server = self._world.server(place, self._number)
            model = server.model
            load = ModelLoad(server.running, server.queued, model.parallel, decode_slowdown=model.contention)
            headers = {
                "server-timing": f"total;dur={max(0.0, heard.ttft_ms - heard.way_ms):.3f}",
                LOAD_HEADER: load.encode(),
            }
            self._traffic.answered(target, 200, headers, heard.ttft_ms, heard.sent_bytes)
        segment = Segment(
            target_id=target.id,
            tier=target.tier,
            output_tokens=asked.output_tokens,
            ttft_ms=heard.ttft_ms,
            latency_ms=heard.latency_ms,
        )
        self._monitor.answered(decision, segment)

    def _read_device(self) -> DeviceState:
        state = self._world.client_state(self._number)
        return DeviceState(
            "simulated",
            memory_available_bytes=_DEVICE_MEMORY_BYTES,
            battery=state.battery,
            charging=state.battery is None,
            throttled=state.speed_share < 1,
            speed_share=state.speed_share,
        )

    def _read_network(self) -> NetworkState:
        return NetworkState(offline=self._world.client_state(self._number).offline)

    def _read_features(self, request: Request) -> RequestFeatures:
        """What a client takes a request for: its lengths, and its difficulty with an error."""
        asked = self._asked
        assert asked is not None, f"{request.id} was asked by nobody"
        return RequestFeatures(asked.complexity, (), asked.prompt_tokens, asked.output_tokens)

    def _loads(self) -> Mapping[str, DeviceLoad]:
        server = self._world.server(self._world.device, self._number)
        load = DeviceLoad(
            server.running, server.queued, server.model.parallel, None, None, server.model.contention
        )
        return {DEVICE_MODEL: load}


class _Nodes:
    """The nodes as one client knows them; see `agents.resource.Nodes`."""

    def __init__(
        self, world: World, nodes: tuple[NodeConfig, ...], published: Published, links: Links
    ) -> None:
        self.watches = tuple(NodeWatch(node, None, links=links, clock=world.clock) for node in nodes)
        self._by_name = {watch.node.name: watch for watch in self.watches}
        self._published = published

    def watch_of(self, name: str) -> NodeWatch | None:
        """The watch of one node."""
        return self._by_name.get(name)

    def listen(self) -> None:
        """Take in the reports that have come since."""
        for watch, report in zip(self.watches, self._published.reports(), strict=True):
            if watch.report is not report:
                watch.told(report)

    async def refresh(self, within_s: float) -> None:
        """Reports come by themselves."""

    def found_nothing(self) -> Sequence[str]:
        """Nobody looks for nodes."""
        return ()


class Published:
    """The reports of all nodes, renewed every `report_age_s`; one that says nothing new stays the same."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._at_s = float("-inf")
        self._reports = [
            NodeReport(
                node=str(world.places[index].target.node),
                zone=f"zone-{world.places[index].zone}",
                hardware=_hardware(world.places[index].machine),
                models=(
                    ModelReport(
                        ref=world.places[index].target.model,
                        state="ready",
                        digest=_digest(_hardware(world.places[index].machine)),
                        context_length=_CONTEXT_LENGTH,
                        parallel=world.places[index].machine.parallel,
                        decode_slowdown=world.places[index].machine.contention,
                    ),
                ),
            )
            for index in world.nodes
        ]

    def reports(self) -> list[NodeReport]:
        """Of each node in turn."""
        world = self._world
        if world.clock.now_s - self._at_s >= world.scenario.report_age_s:
            self._at_s = world.clock.now_s
            for place, report in enumerate(self._reports):
                server, model = world.server(world.nodes[place], 0), report.models[0]
                if (server.running, server.queued) != (model.running, model.queued):
                    load = {"running": server.running, "queued": server.queued}
                    self._reports[place] = report.model_copy(
                        update={"models": (model.model_copy(update=load),)}
                    )
        return self._reports


class _Models:
    """What would be in a client's registry: the device's and the nodes' models, with their profiles."""

    def __init__(self, world: World) -> None:
        device = _model("device-model", ("device",), world.scenario.device)
        self._models = [device]
        self._profiles = {
            device.digest: [_profile("device", world.scenario.device, hardware_class(), default_threads())]
        }
        for machine in world.scenario.node_classes:
            name = _hardware(machine)
            model = _model(f"model-{len(self._models)}", ("mec",), machine, digest=_digest(name))
            self._models.append(model)
            self._profiles[model.digest] = [_profile("mec", machine, name, 1)]

    def generation(self) -> object:
        """Nothing changes."""
        return 0

    def list(self) -> list[ModelVersion]:
        """Every model."""
        return self._models

    def profiles(self, model: ModelVersion) -> Sequence[Profile]:
        """What was measured of one: what the scenario says it does."""
        return self._profiles[model.digest]

    def companions(self, model: ModelVersion) -> Mapping[str, Path]:  # noqa: ARG002 - the protocol's
        """There are no files."""
        return {}


def _settings(world: World, router: RouterConfig) -> Config:
    scenario = world.scenario
    cloud = scenario.cloud
    nodes = []
    for index in world.nodes:
        place = world.places[index]
        nodes.append(
            NodeConfig(
                name=str(place.target.node),
                url=f"https://{place.target.node}.invalid",
                zone=f"zone-{place.zone}",
                input_usd_per_mtok=place.machine.input_usd_per_mtok,
                output_usd_per_mtok=place.machine.output_usd_per_mtok,
            )
        )
    target = world.places[world.cloud].target
    service = CloudConfig(
        name=str(target.node),
        base_url="https://cloud.invalid/v1",
        model=target.model,
        quality=cloud.accuracy,
        context_length=_CONTEXT_LENGTH,
        input_usd_per_mtok=cloud.input_usd_per_mtok,
        output_usd_per_mtok=cloud.output_usd_per_mtok,
    )
    device = DeviceConfig(context=_CONTEXT_LENGTH)
    return Config(router=router, device=device, nodes=tuple(nodes), cloud=(service,))


def _hardware(machine: Machine) -> str:
    return str(getattr(machine, "name", "device"))


def _digest(name: str) -> str:
    return f"sha256:{sha256(name.encode()).hexdigest()}"


def _model(
    name: str, tiers: tuple[Tier, ...], machine: Machine, *, digest: str | None = None
) -> ModelVersion:
    return ModelVersion(
        name=name,
        version="1",
        format="gguf",
        deployment_tiers=tiers,
        accuracy=machine.accuracy,
        context_length=_CONTEXT_LENGTH,
        digest=digest or _digest(name),
        file_digest=_digest(f"{name}.gguf"),
        size_bytes=_MODEL_BYTES,
        created=_MEASURED_AT,
    )


def _profile(tier: Tier, machine: Machine, hardware: str, threads: int) -> Profile:
    first_ms = 100 * 1000 / machine.prefill_tokens_per_s
    whole_ms = first_ms + 100 * 1000 / machine.decode_tokens_per_s
    return Profile(
        hardware=hardware,
        tier=tier,
        measured_at=_MEASURED_AT,
        threads=threads,
        prompt_tokens=100,
        output_tokens=100,
        runs=1,
        prefill_tokens_per_s=machine.prefill_tokens_per_s,
        decode_tokens_per_s=machine.decode_tokens_per_s,
        ttft_ms_p50=first_ms,
        ttft_ms_p95=first_ms,
        latency_ms_p50=whole_ms,
        latency_ms_p95=whole_ms,
    )
