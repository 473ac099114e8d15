"""`mecroute chat`: one question, answered wherever it is best answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import (
    Cascade,
    Deadline,
    Floor,
    MaxCost,
    MaxLatency,
    MinQuality,
    Model,
    Policy,
    Privacy,
    Prompt,
    Residency,
    Zone,
)
from mecroute_cli.help import examples
from mecroute_cli.requests import read_prompt, requirements
from mecroute_cli.session import session_of

if TYPE_CHECKING:
    from mecroute.outcome import Provenance

EXAMPLES = examples(
    'mecroute chat "What is an edge server?"',
    'mecroute chat "My diagnosis: …" --privacy device',
    "git diff | mecroute chat - --max-tokens 120 --temperature 0",
)


def chat(
    ctx: typer.Context,
    prompt: Prompt,
    model: Model = "auto",
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 256,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")
    ] = None,
    privacy: Privacy = Floor.ANY,
    max_latency_ms: MaxLatency = None,
    min_quality: MinQuality = None,
    max_cost_usd: MaxCost = None,
    residency: Residency = None,
    deadline_ms: Deadline = None,
    policy: Policy = None,
    zone: Zone = None,
    cascade: Cascade = None,
) -> None:
    """Ask a question; stderr says where it was answered."""
    from mecroute import Client

    session = session_of(ctx)
    out = session.output
    asked = requirements(
        privacy, max_latency_ms, min_quality, max_cost_usd, residency, deadline_ms, policy, zone, cascade
    )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": read_prompt(prompt)})
    optional = {} if temperature is None else {"temperature": temperature}
    pieces: list[str] = []
    with Client(session.config) as client:
        stream = client.chat.completions.create(
            model=model, messages=messages, requirements=asked, stream=True, max_tokens=max_tokens, **optional
        )
        for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                pieces.append(piece)
                out.stream(piece)
    out.stream("\n")
    provenance = stream.mecroute
    out.value("answer", "".join(pieces))
    if provenance is not None:
        out.value("mecroute", provenance.to_dict())
        out.note(summary(provenance))


def summary(provenance: Provenance) -> str:
    """One line on where an answer came from and how fast it was."""
    outcome = provenance.outcome
    tokens = f"{outcome.output_tokens} tokens"
    speed = f", {formats.rate(outcome.tokens_per_s)} tok/s" if outcome.tokens_per_s else ""
    line = (
        f"[{outcome.target_id}] TTFT {formats.milliseconds(outcome.ttft_ms)}, "
        f"{formats.milliseconds(outcome.latency_ms)} in all, {tokens}{speed}, {formats.usd(outcome.cost_usd)}"
    )
    seams = [
        f"; {segment.target_id} was lost ({segment.error}) and another tier went on"
        for segment in provenance.segments
        if segment.error
    ]
    return line + "".join(seams)
