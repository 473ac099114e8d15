"""Request traces: when each request came, and how many tokens it read and wrote.

Two published formats are read: the Azure LLM inference traces (CSV with TIMESTAMP, ContextTokens and
GeneratedTokens) and Mooncake's (JSON lines with timestamp in ms, input_length and output_length).
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from mecroute.errors import InvalidRequestError

_AZURE_COLUMNS = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}
#: More than any model takes; a larger number in a trace is damage.
_MAX_TOKENS = 10_000_000
#: The synthetic trace: log-normal lengths with the medians and spread of chat traffic.
_SYNTHETIC_PROMPT = (math.log(300), 1.0)
_SYNTHETIC_OUTPUT = (math.log(120), 0.8)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace.

    Args:
        at_s: seconds after the first one, >= 0.
        prompt_tokens: >= 1.
        output_tokens: >= 1.
        blocks: hashes of the prompt's blocks of 512 tokens, where the trace has them: equal ones hold the
            same text.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_trace(path: Path, *, limit: int | None = None) -> list[Arrival]:
    """Read a trace, sorted by time, the first request at 0.

    Args:
        limit: rows to read at most.

    Raises:
        InvalidRequestError: the file is in neither format; the message names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            rows = _mooncake(lines, path) if first.lstrip().startswith("{") else _azure(lines, path)
            arrivals = list(islice(rows, limit))
    except FileNotFoundError:
        raise InvalidRequestError(f"there is no trace at {path}", hint="name a CSV or JSONL file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequestError(f"{path} cannot be read as a trace: {error}") from error
    if not arrivals:
        raise InvalidRequestError(f"{path} holds no request")
    arrivals.sort(key=lambda arrival: arrival.at_s)
    begin = arrivals[0].at_s
    return [replace(a, at_s=a.at_s - begin) for a in arrivals]


def synthetic_trace(requests: int, *, seed: int = 0) -> list[Arrival]:
    """Poisson arrivals, one a second on average, with log-normal lengths; the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - drawn, not secret
    at, made = 0.0, []
    for _ in range(requests):
        made.append(
            Arrival(
                at,
                1 + int(rng.lognormvariate(*_SYNTHETIC_PROMPT)),
                1 + int(rng.lognormvariate(*_SYNTHETIC_OUTPUT)),
            )
        )
        at += rng.expovariate(1.0)
    return made


def fit_trace(trace: list[Arrival], *, requests: int, rate_per_s: float) -> list[Arrival]:
    """Repeat or cut a trace to a number of requests, and stretch its time to a mean rate.

    The shape of the arrivals (bursts, lulls) and every request's lengths stay as they are.

    Args:
        requests: >= 1.
        rate_per_s: mean arrivals per second, > 0.
    """
    span = trace[-1].at_s + (trace[-1].at_s / len(trace) if trace[-1].at_s > 0 else 1.0)
    repeated = [
        replace(a, at_s=a.at_s + lap * span) for lap in range(-(-requests // len(trace))) for a in trace
    ][:requests]
    length_s = repeated[-1].at_s
    stretch = requests / rate_per_s / length_s if length_s > 0 else 1.0
    return [replace(a, at_s=a.at_s * stretch) for a in repeated]


def _azure(lines: Iterator[str], path: Path) -> Iterator[Arrival]:
    reader = csv.DictReader(lines)
    missing = _AZURE_COLUMNS - set(reader.fieldnames or ())
    if missing:
        raise InvalidRequestError(
            f"{path} is no trace: it lacks the column {', '.join(sorted(missing))}",
            hint=f"a CSV trace has the columns {', '.join(sorted(_AZURE_COLUMNS))}",
        )
    for row in reader:
        place = f"{path}, line {reader.line_num}"
        try:
            at_s = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
        except (TypeError, ValueError):
            raise InvalidRequestError(f"{place}: TIMESTAMP is no time: {row['TIMESTAMP']!r}") from None
        yield Arrival(
            at_s,
            _tokens(row["ContextTokens"], place, "ContextTokens"),
            _tokens(row["GeneratedTokens"], place, "GeneratedTokens"),
        )


def _mooncake(lines: Iterator[str], path: Path) -> Iterator[Arrival]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise InvalidRequestError(f"{place} is not JSON") from None
        at_ms = row.get("timestamp") if isinstance(row, dict) else None
        if isinstance(at_ms, bool) or not isinstance(at_ms, int | float) or not math.isfinite(at_ms):
            raise InvalidRequestError(f"{place}: timestamp must be milliseconds, not {at_ms!r}")
        yield Arrival(
            at_ms / 1000,
            _tokens(row.get("input_length"), place, "input_length"),
            _tokens(row.get("output_length"), place, "output_length"),
            _blocks(row.get("hash_ids"), place),
        )


def _blocks(value: object, place: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(id, int) for id in value):
        raise InvalidRequestError(f"{place}: hash_ids must be a list of numbers")
    return tuple(value)


def _tokens(value: object, place: str, name: str) -> int:
    try:
        tokens = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else -1
    except ValueError:
        tokens = -1
    if not 0 <= tokens <= _MAX_TOKENS:
        raise InvalidRequestError(f"{place}: {name} must be a number of tokens, not {value!r}")
    return max(1, tokens)
