"""Brings models into a stack: measured on the device, pushed to its store, serving on its node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mecroute.device.hardware import hardware_class
from mecroute.nodes.report import ModelReport
from mecroute_cli.commands.deploy import follow
from mecroute_cli.making import make
from mecroute_cli.node_api import NodeApi
from mecroute_cli.node_bench import bench_node
from mecroute_cli.output import Output
from mecroute_cli.stack.stack import Stack
from mecroute_cli.stores import open_store
from mecroute_registry import ModelVersion, Profile, Registry

if TYPE_CHECKING:
    from mecroute_quantize import Variant
    from mecroute_registry.remote.base import RemoteStore

_DEPLOY_TIMEOUT_S = 180.0
_FIRST_RUNS = 5


def measure_device(
    output: Output, stack: Stack, registry: Registry, model: ModelVersion, *, runs: int
) -> Profile:
    """Measure a model in this process as the stack's device tier runs it, and keep the profile."""
    from mecroute.engines.llama import LlamaEngine
    from mecroute_quantize import measure_engine

    device = stack.config.device
    with (
        output.progress(f"measuring {model.ref} on the device", unit="share") as update,
        LlamaEngine(registry.path(model), n_ctx=device.context, n_threads=device.threads) as engine,
    ):
        profile = measure_engine(
            engine,
            runs=runs,
            tier="device",
            hardware=hardware_class(),
            progress=lambda share: update(share, 1),
        )
    registry.add_profile(model, profile)
    return profile


def measure_node(
    output: Output, stack: Stack, registry: Registry, model: ModelVersion, *, runs: int
) -> Profile:
    """Measure a model on the stack's node, over its endpoint, and keep the profile."""
    profile = bench_node(output, stack.config.nodes[0], model, runs=runs)
    registry.add_profile(model, profile)
    return profile


def ensure_device_profile(output: Output, stack: Stack, registry: Registry, model: ModelVersion) -> bool:
    """Measure the device once for the threads it has; whether it had to be done now."""
    threads = stack.config.device.threads
    if any(p.tier == "device" and p.threads == threads for p in registry.profiles(model)):
        return False
    measure_device(output, stack, registry, model, runs=_FIRST_RUNS)
    return True


def push_model(output: Output, stack: Stack, registry: Registry, model: ModelVersion) -> RemoteStore:
    """Push a model to the stack's store."""
    store = open_store(stack.config.store)
    with output.progress(f"pushing {model.ref}") as update:
        store.push(registry, model, progress=update)
    return store


def deploy_model(output: Output, stack: Stack, model: ModelVersion) -> ModelReport:
    """Deploy a model from the stack's store to its node, and wait until it serves."""
    with NodeApi(stack.config.nodes[0]) as api:
        return follow(api, output, model.ref, model.digest, timeout_s=_DEPLOY_TIMEOUT_S)


def bring_up(output: Output, stack: Stack, name: str) -> list[Variant]:
    """Make the variants of the stack's source, start every part, and bring the variants into service."""
    registry = Registry(stack.config.registry.path)
    variants = make(
        output,
        stack.source,
        name,
        ("device", "mec"),
        quantization=None,
        registry=registry,
        threads=None,
    )
    device, mec = (variant.model for variant in variants)
    ensure_device_profile(output, stack, registry, device)
    stack.start()
    push_model(output, stack, registry, mec)
    deploy_model(output, stack, mec)
    return variants
