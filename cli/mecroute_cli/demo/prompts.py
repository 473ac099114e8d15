"""What the demo asks, and where each request is expected to be answered, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Tokens of the device tier's context window: small, as on a small device.
DEVICE_CONTEXT = 384


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the demo.

    Args:
        label: what it is, in a few words.
        prompt: the user's message.
        expected_tier: where it must be answered.
        because: why, in plain words.
        max_tokens: longest answer.
        requirements: as a caller states them.
    """

    label: str
    prompt: str
    expected_tier: str
    because: str
    max_tokens: int
    requirements: dict[str, Any] = field(default_factory=dict)


_REPORT = """Site report, harbour warehouse, week 12. On Monday the cold store on the north side lost
power for forty minutes after a breaker tripped. The night shift moved two pallets of vaccine to the
south store, logged the temperatures every ten minutes and called the electrician at 02:40. He found
moisture in the junction box behind the loading dock, dried it, replaced the seal and asked that the
gutter above it be repaired, because the water came from there. On Tuesday the forklift with number four
failed its brake test and was taken out of use; the spare part is expected on Friday, and until then the
second forklift works double shifts. The crew asked for longer breaks for its drivers, which was
granted. On Wednesday the customs office changed the forms for goods from outside the union. Eleven
shipments had to be declared again, two of them missed the evening ferry, and the customer of one, a
hospital, was told by telephone and accepted delivery a day later. On Thursday the new camera at gate
two was mounted. It reads number plates, keeps nothing for longer than a day, and has opened the gate
wrongly once, for a bus with an advertisement on its side. The supplier will lower its sensitivity. On
Friday the inventory was counted. Of 4,210 positions 17 were wrong, all of them in aisle nine, where two
labels had been swapped in January. The labels are right again, and the aisle will be counted every week
until the summer. Nobody was hurt this week. Open points: the gutter, the brake part, the camera, and a
decision on whether the hospital's goods should always travel on the early ferry, which costs ninety
euros more per crossing but leaves half a day in reserve when papers are wrong. The office manager
thinks that it is worth the money, the dispatcher does not, and both have asked for the figures of the
last two years, which the accountant will send on Monday morning."""

EASY = (
    Ask(
        label="an easy question, and nobody is in a hurry",
        prompt="What is the capital of France?",
        expected_tier="device",
        because="the device answers this as well as anyone, at no cost, and it is the nearest",
        max_tokens=24,
        requirements={"max_latency_ms": 20_000},
    ),
    Ask(
        label="a small everyday task",
        prompt="Name three fruits that are red.",
        expected_tier="device",
        because="short and simple: nothing would be gained by sending it away",
        max_tokens=24,
        requirements={"max_latency_ms": 20_000},
    ),
)

DEMANDING = Ask(
    label="a long document",
    prompt=f"{_REPORT}\n\nSummarise this report in three sentences.",
    expected_tier="mec",
    because="it does not fit the device's small context window; the edge server has room, and costs nothing",
    max_tokens=64,
    requirements={"max_latency_ms": 60_000},
)

HARDEST = Ask(
    label="a hard question where a wrong answer is expensive",
    prompt=(
        "Analyse and compare two designs for a regex engine, backtracking and automata. Derive the "
        "worst-case "
        "running time of each step by step, prove it, justify the trade-offs, evaluate which algorithm you "
        "would "
        "implement for untrusted input and why, and outline in detail a plan to optimize it."
    ),
    expected_tier="cloud",
    because="the caller asks for 0.88 predicted quality at least, and only the cloud is declared to reach it",
    max_tokens=64,
    requirements={"min_quality": 0.88},
)

PRIVATE = Ask(
    label="just as hard, but private",
    prompt=(
        "My blood test shows a ferritin of 9 and I am always tired. Analyse step by step why that may be, "
        "compare "
        "the possible causes, evaluate the evidence for each, and outline in detail a plan of what to ask my "
        "doctor."
    ),
    expected_tier="device",
    because="privacy='device' means that it never leaves the device, however demanding it is",
    max_tokens=64,
    requirements={"privacy": "device"},
)

LOST = Ask(
    label="a long document, while the edge server dies",
    prompt=f"{_REPORT}\n\nRetell this report as a detailed story, day by day, in at least 300 words.",
    expected_tier="mec",
    because="it starts on the edge server",
    max_tokens=160,
    requirements={"max_latency_ms": 60_000},
)
