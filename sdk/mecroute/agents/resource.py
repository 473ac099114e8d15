"""The resource agent: every target there is, and the state it is in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args
from urllib.parse import urlsplit

from mecroute.agents.monitor import MonitorAgent
from mecroute.config.schema import CloudConfig, Config
from mecroute.device.hardware import default_threads, hardware_class
from mecroute.device.text_models import TextModel, describe_files, describe_registered, is_text_model
from mecroute.network.health import CloudHealth
from mecroute.network.links import Links
from mecroute.nodes.discovery.admission import is_loopback
from mecroute.nodes.report import ModelReport
from mecroute.prices import FREE, Price, price_of
from mecroute.request import Need
from mecroute.target import ANY_MODEL, Target, TargetState
from mecroute_registry.facts import ModelVersion, Profile, Task, Tier

if TYPE_CHECKING:
    from mecroute.nodes.watch import NodeWatch  # loads httpx, which a device-only client does without

#: What our own engine can do beyond plain text, and what a cloud API is taken to.
_LOCAL_ABILITIES: frozenset[Need] = frozenset(
    {"tools", "json_schema", "json_object", "logprobs", "logit_bias", "several_choices", "grammar"}
)
_CLOUD_ABILITIES: frozenset[Need] = frozenset(
    {
        *("tools", "functions", "images", "audio", "json_schema", "json_object"),
        *("logprobs", "logit_bias", "several_choices"),
    }
)
_DEVICE_AVAILABILITY = 1.0
#: Weights, KV cache and work buffers, over the size of the model file.
_MEMORY_FACTOR = 1.25
#: Share of the copy bandwidth that decoding reaches, and prefill over decode, for small models on CPUs.
_DECODE_EFFICIENCY = 0.5
_PREFILL_OVER_DECODE = 5.0
_LOAD_BYTES_PER_S = 500e6
_LIVE = "live measurement"
_EVERY_TASK: frozenset[Task] = frozenset(get_args(Task))
#: Of ONNX models of texts, on one thread: tokens/s times the size of the file; what opening one takes (it is
#: tried in a child process first); and memory over the size of the file.
_TEXT_BYTES_PER_S = 9e10
_TEXT_LOAD_MS = 1500.0
_TEXT_MEMORY_FACTOR = 2.0
#: Reading their outlines takes milliseconds, which not every decision has.
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """A model loaded in this process and how busy it is. Speeds in tokens/s, None until measured."""

    running: int
    queued: int
    parallel: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    decode_slowdown: float | None = None


class Nodes(Protocol):
    """The MEC nodes that are known now; see `nodes.fleet.Fleet`."""

    @property
    def watches(self) -> Sequence[NodeWatch]:
        """The watch of each."""
        ...

    async def refresh(self, within_s: float) -> None:
        """Bring them up to date, where that takes no longer."""
        ...

    def found_nothing(self) -> Sequence[str]:
        """The sources of nodes that know of none, and why."""
        ...


class Models(Protocol):
    """The models that are known, and what was measured of them; see `mecroute_registry.store.Registry`."""

    def generation(self) -> object:
        """Changes when they do."""
        ...

    def list(self) -> list[ModelVersion]:
        """Every model."""
        ...

    def profiles(self, model: ModelVersion) -> Sequence[Profile]:
        """What was measured of one."""
        ...

    def companions(self, model: ModelVersion) -> Mapping[str, Path]:
        """Where the files beside its model file lie, by their names."""
        ...


class _NodeTargets:
    """The targets on one node: (state, id, why the node itself cannot be used), as of its watch's changes and
    the registry's generation."""

    __slots__ = ("as_of", "states", "watch")

    def __init__(self, watch: NodeWatch, as_of: object, states: Iterable[TargetState]) -> None:
        self.watch = watch
        self.as_of = as_of
        self.states = [(state, state.target.id, state.unavailable) for state in states]


