"""The story: eight steps in order, a summary, and what to try next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mecroute_cli import formats
from mecroute_cli.demo import answering, measuring, preparing
from mecroute_cli.demo.scene import Scene
from mecroute_cli.tables import Column

STEPS: tuple[tuple[str, Callable[[Scene], None]], ...] = (
    ("Make the model fit", preparing.quantize),
    ("Keep it in the registry", preparing.register),
    ("Put it where edge servers find it", preparing.push),
    ("Start an edge server and deploy to it", preparing.deploy),
    ("Let each request find its place", answering.route),
    ("Keep what is private on the device", answering.keep_private),
    ("Lose the edge server in mid-answer", answering.survive),
    ("Measure, and decide from what was measured", measuring.bench),
)

_ANSWERS = (
    Column("label", "request"),
    Column("tier", "answered on"),
    Column("ttft_ms", "first token", formats.milliseconds, right=True),
    Column("latency_ms", "whole", formats.milliseconds, right=True),
    Column("tokens_per_s", "tok/s", formats.rate, right=True),
    Column("cost_usd", "price", formats.usd, right=True),
)


def tell(scene: Scene) -> dict[str, Any]:
    """Run every step.

    Returns:
        the summary: `ok`, `failures`, `steps`, `answers` and the figures, all of JSON types.
    """
    started = time.monotonic()
    steps: list[dict[str, Any]] = []
    try:
        for number, (title, step) in enumerate(STEPS, 1):
            scene.screen.heading(f"{number}/{len(STEPS)} {title}")
            steps.append({"step": number, "title": title, **_timed(scene, step)})
    finally:
        scene.close()
    summary = {
        "ok": not scene.failures,
        "failures": scene.failures,
        "seconds": round(time.monotonic() - started, 1),
        "steps": steps,
        "answers": scene.answers,
        **scene.figures,
    }
    _close(scene, summary)
    return summary


def _timed(scene: Scene, step: Callable[[Scene], None]) -> dict[str, Any]:
    begun, before = time.monotonic(), len(scene.failures)
    step(scene)
    return {"ok": len(scene.failures) == before, "seconds": round(time.monotonic() - begun, 1)}


def _close(scene: Scene, summary: dict[str, Any]) -> None:
    screen = scene.screen
    screen.heading("What happened")
    screen.table(scene.answers, _ANSWERS)
    screen.blank()
    for step in summary["steps"]:
        screen.result(step["ok"], f"{step['step']}. {step['title']} ({step['seconds']:.0f} s)")
    if scene.failures:
        screen.blank()
        for failure in scene.failures:
            screen.say(f"did not hold: {failure}")
        screen.say(f"Logs of the processes are in {scene.stack.workdir}.")
        return
    screen.heading("What to try next")
    screen.facts(
        {
            "mecroute dev": "keep such a stack running, with one OpenAI-compatible endpoint in front",
            "mecroute quantize": "a model of your own: mecroute quantize MODEL.gguf --name NAME",
            "mecroute serve": "an edge server on another machine, then [[nodes]] in mecroute.toml",
            "mecroute doctor": "what is installed, reachable and missing",
        }
    )
