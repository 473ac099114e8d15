"""Headers of ours that clients send and MEC nodes understand."""

from __future__ import annotations

#: Milliseconds from the request's arrival after which nobody wants the answer.
DEADLINE_HEADER = "x-mecroute-deadline-ms"
#: A day: the largest deadline that says anything.
MAX_DEADLINE_MS = 86_400_000


def deadline_value(deadline_ms: float) -> str:
    """The deadline header's value.

    Args:
        deadline_ms: > 0, from now.
    """
    return f"{min(max(deadline_ms, 0.001), MAX_DEADLINE_MS):.3f}"
