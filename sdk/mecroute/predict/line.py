"""The requests at an engine that computes them together, and how they get on with each other.

An engine of ours computes steps, which nothing interrupts: in each, every running answer gets a token, and
prompts take what room there is. Of the prompts in slots the one with least left is first, short ones are
computed together, and while answers are being written a long prompt has a slice of about a second, and they
have as long after it (`engines/steps.py`). So how long a request waits depends on its own length and on what
the others have left, and not on the order of sending alone. This keeps such an engine's state in virtual
time, brought into line with the real one by what is seen of it (first tokens, ends), and runs a copy of it
ahead to foresee a request.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from mecroute.engines.steps import SHORT_PROMPT_TOKENS, STEP_ROWS, STEPS_PER_SLICE, prompt_rows

#: Of a millisecond or a token: what is left of one after so many steps is rounding.
_NOTHING = 1e-6
#: Steps that are made at a time. More come only of numbers that cannot be: a node that tells of a token an
#: hour and then of a million a second has prompts in its line that take a million steps.
_MOST_STEPS = 2000


class Pace(NamedTuple):
    """How fast an engine computes.

    Args:
        slots: requests that it computes together, >= 1.
        token_ms: a token of an answer that is alone, > 0.
        slowdown: 0..1, how much longer a token takes for each other answer.
        prefill_tokens_per_s: > 0.
    """

    slots: int
    token_ms: float
    slowdown: float
    prefill_tokens_per_s: float


class Place:
    """A request in a line.

    Args:
        prefill_ms: what its prompt takes when nothing else is computed.
        tokens: that its answer has after the first one.
        watched: whether its first token will be told.

    Attributes:
        alone: whether nothing else was in the line from its coming to its first token.
    """

    __slots__ = ("alone", "in_slot", "prefill_ms", "tokens", "watched")

    def __init__(
        self, prefill_ms: float, tokens: float, *, watched: bool = True, in_slot: bool = False
    ) -> None:
        self.prefill_ms = max(prefill_ms, _NOTHING)
        self.tokens = max(tokens, 0.0)
        self.watched = watched
        self.in_slot = in_slot
        self.alone = True


class _Step(NamedTuple):
    """What is computed together: parts of prompts and a token of each answer, or only tokens of answers."""

    begins_ms: float
    ends_ms: float
    prompts: list[tuple[Place, float]]
    tokens: float


class Line:
    """Those at one engine, by its virtual time.

    Times are milliseconds of any one clock. Not thread-safe.
    """

    __slots__ = ("_free", "_now_ms", "_owed_ms", "_owed_steps", "_pace", "_places", "_step")

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._now_ms = 0.0
        self._step: _Step | None = None
        #: What those that generate have coming after a slice of a long prompt.
        self._owed_ms = self._owed_steps = 0.0
        self._pace: Pace | None = None
        #: At that pace, this line when it has a free slot, if nothing is seen of it before.
        self._free: tuple[Pace, Line] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def join(self, now_ms: float, place: Place, pace: Pace) -> None:
        """A request was sent."""
        self._go_on(now_ms)
        self._interrupt(now_ms)
        self._pace, self._free = pace, None
        place.alone = not self._places
        for other in self._places:
            if other.prefill_ms:
                other.alone = False
        self._places.append(place)

    def first_token(self, now_ms: float, place: Place) -> None:
        """The first token of a request has come: its prompt is computed."""
        self._go_on(now_ms)
        step = self._step
        if place not in self._places or not place.prefill_ms:
            return
        if step is not None and any(one is place for one, _ in step.prompts):
            self._finish(step)
        # Else the time of this step went into that prompt instead.
        self._step, self._free, self._now_ms = None, None, now_ms
        place.prefill_ms = 0.0

    def leave(self, now_ms: float, place: Place) -> None:
        """A request is over, one way or another."""
        self._go_on(now_ms)
        if place not in self._places:
            return
        self._interrupt(now_ms)
        self._free = None
        self._places.remove(place)
        step = self._step
        if step is not None and any(one is place for one, _ in step.prompts):
            others = [part for part in step.prompts if part[0] is not place]
            self._step = step._replace(prompts=others) if others else None
            self._now_ms = now_ms

    def foresee(self, now_ms: float, place: Place, pace: Pace) -> tuple[float, float]:
        """When a request that came now would have its first token, and its last, if no other came after it.

        Returns:
            Milliseconds from now.
        """
        self._go_on(now_ms)  # as it would at the next event: when it is asked makes no difference
        steps = iter(range(_MOST_STEPS))
        ahead = self._ahead(now_ms, pace, steps)
        ahead._places.append(place)
        first_ms = None
        for _ in steps:
            ahead._run()
            if first_ms is None and not place.prefill_ms:
                first_ms = ahead._now_ms - now_ms
            if first_ms is not None and not place.tokens:
                return first_ms, ahead._now_ms - now_ms
        # As if all prompts that are left came before its first token.
        so_far_ms = max(0.0, ahead._now_ms - now_ms)
        if first_ms is None:
            first_ms = so_far_ms = so_far_ms + sum(one.prefill_ms for one in ahead._places)
        others = min(pace.slots, len(ahead._places)) - 1
        return first_ms, so_far_ms + place.tokens * pace.token_ms * (1 + pace.slowdown * others)

    def _ahead(self, now_ms: float, pace: Pace, steps: Iterator[int]) -> Line:
        """A copy as it is now, or when whoever comes now has a slot, if so many steps bring it there."""
        step = self._step
        late_ms = max(0.0, now_ms - step.ends_ms) if step is not None and step.prompts else 0.0
        if self._free is not None and self._free[0] == pace:
            ahead = self._free[1]._copy()
            ahead._now_ms = max(now_ms, ahead._now_ms + late_ms)
            return ahead
        ahead = self._copy()
        ahead._pace = pace
        ahead._interrupt(now_ms)
        for one in ahead._places:
            if not (one.prefill_ms or one.tokens):
                one.tokens = 1.0  # an answer that is longer than expected has a token left at least
        if len(ahead._places) >= pace.slots:
            while len(ahead._places) >= pace.slots:
                if next(steps, None) is None:
                    return ahead
                ahead._run()
            self._free = pace, ahead._copy()
            ahead._now_ms = max(now_ms, ahead._now_ms + late_ms)
            return ahead
        if ahead._step is not None:
            ahead._step = ahead._step._replace(ends_ms=max(ahead._step.ends_ms, now_ms))
        else:
            ahead._now_ms = now_ms
        return ahead

    def _run(self) -> None:
        """Make a step, of which the last token of an answer is the end."""
        self._plan(nobody_comes=True)
        step = self._step
        assert step is not None, "nobody is in the line"
        self._finish(step)
        self._places = [one for one in self._places if one.prefill_ms or one.tokens]

    def _copy(self) -> Line:
        line = Line()
        copies = {}
        for one in self._places:
            copies[id(one)] = copy = Place(one.prefill_ms, one.tokens, in_slot=one.in_slot)
            copy.prefill_ms = one.prefill_ms
        line._places, line._pace = list(copies.values()), self._pace
        line._now_ms, line._owed_ms, line._owed_steps = self._now_ms, self._owed_ms, self._owed_steps
        if self._step is not None:
            prompts = [(copies[id(one)], part_ms) for one, part_ms in self._step.prompts]
            line._step = self._step._replace(prompts=prompts)
        return line

    def _go_on(self, now_ms: float) -> None:
        """Make the steps that have ended by now; one that completes a prompt ends when its token is seen.

        A line that would take more of them than there can be is forgotten.
        """
        for _ in range(_MOST_STEPS):
            self._plan()
            step = self._step
            if step is None:
                self._now_ms = max(self._now_ms, now_ms)
                return
            if step.ends_ms > now_ms or any(
                one.watched and one.prefill_ms - part_ms < _NOTHING for one, part_ms in step.prompts
            ):
                return
            self._finish(step)
        self._places.clear()
        self._step, self._free, self._now_ms = None, None, now_ms

    def _interrupt(self, now_ms: float) -> None:
        """End steps that only go on with answers: whoever comes is in the next one."""
        step = self._step
        if step is not None and not step.prompts:
            takes_ms = step.ends_ms - step.begins_ms
            done = (now_ms - step.begins_ms) / takes_ms if takes_ms > 0 else 1.0
            self._finish(step, min(1.0, max(0.0, done)))
            self._now_ms = now_ms

    def _plan(self, *, nobody_comes: bool = False) -> None:
        """Decide on the next step, where none is being made and there is anything to do.

        Args:
            nobody_comes: so that steps of one prompt may be taken together.
        """
        pace = self._pace
        if self._step is not None or pace is None:
            return
        prompts: list[Place] = []
        answers, least = 0, math.inf
        free = pace.slots
        for one in self._places:
            free -= one.in_slot
        for one in self._places:
            if not one.in_slot:
                if free <= 0:
                    continue
                one.in_slot = True
                free -= 1
            if one.prefill_ms:
                prompts.append(one)
            else:
                # One that is longer than expected goes on, nobody knows for how long.
                answers += 1
                least = min(least, one.tokens or math.inf)
        if not prompts and least == math.inf:
            return
        token_ms = pace.token_ms * (1 + pace.slowdown * (answers - 1)) if answers else 0.0
        parts: list[tuple[Place, float]] = []
        if prompts:
            parts = self._parts(prompts, answers, pace.prefill_tokens_per_s)
            if nobody_comes and not answers and len(parts) == 1:
                parts = [(parts[0][0], parts[0][0].prefill_ms)]
        tokens = 1.0
        if not parts:
            tokens = least
            if prompts:
                tokens = min(tokens, max(1.0, self._owed_steps, self._owed_ms / token_ms))
        took_ms = tokens * token_ms + sum(part_ms for _, part_ms in parts)
        self._step = _Step(self._now_ms, self._now_ms + took_ms, parts, tokens if answers else 0.0)

    def _parts(self, prompts: list[Place], answers: int, speed: float) -> list[tuple[Place, float]]:
        """What a step computes of each prompt, in milliseconds of its own time."""
        prompts.sort(key=_prefill_ms)
        one_ms = 1000 / speed
        left_ms = one_ms * prompt_rows(
            [one.prefill_ms / one_ms for one in prompts],
            room=STEP_ROWS,
            speed=speed,
            generating=answers > 0,
            owed=self._owed_ms > 0 or self._owed_steps > 0,
        )
        parts = []
        for one in prompts:
            if left_ms < _NOTHING:
                break
            part_ms = min(left_ms, one.prefill_ms)
            parts.append((one, part_ms))
            left_ms -= part_ms
        return parts

    def _finish(self, step: _Step, share: float = 1.0) -> None:
        """Take what a step has computed, or a share of it."""
        self._step, self._free, self._now_ms = None, None, max(self._now_ms, step.ends_ms)
        if step.tokens:
            self._owe(step, share)
            for one in self._places:
                if one.in_slot and not one.prefill_ms:
                    one.tokens -= step.tokens * share
                    if one.tokens < _NOTHING:
                        one.tokens = 0.0
        for one, part_ms in step.prompts:
            one.prefill_ms -= part_ms * share
            if one.prefill_ms < _NOTHING:
                one.prefill_ms = 0.0

    def _owe(self, step: _Step, share: float) -> None:
        """Answers that went on beside a slice of a long prompt have as long for themselves."""
        assert self._pace is not None
        short_ms = SHORT_PROMPT_TOKENS * 1000 / self._pace.prefill_tokens_per_s
        took_ms = (step.ends_ms - step.begins_ms) * share
        if any(one.prefill_ms > short_ms for one, _ in step.prompts):
            long = sum(one.in_slot and one.prefill_ms > short_ms for one in self._places)
            self._owed_ms, self._owed_steps = took_ms / long, STEPS_PER_SLICE // long
        else:
            self._owed_ms -= took_ms
            self._owed_steps -= step.tokens * share


def _prefill_ms(place: Place) -> float:
    return place.prefill_ms
