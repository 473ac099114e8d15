"""Step 8: measure both tiers, keep the figures, and show a decision that is made from them."""

from __future__ import annotations

from mecroute_cli.commands.models import PROFILES
from mecroute_cli.demo import prompts
from mecroute_cli.demo.scene import Scene
from mecroute_cli.stack.bring_up import deploy_model, measure_device, measure_node

_RUNS = 8


def bench(scene: Scene) -> None:
    """8: bench device and edge server, and route from what was measured."""
    from mecroute import Client

    scene.screen.say(
        "The edge server is started again (its registry still has the model, so nothing is downloaded), and "
        "both "
        "tiers are measured: fresh prompts of 64 tokens, answers of 32. `mecroute bench` does the same."
    )
    scene.close()  # its model would share the CPU with what is measured
    scene.stack.start_node()
    mec = scene.variants["mec"].model
    deploy_model(scene.output, scene.stack, mec)
    device_profile = measure_device(
        scene.output, scene.stack, scene.registry, scene.variants["device"].model, runs=_RUNS
    )
    profile = measure_node(scene.output, scene.stack, scene.registry, mec, runs=_RUNS)
    rows = [device_profile.model_dump(mode="json"), profile.model_dump(mode="json")]
    scene.screen.table(rows, PROFILES)
    scene.figures["profiles"] = rows
    kept = scene.registry.profiles(mec)
    scene.check(
        any(p.measured_at == profile.measured_at for p in kept),
        "the figures are kept with the models",
        f"the registry has {len(kept)} profiles and not this one",
    )
    with Client(scene.stack.config) as client:
        decision = client.route(
            messages=[{"role": "user", "content": prompts.DEMANDING.prompt}],
            requirements=prompts.DEMANDING.requirements,
            max_tokens=prompts.DEMANDING.max_tokens,
        )
    scene.screen.say("One decision, with every number (`mecroute route … --explain`):")
    scene.screen.quote(decision.explain())
    scene.figures["decision"] = decision.to_dict()
    notes = [note for candidate in decision.candidates for note in candidate.notes]
    scene.check(
        any("profile" in note for note in notes), "it reckons with the measured profile", "; ".join(notes)
    )