class ResourceAgent:
    """Lists targets with their state. For one event loop.

    Args:
        fleet: the MEC nodes that are known; None where none can be.
        loads: the models loaded in this process, by reference.
        links: the way to each remote, as traffic shows it.
        health: whether clouds take requests, as their answers show it.
        can_run_here: whether models can run in this process; default: whether llama-cpp-python is installed.
    """

    def __init__(
        self,
        config: Config,
        registry: Models,
        fleet: Nodes | None,
        monitor: MonitorAgent,
        *,
        loads: Callable[[], Mapping[str, DeviceLoad]],
        links: Links | None = None,
        health: CloudHealth | None = None,
        can_run_here: bool | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._fleet = fleet
        self._monitor = monitor
        self._loads = loads
        self._links = links or Links()
        self._health = health or CloudHealth()
        self._cloud_prices = {cloud.name: price_of(cloud, config.prices) for cloud in config.cloud}
        self._node_prices: dict[str, Price] = {}
        self._mec_known: dict[str, _NodeTargets] = {}
        self._hardware = hardware_class()
        self._generation: object = None
        self._models: list[ModelVersion] = []
        self._text_models: list[TextModel] = []
        self._described_at = -math.inf
        self._by_digest: dict[str, ModelVersion] = {}
        self._profiles: dict[str, Sequence[Profile]] = {}
        self._can_run_here = find_spec("llama_cpp") is not None if can_run_here is None else can_run_here

    async def refresh(self, within_s: float = math.inf) -> None:
        """Bring the nodes' reports up to date; see `Fleet.refresh` for how long that may take."""
        if self._fleet is not None:
            await self._fleet.refresh(within_s)

    def found_nothing(self) -> Sequence[str]:
        """The sources of nodes that know of none, and why; in words."""
        return self._fleet.found_nothing() if self._fleet is not None else ()

    def price_of(self, target: Target) -> Price:
        """What a target's tokens cost; also of a node that has left since it answered."""
        if target.tier == "device":
            return FREE
        known = self._node_prices if target.tier == "mec" else self._cloud_prices
        return known.get(target.node or "", Price())

    def targets(
        self, bandwidth_bytes_per_s: float | None = None, *, speed_share: float = 1.0
    ) -> list[TargetState]:
        """Every target: models of the device, models on nodes, cloud models.

        Args:
            bandwidth_bytes_per_s: the device's memory bandwidth, for models without a profile.
            speed_share: above 0, at most 1; what is left of the device's speed.
        """
        self._read_registry()
        found = [*self._device(bandwidth_bytes_per_s, speed_share), *self._mec()]
        found += [self._cloud(cloud) for cloud in self._config.cloud]
        return found

    def in_registry(self) -> list[ModelVersion]:
        """The models of the local registry, as last read."""
        self._read_registry()
        return self._models

    def _read_registry(self) -> None:
        generation = self._registry.generation()
        if generation != self._generation:
            self._models = self._registry.list()
            self._by_digest = {model.digest: model for model in self._models}
            self._profiles = {model.digest: self._registry.profiles(model) for model in self._models}
            self._generation = generation
            self._describe_text_models()

    def _device(self, bandwidth: float | None, speed_share: float) -> Iterator[TargetState]:
        if not self._config.device.enabled:
            return
        loads = self._loads()
        yield from self._text_targets(loads, speed_share)
        for model in self._models:
            if "device" not in model.deployment_tiers or model.format != "gguf":
                continue
            target = Target("device", model.ref, digest=model.digest)
            load = loads.get(model.ref)
            prefill, decode, source = self._device_speed(model, load, bandwidth)
            if speed_share < 1 and source != _LIVE and prefill and decode:
                # What was measured live was measured with whatever slows the processor down.
                prefill, decode = prefill * speed_share, decode * speed_share
                source = f"{source}, times {speed_share:.2f} while the processor is slowed down for heat"
            context = self._config.device.context
            yield TargetState(
                target=target,
                tasks=frozenset(model.tasks) - {"classify", "infer"},
                abilities=_LOCAL_ABILITIES,
                context_length=min(context, model.context_length or context),
                accuracy=model.accuracy,
                accuracy_source="measured" if model.accuracy is not None else "assumed",
                prefill_tokens_per_s=prefill,
                decode_tokens_per_s=decode,
                speed_source=source,
                ready_in_ms=0.0 if load else model.size_bytes / _LOAD_BYTES_PER_S * 1000,
                running=load.running if load else 0,
                queued=load.queued if load else 0,
                availability=_DEVICE_AVAILABILITY * self._monitor.availability(target.id),
                memory_needed_bytes=0 if load else int(model.size_bytes * _MEMORY_FACTOR),
                unavailable=self._device_problem(target),
                decode_slowdown=load.decode_slowdown if load else None,
            )

    def _text_targets(self, loads: Mapping[str, DeviceLoad], speed_share: float) -> Iterator[TargetState]:
        if time.monotonic() - self._described_at >= _LOOK_AGAIN_S and any(
            m.problem for m in self._text_models
        ):
            self._describe_text_models()  # perhaps its files have come
        for model in self._text_models:
            target = Target("device", model.ref, digest=model.digest)
            load = loads.get(model.ref)
            yield TargetState(
                target=target,
                tasks=model.tasks,
                abilities=frozenset(),
                context_length=model.max_tokens,
                accuracy=model.accuracy,
                accuracy_source=(
                    "assumed" if model.accuracy is None else "measured" if model.digest else "declared"
                ),
                prefill_tokens_per_s=(
                    speed_share * _TEXT_BYTES_PER_S / model.size_bytes if model.size_bytes else None
                ),
                speed_source="an estimate by its size",
                ready_in_ms=0.0 if load else _TEXT_LOAD_MS + model.size_bytes / _LOAD_BYTES_PER_S * 1000,
                running=load.running if load else 0,
                queued=load.queued if load else 0,
                parallel=load.parallel if load else 1,
                availability=_DEVICE_AVAILABILITY * self._monitor.availability(target.id),
                memory_needed_bytes=0 if load else int(model.size_bytes * _TEXT_MEMORY_FACTOR),
                unavailable=model.problem or self._monitor.resting(target.id),
                labels=model.labels,
            )

    def _describe_text_models(self) -> None:
        self._described_at = time.monotonic()
        self._text_models = [describe_files(config) for config in self._config.device.text_models]
        self._text_models += [
            describe_registered(model, self._registry.companions(model))
            for model in self._models
            if is_text_model(model)
        ]

    def _device_problem(self, target: Target) -> str | None:
        if not self._can_run_here:
            return "running models here needs: pip install 'mecroute[device]'"
        return self._monitor.resting(target.id)

    def _device_speed(
        self, model: ModelVersion, load: DeviceLoad | None, bandwidth: float | None
    ) -> tuple[float | None, float | None, str]:
        threads = self._config.device.threads or default_threads()
        profile = self._profile(model.digest, "device", self._hardware, threads)
        if profile is not None:
            return profile.prefill_tokens_per_s, profile.decode_tokens_per_s, "its profile"
        if load is not None and load.prefill_tokens_per_s and load.decode_tokens_per_s:
            return load.prefill_tokens_per_s, load.decode_tokens_per_s, _LIVE
        if bandwidth is not None:
            decode = _DECODE_EFFICIENCY * bandwidth / model.size_bytes
            return _PREFILL_OVER_DECODE * decode, decode, "an estimate by memory bandwidth"
        return None, None, "assumed"

    def _profile(
        self, digest: str | None, tier: Tier, hardware: str, threads: int | None = None
    ) -> Profile | None:
        """What was benched of a model there; preferred to live speeds, which depend on the load of the
        moment and are accounted for by the monitor's corrections."""
        fitting = [
            p
            for p in self._profiles.get(digest or "", ())
            if p.tier == tier and p.hardware == hardware and threads in (None, p.threads)
        ]
        return max(fitting, key=lambda p: p.measured_at, default=None)

    def _mec(self) -> Iterator[TargetState]:
        """The models on nodes. What a node says is turned into targets once, until it says something else:
        with a thousand nodes that is most of what a decision would cost."""
        watches = self._fleet.watches if self._fleet is not None else ()
        if len(self._mec_known) > len(watches):
            names = {watch.node.name for watch in watches}
            self._mec_known = {name: known for name, known in self._mec_known.items() if name in names}
        monitor = self._monitor
        for watch in watches:
            known = self._mec_known.get(watch.node.name)
            if known is None or known.watch is not watch or known.as_of != (watch.changes, self._generation):
                known = _NodeTargets(watch, (watch.changes, self._generation), tuple(self._targets_of(watch)))
                self._mec_known[watch.node.name] = known
            for index, (state, target_id, problem) in enumerate(known.states):
                availability = monitor.availability(target_id)
                unavailable = problem or monitor.resting(target_id)
                if availability != state.availability or unavailable != state.unavailable:
                    changed = replace(state, availability=availability, unavailable=unavailable)
                    known.states[index] = (changed, target_id, problem)
                    yield changed
                else:
                    yield state

    def _targets_of(self, watch: NodeWatch) -> Iterator[TargetState]:
        node = watch.node
        if node.name not in self._node_prices:
            self._node_prices[node.name] = price_of(node, ())
        away = _is_away(node.url)
        reported = watch.report.models if watch.report else ()
        models = [m for m in reported if m.state == "ready" or m.on_demand]
        if not models:
            yield TargetState(
                target=Target("mec", ANY_MODEL, node=node.name, region=watch.region),
                tasks=_EVERY_TASK,
                abilities=_LOCAL_ABILITIES,
                context_length=2**31,
                reached_over_network=away,
                unavailable=watch.problem
                or ("no model is ready there" if watch.report else "it has not reported yet"),
            )
        for model in models:
            yield self._mec_target(watch, model, away=away)

    def _mec_target(self, watch: NodeWatch, model: ModelReport, *, away: bool) -> TargetState:
        node, report = watch.node, watch.report
        assert report is not None
        target = Target("mec", model.ref, node=node.name, digest=model.digest, region=watch.region)
        load, price, link = watch.load(model), self._node_prices[node.name], watch.link
        known = self._by_digest.get(model.digest or "")
        accuracy = model.accuracy if model.accuracy is not None else (known.accuracy if known else None)
        profile = self._profile(model.digest, "mec", report.hardware)
        prefill, decode = load.prefill_tokens_per_s, load.decode_tokens_per_s
        source = "the node's live measurement"
        if profile is not None:
            prefill, decode = profile.prefill_tokens_per_s, profile.decode_tokens_per_s
            source = "its profile"
        return TargetState(
            target=target,
            tasks=frozenset(model.tasks),
            abilities=_LOCAL_ABILITIES,
            context_length=model.context_length or 4096,
            accuracy=accuracy,
            accuracy_source="measured" if accuracy is not None else "assumed",
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=decode,
            speed_source=source,
            round_trip_ms=link.rtt_ms or 0.0,
            jitter_ms=link.jitter_ms or 0.0,
            loss=link.loss,
            upload_bytes_per_s=link.upload_bytes_per_s,
            download_bytes_per_s=link.bandwidth_bytes_per_s,
            ready_in_ms=_ready_in_ms(model),
            running=load.running,
            queued=load.queued,
            parallel=load.parallel,
            input_usd_per_mtok=price.input_usd_per_mtok,
            output_usd_per_mtok=price.output_usd_per_mtok,
            reached_over_network=away,
            unavailable=watch.problem,
            decode_slowdown=load.decode_slowdown,
            prefill_left_tokens=load.prefill_left_tokens,
            told_at_s=watch.told_at(model.ref),
            zone=node.zone or report.zone,
            prefixes=model.prefix_set,
            labels=model.label_set,
        )

    def _cloud(self, cloud: CloudConfig) -> TargetState:
        target = Target("cloud", cloud.model, node=cloud.name, region=cloud.region)
        price, link = self._cloud_prices[cloud.name], self._links.of(cloud.name)
        missing = None
        if cloud.api_key_env and cloud.key() is None:
            missing = f"the environment variable {cloud.api_key_env} holds no API key"
        return TargetState(
            target=target,
            tasks=frozenset({"chat", "completion", "embed"}),
            abilities=_LOCAL_ABILITIES if cloud.stand_in else _CLOUD_ABILITIES,
            context_length=cloud.context_length,
            accuracy=cloud.quality,
            accuracy_source="declared",
            round_trip_ms=link.rtt_ms or 0.0,
            jitter_ms=link.jitter_ms or 0.0,
            loss=link.loss,
            upload_bytes_per_s=link.upload_bytes_per_s,
            download_bytes_per_s=link.bandwidth_bytes_per_s,
            input_usd_per_mtok=price.input_usd_per_mtok,
            output_usd_per_mtok=price.output_usd_per_mtok,
            availability=self._monitor.availability(target.id),
            reached_over_network=_is_away(cloud.base_url),
            unavailable=missing or self._health.problem(cloud.name) or self._monitor.resting(target.id),
        )


@lru_cache(maxsize=4096)
def _is_away(url: str) -> bool:
    return not is_loopback(urlsplit(url).hostname or "")


def _ready_in_ms(model: ModelReport) -> float:
    """How long a node takes until a model can begin: what its last load took, else what its size says."""
    if model.state == "ready":
        return 0.0
    load_s = (model.size_bytes or 0) / _LOAD_BYTES_PER_S if model.load_s is None else model.load_s
    return load_s * 1000
