"""The resource agent: every target there is, and the state it is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mecroute.agents.monitor import MonitorAgent
from mecroute.config.schema import CloudConfig, Config
from mecroute.device.hardware import default_threads, hardware_class
from mecroute.nodes.report import ModelReport
from mecroute.request import Need
from mecroute.target import Target, TargetState
from mecroute_registry.facts import ModelVersion, Profile, Tier
from mecroute_registry.store import Registry

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


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """A model loaded in this process and how busy it is. Speeds in tokens/s, None until measured."""

    running: int
    queued: int
    parallel: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None


class ResourceAgent:
    """Lists targets with their state. For one event loop.

    Args:
        loads: the models loaded in this process, by reference.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        watches: tuple[NodeWatch, ...],
        monitor: MonitorAgent,
        *,
        loads: Callable[[], Mapping[str, DeviceLoad]],
    ) -> None:
        self._config = config
        self._registry = registry
        self._watches = watches
        self._monitor = monitor
        self._loads = loads
        self._hardware = hardware_class()
        self._generation: object = None
        self._models: list[ModelVersion] = []
        self._profiles: dict[str, list[Profile]] = {}
        self._can_run_here = find_spec("llama_cpp") is not None

    async def refresh(self) -> None:
        """Bring the nodes' reports up to date; see `NodeWatch.refresh` for how long that may take."""
        if len(self._watches) == 1:
            await self._watches[0].refresh()
        elif self._watches:
            await asyncio.gather(*(watch.refresh() for watch in self._watches))

    def targets(self, bandwidth_bytes_per_s: float | None = None) -> list[TargetState]:
        """Every target: models of the device, models on nodes, cloud models.

        Args:
            bandwidth_bytes_per_s: the device's memory bandwidth, for models without a profile.
        """
        self._read_registry()
        found = [*self._device(bandwidth_bytes_per_s), *self._mec()]
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
            self._profiles = {model.digest: self._registry.profiles(model) for model in self._models}
            self._generation = generation

    def _device(self, bandwidth: float | None) -> Iterator[TargetState]:
        if not self._config.device.enabled:
            return
        loads = self._loads()
        for model in self._models:
            if "device" not in model.deployment_tiers or model.format != "gguf":
                continue
            target = Target("device", model.ref, digest=model.digest)
            load = loads.get(model.ref)
            prefill, decode, source = self._device_speed(model, load, bandwidth)
            context = self._config.device.context
            yield TargetState(
                target=target,
                tasks=frozenset(model.tasks),
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
                speed_is_shared=source == _LIVE,
            )

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
        for watch in self._watches:
            node = watch.node
            away = not _is_loopback(node.url)
            models = [m for m in watch.report.models if m.state == "ready"] if watch.report else []
            if not models:
                problem = watch.problem or "no model is ready there"
                yield TargetState(
                    target=Target("mec", "*", node=node.name, region=node.region),
                    tasks=frozenset({"chat", "completion", "embed"}),
                    abilities=_LOCAL_ABILITIES,
                    context_length=2**31,
                    reached_over_network=away,
                    unavailable=problem,
                )
            for model in models:
                yield self._mec_target(watch, model, away=away)

    def _mec_target(self, watch: NodeWatch, model: ModelReport, *, away: bool) -> TargetState:
        node, report = watch.node, watch.report
        assert report is not None
        target = Target(
            "mec", model.ref, node=node.name, digest=model.digest, region=node.region or report.region
        )
        known = next((m for m in self._models if m.digest == model.digest), None)
        accuracy = model.accuracy if model.accuracy is not None else (known.accuracy if known else None)
        profile = self._profile(model.digest, "mec", report.hardware)
        prefill, decode = model.prefill_tokens_per_s, model.decode_tokens_per_s
        source = "the node's live measurement"
        shared = decode is not None and profile is None
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
            round_trip_ms=watch.round_trip_ms or 0.0,
            running=model.running,
            queued=model.queued,
            parallel=model.parallel or 1,
            input_usd_per_mtok=node.input_usd_per_mtok,
            output_usd_per_mtok=node.output_usd_per_mtok,
            availability=self._monitor.availability(target.id),
            reached_over_network=away,
            unavailable=watch.problem or self._monitor.resting(target.id),
            speed_is_shared=shared,
            zone=node.zone or report.zone,
            prefixes=model.prefix_set,
        )

    def _cloud(self, cloud: CloudConfig) -> TargetState:
        target = Target("cloud", cloud.model, node=cloud.name, region=cloud.region)
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
            input_usd_per_mtok=cloud.input_usd_per_mtok,
            output_usd_per_mtok=cloud.output_usd_per_mtok,
            availability=self._monitor.availability(target.id),
            reached_over_network=not _is_loopback(cloud.base_url),
            unavailable=missing or self._monitor.resting(target.id),
        )


@lru_cache(maxsize=4096)
def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
