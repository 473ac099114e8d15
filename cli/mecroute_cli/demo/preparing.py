"""Steps 1 to 4: make two variants, register them, push one to S3, deploy it to an edge server."""

from __future__ import annotations

from mecroute_cli import formats
from mecroute_cli.commands.models import COLUMNS as MODEL_COLUMNS
from mecroute_cli.commands.models import as_row
from mecroute_cli.demo.scene import Scene
from mecroute_cli.making import COLUMNS as VARIANT_COLUMNS
from mecroute_cli.making import make, variant_row
from mecroute_cli.node_api import NodeApi
from mecroute_cli.stack.bring_up import deploy_model, ensure_device_profile, push_model
from mecroute_cli.stack.stack import NODE


def quantize(scene: Scene) -> None:
    """1: one variant per tier, with what it cost."""
    scene.screen.say(
        f"One source model ({scene.source.name}, {formats.size(scene.source.stat().st_size)}) becomes two: a "
        "small "
        "one for the device and a better one for the edge server. Perplexity says how surprised a model is "
        "by good "
        "text (lower is better), accuracy is the share of questions it gets right."
    )
    made = make(
        scene.output,
        scene.source,
        scene.name,
        ("device", "mec"),
        quantization=None,
        registry=scene.registry,
        threads=None,
    )
    scene.variants = {variant.model.deployment_tiers[0]: variant for variant in made}
    rows = [variant_row(variant) for variant in made]
    scene.screen.table(rows, VARIANT_COLUMNS)
    scene.figures["variants"] = rows
    device, mec = scene.variants["device"].model, scene.variants["mec"].model
    scene.check(
        device.size_bytes < mec.size_bytes,
        "the device's variant is the smaller one",
        f"{formats.size(device.size_bytes)} and {formats.size(mec.size_bytes)}",
    )


def register(scene: Scene) -> None:
    """2: what the registry holds, and the device's speed with the one thread it will have."""
    scene.screen.say(
        "Both are in the local registry, under their names and digests: `mecroute models list`. A digest "
        "names the "
        "exact bytes, so nothing else can ever be served in their place."
    )
    scene.screen.table([as_row(model) for model in scene.registry.list()], MODEL_COLUMNS)
    for variant in scene.variants.values():
        known = scene.registry.get(variant.model.ref)
        scene.check(
            known.digest == variant.model.digest, f"{known.ref} is registered", "another digest is registered"
        )
    threads = scene.stack.config.device.threads
    if ensure_device_profile(scene.output, scene.stack, scene.registry, scene.variants["device"].model):
        scene.screen.say(f"The device will run it with {threads} thread only, so that was measured too.")


def push(scene: Scene) -> None:
    """3: the edge variant goes to S3, and comes back by digest."""
    model = scene.variants["mec"].model
    scene.screen.say(
        "Edge servers take their models from an S3 bucket. Here a small S3 server runs on this machine, with "
        "real "
        "signatures; at home it would be AWS."
    )
    endpoint = scene.stack.start_store()
    store = push_model(scene.output, scene.stack, scene.registry, model)
    there = next((known for known in store.list() if known.ref == model.ref), None)
    scene.screen.facts({"bucket": f"{store.uri} at {endpoint}", "digest": model.digest})
    scene.check(
        there is not None and there.digest == model.digest and there.file_digest == model.file_digest,
        "the store lists it with the same digest",
        "it does not" if there is None else f"it has {there.digest}",
    )


def deploy(scene: Scene) -> None:
    """4: an edge server in a process of its own pulls, verifies and loads it."""
    model = scene.variants["mec"].model
    scene.screen.say(
        "`mecroute serve` starts an edge server as a process of its own, with its own key and its own empty "
        "registry. `mecroute deploy` then has it pull the model from S3, compare its digest and load it."
    )
    url = scene.stack.start_node()
    assert scene.stack.node is not None
    scene.screen.facts({"node": f"{NODE} at {url}, process {scene.stack.node.pid}"})
    deploy_model(scene.output, scene.stack, model)
    with NodeApi(scene.stack.config.nodes[0]) as api:
        served = api.model(model.ref)
    scene.check(
        served is not None and served.state == "ready" and served.digest == model.digest,
        f"{NODE} serves {model.ref} with the digest that was pushed",
        f"it reports {served}",
    )
