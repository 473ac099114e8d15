"""The load of one model on one node, a header of every answer: `r=3;q=0;p=8;pf=812.5;de=41.2;sl=0.31;pt=512`.

Written by the MEC server, read by clients, so that a client in use need not ask a node how it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LOAD_HEADER = "x-mecroute-load"
#: Longer than any that we write: it is not parsed.
_MAX_CHARS = 256
_MAX_COUNT = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How busy a model was when it began to answer. Speeds in tokens/s, None where nothing was measured.

    Args:
        running: requests that are being answered, this one among them.
        queued: requests that wait.
        parallel: requests that can be answered at once, >= 1.
        decode_tokens_per_s: of one request that is alone.
        decode_slowdown: 0..1, how much longer a token takes for each other request, as a share.
        prefill_left_tokens: prompt tokens of accepted requests that are not computed yet.
    """

    running: int
    queued: int
    parallel: int
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    decode_slowdown: float | None = None
    prefill_left_tokens: int = 0

    def encode(self) -> str:
        """The header's value."""
        parts = [f"r={self.running}", f"q={self.queued}", f"p={self.parallel}"]
        if self.prefill_tokens_per_s is not None:
            parts.append(f"pf={self.prefill_tokens_per_s:.1f}")
        if self.decode_tokens_per_s is not None:
            parts.append(f"de={self.decode_tokens_per_s:.1f}")
        if self.decode_slowdown is not None:
            parts.append(f"sl={self.decode_slowdown:.3f}")
        if self.prefill_left_tokens:
            parts.append(f"pt={self.prefill_left_tokens}")
        return ";".join(parts)

    @classmethod
    def parse(cls, text: str | None) -> ModelLoad | None:
        """Read a header's value; None where there is none or it is not one (a proxy may have mangled it)."""
        if text is None or len(text) > _MAX_CHARS:
            return None
        fields: dict[str, str] = {}
        for part in text.split(";"):
            name, _, value = part.strip().partition("=")
            fields[name] = value
        running, queued, parallel = (_count(fields.get(name)) for name in ("r", "q", "p"))
        if running is None or queued is None or not parallel:
            return None
        return cls(
            running,
            queued,
            parallel,
            _rate(fields.get("pf")),
            _rate(fields.get("de")),
            _share(fields.get("sl")),
            _count(fields.get("pt")) or 0,
        )


def _count(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdigit():
        return None
    value = int(text)
    return value if value <= _MAX_COUNT else None


def _rate(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _share(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
