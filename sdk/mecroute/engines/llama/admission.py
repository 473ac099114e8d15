"""Predicts when a request would be complete, from measured rates and the work before it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mecroute.errors import DeadlineExceededError, OverloadedError

#: Tokens of an answer before any has been completed: short, so that nobody is refused on a guess.
UNMEASURED_ANSWER_TOKENS = 64
#: The weight of a new answer in the expected length.
_NEWS = 0.1


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of a request.

    Attributes:
        prefill: prompt tokens to compute.
        decode: tokens to generate.
    """

    prefill: int
    decode: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured speeds.

    Attributes:
        prefill: prompt tokens per second, of all requests together; > 0.
        decode: tokens per second that one running request gets; > 0.
    """

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Promise:
    """A request that was accepted and waits.

    Attributes:
        work: what it needs.
        left_s: seconds until its deadline; None without one.
    """

    work: Work
    left_s: float | None


class AnswerLength:
    """How long answers have been of late. One thread adds, any may read."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def add(self, tokens: int, *, cut_off: bool) -> None:
        """Count a completed answer; one that was cut off by its limit says only that it is no shorter."""
        if self._mean is None:
            if not cut_off:
                self._mean = float(tokens)
        elif not cut_off or tokens > self._mean:
            self._mean += _NEWS * (tokens - self._mean)

    def expected(self, limit: int) -> int:
        """Tokens to expect of an answer that may have `limit`, at least 1."""
        mean = UNMEASURED_ANSWER_TOKENS if self._mean is None else self._mean
        return max(1, min(limit, round(mean)))

    def expected_left(self, limit: int, done: int) -> int:
        """Tokens to expect of the rest of an answer; one that is longer than most goes on for a while."""
        expected = self.expected(limit)
        return max(1, min(limit - done, max(expected - done, expected // 2)))


def predict_completion_s(
    own: Work, *, running: Iterable[Work], ahead: Iterable[Work], slots: int, rates: Rates
) -> float:
    """Seconds until `own` would be complete if it were queued now.

    Prompts are computed one after another, at a rate that all share; answers are generated side by side, at a
    rate that each gets. A slot is free when its answer is complete.

    Args:
        own: the request.
        running: requests that have a slot, in the order in which they got it.
        ahead: waiting requests that would get one before it, in that order.
        slots: how many there are, ≥ 1.
        rates: measured speeds.
    """
    return _completions_s((*ahead, own), running=running, slots=slots, rates=rates)[-1]


def _completions_s(
    waiting: Iterable[Work], *, running: Iterable[Work], slots: int, rates: Rates
) -> list[float]:
    """Seconds until each of the waiting requests, in the order in which they get a slot, is complete."""
    prefill_free_s = 0.0
    ends_s: list[float] = []
    for work in running:
        prefill_free_s += work.prefill / rates.prefill
        ends_s.append((prefill_free_s if work.prefill else 0.0) + work.decode / rates.decode)
    ends_s += [0.0] * (slots - len(ends_s))
    heapq.heapify(ends_s)
    completions_s = []
    for work in waiting:
        started_s = max(heapq.heappop(ends_s), prefill_free_s)
        prefill_free_s = started_s + work.prefill / rates.prefill
        completions_s.append(prefill_free_s + work.decode / rates.decode)
        heapq.heappush(ends_s, completions_s[-1])
    return completions_s


def check_deadline(
    own: Work,
    *,
    name: str,
    left_s: float,
    running: Sequence[Work],
    ahead: Sequence[Work],
    slots: int,
    rates: Rates | None,
    behind: Sequence[Promise] = (),
) -> None:
    """Refuse a request that would be complete only after its deadline, or make another miss its own.

    Args:
        own, running, ahead, slots: see `predict_completion_s`.
        name: names the engine in errors.
        left_s: seconds until the deadline; may be negative.
        rates: None while they are not measured: then only a deadline that has passed is refused.
        behind: waiting requests that would get a slot after it. One that was accepted because it could meet
            its deadline is not given up for one that comes later.

    Raises:
        DeadlineExceededError: the engine could not meet it with nothing else to do.
        OverloadedError: it could, were it not for the requests before this one.
    """
    alone_s = total_s = 0.0
    if rates is not None:
        alone_s = predict_completion_s(own, running=(), ahead=(), slots=slots, rates=rates)
        total_s = predict_completion_s(own, running=running, ahead=ahead, slots=slots, rates=rates)
    if left_s <= 0 or alone_s > left_s:
        raise DeadlineExceededError(
            f"{name} needs about {alone_s:.2f} s for this request, and its deadline is in {left_s:.2f} s",
            hint="ask for fewer tokens, allow more time, or use a faster target",
        )
    if total_s > left_s:
        raise OverloadedError(
            f"{name} would answer in about {total_s:.2f} s, {total_s - alone_s:.2f} s of them waiting for "
            f"other requests, and the deadline is in {left_s:.2f} s",
            retry_after_s=total_s - left_s,
        )
    if rates is not None and any(promise.left_s is not None for promise in behind):
        _keep_promises(own, name=name, running=running, ahead=ahead, behind=behind, slots=slots, rates=rates)


def _keep_promises(
    own: Work,
    *,
    name: str,
    running: Sequence[Work],
    ahead: Sequence[Work],
    behind: Sequence[Promise],
    slots: int,
    rates: Rates,
) -> None:
    later = [promise.work for promise in behind]
    without = _completions_s((*ahead, *later), running=running, slots=slots, rates=rates)
    with_it = _completions_s((*ahead, own, *later), running=running, slots=slots, rates=rates)
    for promise, before_s, after_s in zip(
        behind, without[len(ahead) :], with_it[len(ahead) + 1 :], strict=True
    ):
        if promise.left_s is not None and before_s <= promise.left_s < after_s:
            raise OverloadedError(
                f"a request that {name} has accepted would miss its deadline by "
                f"{after_s - promise.left_s:.2f} s if this more urgent one were accepted as well",
                retry_after_s=after_s - promise.left_s,
            )
