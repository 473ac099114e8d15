"""Steps 5 to 7: requests find their tier, a private one stays, and one survives the loss of its server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mecroute_cli import formats
from mecroute_cli.demo import prompts
from mecroute_cli.demo.prompts import Ask
from mecroute_cli.demo.scene import Scene
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute import Client
    from mecroute.outcome import Provenance

#: Pieces of text that arrive before the edge server is killed.
_PIECES_BEFORE_THE_LOSS = 4
_NODE_SEEN_TIMEOUT_S = 20.0
_SEAM_CONTEXT = 70

SCORES = (
    Column("target", "target"),
    Column("latency", "latency", lambda v: formats.decimals(v, 2), right=True),
    Column("quality", "quality", lambda v: formats.decimals(v, 2), right=True),
    Column("cost", "cost", lambda v: formats.decimals(v, 2), right=True),
    Column("availability", "availability", lambda v: formats.decimals(v, 2), right=True),
    Column("total", "score", lambda v: formats.decimals(v, 3), right=True),
)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as it came, and where it came from."""

    text: str
    finish_reason: str | None
    provenance: Provenance


def stream(
    scene: Scene, client: Client, ask: Ask, *, on_piece: Callable[[int], None] | None = None
) -> Answered:
    """Ask, show the answer as it comes, and keep what is known of it.

    Args:
        on_piece: called with the count of pieces after each one.
    """
    scene.screen.blank()
    shown = ask.prompt if len(ask.prompt) < 240 else f"{ask.prompt[:110]} […] {ask.prompt[-90:]}"
    scene.screen.label(f"{ask.label}" + (f", {_words(ask.requirements)}" if ask.requirements else ""))
    scene.screen.say("> " + shown)
    pieces: list[str] = []
    reason: str | None = None
    answer = client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": ask.prompt}],
        requirements=ask.requirements,
        stream=True,
        max_tokens=ask.max_tokens,
        temperature=0,
    )
    for chunk in answer:
        for choice in chunk.choices[:1]:
            reason = choice.finish_reason or reason
            if choice.delta.content:
                pieces.append(choice.delta.content)
                scene.screen.piece(choice.delta.content)
                if on_piece is not None:
                    on_piece(len(pieces))
    scene.screen.piece("\n")
    provenance = answer.mecroute
    assert provenance is not None, "the stream has ended"
    return Answered("".join(pieces), reason, provenance)


def show(scene: Scene, ask: Ask, answered: Answered) -> None:
    """Print what the answer cost and why it was answered there, and check the tier."""
    provenance, outcome = answered.provenance, answered.provenance.outcome
    where = provenance.tier + (
        " (a stand-in on this machine)" if provenance.tier == "cloud" and scene.stack.has_stand_in else ""
    )
    scene.screen.facts(
        {
            "answered by": f"{outcome.target_id}: {where}",
            "first token": formats.milliseconds(outcome.ttft_ms),
            "whole answer": f"{formats.milliseconds(outcome.latency_ms)}, {outcome.output_tokens} tokens, "
            f"{formats.rate(outcome.tokens_per_s)} tok/s, {formats.usd(outcome.cost_usd)}",
        }
    )
    decision = provenance.decision
    rows = [
        {
            "target": c.target.id,
            "latency": c.scores.latency,
            "quality": c.scores.quality,
            "cost": c.scores.cost,
            "availability": c.scores.availability,
            "total": c.scores.total,
        }
        for c in decision.candidates
    ]
    scene.screen.table(rows, SCORES)
    for refused in decision.rejected:
        scene.screen.say(f"  not {refused.target.id}: {refused.reason}: {refused.detail}")
    scene.check(
        provenance.tier == ask.expected_tier and bool(answered.text.strip()),
        f"answered on the {ask.expected_tier}, because {ask.because}",
        f"it was answered by {outcome.target_id}",
    )
    scene.answers.append(
        {
            "label": ask.label,
            "expected_tier": ask.expected_tier,
            "tier": provenance.tier,
            "target": outcome.target_id,
            "ttft_ms": outcome.ttft_ms,
            "latency_ms": outcome.latency_ms,
            "output_tokens": outcome.output_tokens,
            "tokens_per_s": outcome.tokens_per_s,
            "cost_usd": outcome.cost_usd,
            "scores": rows[0] if rows else None,
            "requirements": ask.requirements,
            "text": answered.text,
        }
    )


