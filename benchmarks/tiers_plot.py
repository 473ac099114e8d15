"""Draws accuracy against mean latency as an SVG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 24, 56
_TICKS = 6
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd;stroke-width:1}.small{font-size:11px}"
)


@dataclass(frozen=True, slots=True)
class Series:
    """Points to draw in one colour.

    Args:
        points: mean latency in ms and accuracy 0..1.
        line: `solid`, `dashed`, or none.
        labels: beside the points, as many or none.
        bars: 95% intervals of the accuracies, as many or none.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    line: str = ""
    labels: Sequence[str] = ()
    bars: Sequence[tuple[float, float]] = ()
    dots: bool = True


def draw(series: Sequence[Series], title: str) -> str:
    """The picture, as the text of an SVG file."""
    every = [point for one in series for point in one.points]
    highs = [high for one in series for _, high in one.bars] + [y for _, y in every]
    lows = [low for one in series for low, _ in one.bars] + [y for _, y in every]
    right = _round_up(max(x for x, _ in every) * 1.05)
    bottom, top = math.floor(min(lows) * 10) / 10, math.ceil(max(highs) * 10) / 10
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_of(ms: float) -> float:
        return round(_LEFT + width * ms / right, 1)

    def y_of(accuracy: float) -> float:
        return round(_TOP + height * (top - accuracy) / (top - bottom), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    floor = y_of(bottom)
    for tick in range(_TICKS + 1):
        ms, share = right * tick / _TICKS, bottom + (top - bottom) * tick / _TICKS
        x, y = x_of(ms), y_of(share)
        parts += [
            f'<line class="grid" x1="{x}" y1="{_TOP}" x2="{x}" y2="{floor}"/>',
            f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>',
            f'<text class="small" x="{x}" y="{floor + 18}" text-anchor="middle">{ms:.0f}</text>',
            f'<text class="small" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>',
        ]
    middle = _TOP + height / 2
    turned = f'x="16" y="{middle}" transform="rotate(-90 16 {middle})"'
    parts += [
        f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 12}" text-anchor="middle">mean latency, ms</text>',
        f'<text {turned} text-anchor="middle">right answers</text>',
    ]
    for one in series:
        where = [(x_of(x), y_of(y)) for x, y in one.points]
        if one.line:
            dash = ' stroke-dasharray="6 4"' if one.line == "dashed" else ""
            path = " ".join(f"{x},{y}" for x, y in where)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{one.colour}" stroke-width="2"{dash}/>'
            )
        for (x, _), (low, high) in zip(where, one.bars, strict=False):
            parts.append(
                f'<line x1="{x}" y1="{y_of(low)}" x2="{x}" y2="{y_of(high)}" stroke="{one.colour}"/>'
            )
        if one.dots:
            parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="{one.colour}"/>' for x, y in where]
        for (x, y), label in zip(where, one.labels, strict=False):
            anchor, at = ("end", x - 8) if x > _LEFT + width * 0.8 else ("start", x + 8)
            parts.append(
                f'<text class="small" x="{at}" y="{y + 4}" text-anchor="{anchor}">{escape(label)}</text>'
            )
    top_of_key = floor - 18 * len(series) - 6
    for place, one in enumerate(series):
        y = top_of_key + 18 * place
        parts += [
            f'<rect x="{_WIDTH - 300}" y="{y - 6}" width="16" height="5" fill="{one.colour}"/>',
            f'<text class="small" x="{_WIDTH - 278}" y="{y}">{escape(one.name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _round_up(value: float) -> float:
    """To a number that divides into even ticks."""
    step = 10 ** math.floor(math.log10(max(value, 1e-9))) / 5
    return math.ceil(value / (step * _TICKS)) * step * _TICKS
