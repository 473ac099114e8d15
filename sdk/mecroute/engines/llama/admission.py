"""Predicts when a request would be complete, from the engine's pace and the work before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mecroute.engines.llama.pace import Pace
from mecroute.engines.steps import MIN_PREFILL_ROWS, SHORT_PROMPT_TOKENS, SLICE_S
from mecroute.errors import DeadlineExceededError, OverloadedError

#: Tokens of an answer before any has been completed: short, so that nobody is refused on a guess.
UNMEASURED_ANSWER_TOKENS = 64
#: The weight of a new answer in what is expected of the next.
_NEWS = 0.03
#: Of a token: what is left of one after so many steps is rounding.
_NOTHING = 1e-6
#: Ranges of lengths: the first 8 tokens, 8 to 15, 16 to 31 and so on, up to four million.
_FIRST_RANGE = 8
_RANGES = 20
#: An answer that goes on with less than this probability has ended, for all that is expected.
_HARDLY = 0.005


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
class Promise:
    """A request that was accepted, and waits or runs.

    Attributes:
        work: what it needs.
        left_s: seconds until its deadline; None without one.
    """

    work: Work
    left_s: float | None


class AnswerLength:
    """How long answers are going to be, from those of late.

    Of an answer that was cut off by its limit only that much is known. So a life table is kept: of the
    answers that came to a range of lengths, how many ended in it; one that was cut off in it counts half (the
    actuarial estimate: Cutler and Ederer, 1958). Where most answers are cut off, one with a higher limit is
    expected to be longer. One thread adds, any may read.
    """

    def __init__(self) -> None:
        #: Of each range: answers that came to it, and those that ended in it.
        self._came = [1.0] * _RANGES
        self._ended = [
            1 - math.exp(-(end - start) / UNMEASURED_ANSWER_TOKENS)
            for start, end in map(_bounds, range(_RANGES))
        ]

    def add(self, tokens: int, *, cut_off: bool) -> None:
        """Count a completed answer of so many tokens, and whether it was its limit that ended it."""
        last = _range_of(tokens - 1)
        for at in range(last + 1):
            self._came[at] = (1 - _NEWS) * self._came[at] + (0.5 if cut_off and at == last else 1)
            self._ended[at] *= 1 - _NEWS
        if not cut_off:
            self._ended[last] += 1

    def expected(self, limit: int) -> int:
        """Tokens to expect of an answer that may have `limit`, at least 1."""
        return self.expected_left(limit, 0)

    def expected_left(self, limit: int, done: int) -> int:
        """Tokens to expect of the rest of an answer that has `done` of them, at least 1."""
        expected, goes_on, at = 0.0, 1.0, _range_of(done)
        while done < limit and at < _RANGES and goes_on > _HARDLY:
            start, end = _bounds(at)
            stop = min(limit, end)
            ends_per_token = self._ended[at] / self._came[at] / (end - start)
            still = (1 - ends_per_token * (stop - start)) / (1 - ends_per_token * (done - start))
            expected += goes_on * (stop - done) * (1 + still) / 2
            goes_on *= still
            done = stop
            at += 1
        return max(1, round(expected))


def _range_of(token: int) -> int:
    return min(_RANGES - 1, (max(0, token) // _FIRST_RANGE).bit_length())


def _bounds(at: int) -> tuple[int, int]:
    """The first token of a range, and the first after it."""
    return (_FIRST_RANGE << at) // 2 if at else 0, _FIRST_RANGE << at


def predict_completions_s(
    waiting: Sequence[Work], *, running: Sequence[Work], slots: int, pace: Pace
) -> list[float]:
    """Seconds until each request would be complete: first of those that run, then of those that wait.

    A slot is free when its answer is complete. Of the prompts in slots the one with least left is computed,
    in slices while answers are generated side by side, so that the two slow each other down.

    Args:
        waiting: requests in the order in which they get a slot.
        running: requests that have one.
        slots: how many there are, ≥ 1.
        pace: measured.
    """
    line = [
        _InSlot(work.prefill, work.decode / pace.growth, place)
        for place, work in enumerate((*running, *waiting))
    ]
    ends_s = [0.0] * len(line)
    upcoming = iter(line)
    in_slots = [next(upcoming) for _ in running]
    now_s = 0.0
    while True:
        while len(in_slots) < slots and (following := next(upcoming, None)) is not None:
            in_slots.append(following)
        if not in_slots:
            return ends_s
        answers = [one for one in in_slots if one.prefill <= 0]
        prompt = min((one for one in in_slots if one.prefill > 0), key=lambda one: one.prefill, default=None)
        # To the next moment at which a prompt or an answer is complete.
        slice_tokens, steps = 0.0, math.inf
        if prompt is not None:
            slice_tokens = prompt.prefill
            if answers and slice_tokens > SHORT_PROMPT_TOKENS:
                # After a slice, those that generate have as long: so much of it falls to each step of both.
                whole = min(slice_tokens, max(MIN_PREFILL_ROWS, SLICE_S / pace.prompt_s))
                slice_tokens = whole / (1 + pace.of_step(len(answers), whole) / pace.of_step(len(answers)))
            steps = prompt.prefill / slice_tokens
        steps = min([steps, *(one.decode for one in answers)])
        now_s += steps * pace.of_step(len(answers), slice_tokens)
        if prompt is not None:
            prompt.prefill -= steps * slice_tokens
            if prompt.prefill < _NOTHING:
                prompt.prefill = 0
        for one in answers:
            one.decode -= steps
            if one.decode < _NOTHING:
                in_slots.remove(one)
                ends_s[one.place] = now_s


@dataclass(slots=True)
class _InSlot:
    prefill: float
    #: Steps in which its answer is to grow.
    decode: float
    place: int


def check_deadline(
    own: Work,
    *,
    name: str,
    left_s: float,
    running: Sequence[Promise],
    ahead: Sequence[Promise],
    slots: int,
    pace: Pace | None,
    behind: Sequence[Promise] = (),
) -> None:
    """Refuse a request that would be complete only after its deadline, or make another miss its own.

    One that was accepted because it could meet its deadline is not given up for one that comes later, whether
    that would take its turn or slow it down.

    Args:
        own: the request.
        name: names the engine in errors.
        left_s: seconds until the deadline; may be negative.
        running: requests that have a slot.
        ahead: waiting requests that would get one before it, in that order.
        slots: how many there are, ≥ 1.
        pace: None while it is not measured: then only a deadline that has passed is refused.
        behind: waiting requests that would get a slot after it.

    Raises:
        DeadlineExceededError: the engine could not meet it with nothing else to do.
        OverloadedError: it could, were it not for other requests.
    """
    if left_s <= 0 or pace is None:
        if left_s <= 0:
            raise _too_slow(name, 0.0, left_s)
        return
    (alone_s,) = predict_completions_s([own], running=(), slots=slots, pace=pace)
    if alone_s > left_s:
        raise _too_slow(name, alone_s, left_s)
    others = [*running, *ahead, *behind]
    in_slots, place = [promise.work for promise in running], len(ahead)
    waiting = [promise.work for promise in (*ahead, *behind)]
    after_s = predict_completions_s(
        [*waiting[:place], own, *waiting[place:]], running=in_slots, slots=slots, pace=pace
    )
    total_s = after_s.pop(len(running) + place)
    if total_s > left_s:
        raise OverloadedError(
            f"{name} would answer in about {total_s:.2f} s, {total_s - alone_s:.2f} s of them waiting for "
            f"other requests, and the deadline is in {left_s:.2f} s",
            retry_after_s=total_s - left_s,
        )
    missed = [
        place
        for place, (promise, end_s) in enumerate(zip(others, after_s, strict=True))
        if promise.left_s is not None and end_s > promise.left_s
    ]
    if not missed:
        return
    before_s = predict_completions_s(waiting, running=in_slots, slots=slots, pace=pace)
    for place in missed:
        by_s = after_s[place] - (others[place].left_s or 0.0)
        if by_s > after_s[place] - before_s[place]:
            continue  # it is too late for that one anyway
        raise OverloadedError(
            f"a request that {name} has accepted would miss its deadline by {by_s:.2f} s if this one were "
            "accepted as well",
            retry_after_s=by_s,
        )


def _too_slow(name: str, alone_s: float, left_s: float) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"{name} needs about {alone_s:.2f} s for this request, and its deadline is in {left_s:.2f} s",
        hint="ask for fewer tokens, allow more time, or use a faster target",
    )