def route(scene: Scene) -> None:
    """5: easy to the device, demanding to the edge, most demanding to the cloud."""
    scene.stack.start_cloud()
    if scene.stack.has_stand_in:
        scene.screen.say(
            "There is no cloud configured, so a stand-in plays it: another server on this machine, with the "
            "same "
            "small model. Its quality (0.90) and its price are declared, as they would be for a real one; "
            "its "
            "answers are no better than the device's. A [[cloud]] table in mecroute.toml takes its place."
        )
    scene.screen.say(
        'Every request asks for model="auto". The router scores each place it could run: 0.40 latency + 0.30 '
        "quality + 0.20 cost + 0.10 availability, each from 0 to 1, against what the caller asks for."
    )
    client = _client(scene)
    for ask in (*prompts.EASY, prompts.DEMANDING, prompts.HARDEST):
        show(scene, ask, stream(scene, client, ask))


def keep_private(scene: Scene) -> None:
    """6: a private request stays on the device, however demanding it is."""
    scene.screen.say(
        "Privacy outranks everything: with privacy='device' no retry, no fallback and no cache takes the "
        "request "
        "anywhere else."
    )
    answered = stream(scene, _client(scene), prompts.PRIVATE)
    show(scene, prompts.PRIVATE, answered)
    elsewhere = [c.target.id for c in answered.provenance.decision.candidates if c.target.tier != "device"]
    scene.check(not elsewhere, "no other place was even a candidate", ", ".join(elsewhere))


def survive(scene: Scene) -> None:
    """7: the edge server is killed in mid-answer, and the answer is completed elsewhere."""
    scene.screen.say(
        f"The answer starts on the edge server. After {_PIECES_BEFORE_THE_LOSS} pieces of text its process "
        "is killed "
        "(SIGKILL, no goodbye). What was delivered stays; another tier goes on from there."
    )
    node = scene.stack.node
    assert node is not None

    def kill_it(count: int) -> None:
        if count == _PIECES_BEFORE_THE_LOSS:
            node.kill()

    answered = stream(scene, _client(scene), prompts.LOST, on_piece=kill_it)
    provenance = answered.provenance
    segments = provenance.segments
    first, last = segments[0], segments[-1]
    text = answered.text
    before, after = text[: first.text_chars], text[first.text_chars :]
    scene.screen.blank()
    scene.screen.facts(
        {
            "before the seam": f"…{_one_line(before[-_SEAM_CONTEXT:])}",
            "after the seam": f"{_one_line(after[:_SEAM_CONTEXT])}…",
            **{
                f"segment {number}": f"{segment.target_id}, {segment.output_tokens} tokens"
                + (f", lost: {segment.error}" if segment.error else ", to the end")
                for number, segment in enumerate(segments, 1)
            },
            "whole answer": f"{formats.milliseconds(provenance.outcome.latency_ms)}, "
            f"first token {formats.milliseconds(provenance.outcome.ttft_ms)}",
        }
    )
    scene.check(
        first.tier == "mec" and first.error is not None, "the edge server was lost in mid-answer", f"{first}"
    )
    scene.check(
        len(segments) > 1
        and last.tier != "mec"
        and last.error is None
        and answered.finish_reason is not None,
        f"the answer was completed on the {last.tier}",
        f"segments: {segments}, finish_reason: {answered.finish_reason}",
    )
    scene.check(
        sum(segment.text_chars for segment in segments) == len(text),
        "nothing was repeated and nothing lost: the segments are the whole text",
        f"{[segment.text_chars for segment in segments]} of {len(text)} characters",
    )
    scene.figures["failover"] = {
        "segments": [
            {
                "target": s.target_id,
                "output_tokens": s.output_tokens,
                "text_chars": s.text_chars,
                "error": s.error,
            }
            for s in segments
        ],
        "latency_ms": provenance.outcome.latency_ms,
        "text": text,
    }


def _client(scene: Scene) -> Client:
    """The client of these steps; made on first use, warm, and aware of the edge server."""
    from mecroute import Client

    if scene.client is not None:
        return scene.client
    scene.client = client = Client(scene.stack.config)
    # An embedding loads the device's model, so that the first answer is not timed with that in it.
    client.embeddings.create(
        model=f"device/{scene.variants['device'].model.ref}",
        input=["warm up"],
        requirements={"privacy": "device"},
    )
    deadline = time.monotonic() + _NODE_SEEN_TIMEOUT_S
    while time.monotonic() < deadline:
        # The first report of a node may come a moment late on a busy machine.
        decision = client.route(messages=[{"role": "user", "content": "Hello"}])
        if any(candidate.target.tier == "mec" for candidate in decision.candidates):
            break
        time.sleep(0.2)
    return client


def _words(requirements: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in requirements.items())


def _one_line(text: str) -> str:
    return " ".join(text.split())
