"""What was learned, entry by entry, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from mecroute.cascade.judged import judged_answers
from mecroute.config.cascade import CascadeConfig
from mecroute.evidence.confidence import LogprobEvidence
from mecroute.evidence.drift import DriftMonitor
from mecroute.evidence.posterior import BUCKETS, QualityEvidence
from mecroute.numbers import finite
from mecroute.state.store import LearnedRow

Kind = Literal["correction", "quality", "drift", "user", "cascade", "logprobs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: No factor's logarithm is larger.
_MOST_LOG = 100.0


def listed(rows: Iterable[LearnedRow]) -> list[dict[str, Any]]:
    """One JSON object per entry: kind, name, when it changed, what it says, and its own numbers."""
    described = {
        "correction": _correction,
        "quality": _quality,
        "drift": _drift,
        "user": _user,
        "logprobs": _logprobs,
    }
    found, pages = [], []
    for row in rows:
        if row.kind in described:
            says = described[row.kind](row)
            found.append({"kind": row.kind, "name": row.name, "at": row.at, "says": says, **row.value})
        elif row.kind == "cascade":
            pages.append(row)
    return [*found, *_judged(pages)]


def health(rows: Iterable[LearnedRow]) -> list[dict[str, Any]]:
    """One JSON object per target: corrections, usual spread and error rate, outliers, standing alarms."""
    targets: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.kind not in ("correction", "drift"):
            continue
        entry = targets.setdefault(row.name, {"target": row.name, "alarms": [], "notes": []})
        entry["at"] = max(row.at, entry.get("at", 0.0))
        if row.kind == "correction":
            entry["prefill_factor"] = finite(row.value.get("ttft_factor", 1.0))
            entry["ttft_base_ms"] = finite(row.value.get("ttft_base_ms", 0.0))
            entry["decode_factor"] = _factor(row.value.get("log_decode"))
            entry["availability"] = row.value.get("success")
        else:
            monitor = DriftMonitor()
            monitor.restore(row.name, row.value)
            entry |= {name: row.value.get(name) for name in ("samples", "sigma", "error_rate", "outliers")}
            entry["alarms"] = sorted(monitor.alarms(row.name))
            entry["notes"] = list(monitor.notes(row.name))
            if entry.get("availability") is not None:
                entry["availability"] *= monitor.availability_factor(row.name)
    return [targets[name] for name in sorted(targets)]


def _factor(log: object) -> float | None:
    number = finite(log)
    return math.exp(number) if number is not None and abs(number) <= _MOST_LOG else None


def _correction(row: LearnedRow) -> str:
    # What an earlier version kept says nothing of the first two, which then begin where a new target's do.
    prefill, base = finite(row.value.get("ttft_factor", 1.0)), finite(row.value.get("ttft_base_ms", 0.0))
    decode = _factor(row.value.get("log_decode"))
    if prefill is None or base is None or decode is None:
        return "damaged"
    answers = row.value.get("samples", 0)
    return f"prefill ×{prefill:.2f} {base:+.0f} ms, decode ×{decode:.2f}, by {answers} answers"


def _quality(row: LearnedRow) -> str:
    evidence = QualityEvidence()
    evidence.restore(row.name, row.value)
    told = []
    for bucket in range(BUCKETS):
        middle = (bucket + 0.5) / BUCKETS
        delta, weight = evidence.adjustment(row.name, middle)
        if weight:
            told.append(f"{delta:+.3f} at complexity {middle:.1f} ({weight:.1f} answers)")
    for kind, known in evidence.kinds(row.name).items():
        if known.weight:
            right, expected = known.successes / known.weight, known.predicted / known.weight
            told.append(f"{kind}: {right:.2f} right, {expected:.2f} expected ({known.weight:.1f} answers)")
    return "; ".join(told) or "damaged"


def _logprobs(row: LearnedRow) -> str:
    evidence = LogprobEvidence()
    evidence.restore(row.name, row.value)
    for _, known in evidence:
        right, wrong = known.right, known.wrong
        return (
            f"mean log-probability {right.mean:.2f} of {right.count:.0f} right answers, "
            f"{wrong.mean:.2f} of {wrong.count:.0f} wrong ones"
        )
    return "damaged"


def _drift(row: LearnedRow) -> str:
    monitor = DriftMonitor()
    monitor.restore(row.name, row.value)
    notes = monitor.notes(row.name)
    return "; ".join(notes) if notes else "no alarm"


def _judged(pages: list[LearnedRow]) -> Iterator[dict[str, Any]]:
    """One entry per target: its judged answers come in pages."""
    known = judged_answers(((row.name, row.value) for row in pages), CascadeConfig())
    for target in known.targets():
        counts = known.counts(target)
        says = (
            f"{counts['file']} judged answers from a file, {counts['live']} from feedback and comparisons; "
            f"{counts['wrong']} were wrong"
        )
        at = max(row.at for row in pages if row.name.startswith(f"{target}|"))
        yield {"kind": "cascade", "name": target, "at": at, "says": says, **counts}


def _user(row: LearnedRow) -> str:
    return f"answers of about {float(row.value.get('output_tokens') or 0):.0f} tokens"
