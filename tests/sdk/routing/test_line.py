"""A line at an engine in virtual time: who is computed before whom, and what observing it corrects."""

from __future__ import annotations

import math
import random

import pytest

from mecroute.agents.router import RouterAgent
from mecroute.config import RouterConfig
from mecroute.context import Context, DeviceState, NetworkState, RequestFeatures
from mecroute.engines.steps import STEP_ROWS, STEP_S, prompt_rows
from mecroute.predict.line import Line, Pace, Place
from mecroute.predict.residuals import NO_CORRECTION
from mecroute.request import ingest
from mecroute.routing.dispatch import Dispatch
from mecroute.routing.ranking import MOST_IN_LINES
from mecroute.target import Target, TargetState

#: A token of a prompt takes 2 ms: a step of prompts a second, and so does a slice.
PACE = Pace(4, 20.0, 0.5, 500)
STEP_MS = STEP_S * 1000


def line_of(*places: Place, at_ms: float = 0.0) -> Line:
    line = Line()
    for place in places:
        line.join(at_ms, place, PACE)
    return line


def first_ms(line: Line, now_ms: float, prefill_ms: float, tokens: float = 0.0) -> float:
    return line.foresee(now_ms, Place(prefill_ms, tokens), PACE)[0]


def test_a_prompt_waits_for_the_shorter_ones_and_for_the_step_that_is_being_made() -> None:
    line = line_of(Place(5000, 0))
    # The rest of the step that computes it goes to the other.
    assert first_ms(line, 0, 400) == pytest.approx(STEP_MS + STEP_MS)
    assert first_ms(line, 500, 400) == pytest.approx(STEP_MS - 500 + STEP_MS)
    assert first_ms(line, 500, 6000) == pytest.approx(5000 - 500 + 6000)
    # Two short ones are computed in one step; the longer of two others comes after them all.
    line.join(600, Place(100, 0), PACE)
    assert first_ms(line, 700, 150) == pytest.approx(STEP_MS - 700 + 250)
    line.join(700, Place(300, 0), PACE)
    assert first_ms(line, 800, 400) == pytest.approx(STEP_MS - 800 + 100 + STEP_MS)


def test_who_finds_every_slot_taken_waits_for_an_answer_to_end() -> None:
    answers = [Place(20, tokens) for tokens in (50, 10, 30, 40)]
    line = line_of(*answers)
    for place in answers:
        line.first_token(80, place)
    token_ms = 20 * (1 + 0.5 * 3)
    assert first_ms(line, 80, 100) == pytest.approx(10 * token_ms + 20 * (1 + 0.5 * 2) + 100)
    # One that is longer than expected ends at any moment; until then it keeps its slot.
    assert first_ms(line, 80 + 12 * token_ms, 100) < 3 * token_ms + 100
    line.leave(80 + 12 * token_ms, answers[1])
    assert first_ms(line, 80 + 12 * token_ms, 100) == pytest.approx(100 + 20 * (1 + 0.5 * 2))


def test_answers_and_a_long_prompt_share_the_time() -> None:
    answer = Place(20, 1000)
    line = line_of(answer)
    line.first_token(20, answer)
    alone, _ = line_of().foresee(0, Place(8000, 0), PACE)
    beside, _ = line.foresee(20, Place(8000, 0), PACE)
    assert alone == pytest.approx(8000)
    assert beside == pytest.approx(2 * 8000, rel=0.1)
    # And a short prompt is in the very next step.
    assert first_ms(line, 20, 100) == pytest.approx(100 + 20)


def test_its_answer_is_slower_while_prompts_are_computed() -> None:
    first, end = line_of().foresee(0, Place(100, 100), PACE)
    assert end - first == pytest.approx(100 * 20)
    first, end = line_of(Place(20_000, 0)).foresee(0, Place(100, 100), PACE)
    assert 100 * 20 + 2000 <= end - first <= 100 * 20 + 4000


def test_what_is_seen_brings_it_into_line() -> None:
    slow, other = Place(1000, 20), Place(3000, 20)
    line = line_of(slow, other)
    # Its first token is late: the other's turn has not come, whatever was predicted.
    assert first_ms(line, 4000, 5000) == pytest.approx(3000 + 5000, rel=0.1)
    line.first_token(4000, slow)
    line.first_token(4200, other)  # much shorter than predicted
    line.first_token(4200, other)
    assert first_ms(line, 4200, 100) == pytest.approx(100 + 20 * 1.5)
    line.leave(4300, slow)
    line.leave(4300, other)
    line.leave(4300, other)
    assert len(line) == 0
    assert first_ms(line, 5000, 100) == pytest.approx(100)


def test_answers_whose_first_token_nobody_sees_go_on_by_themselves() -> None:
    line = line_of(Place(1000, 10, watched=False), Place(2000, 10, watched=False))
    assert first_ms(line, 2000, 4000) == pytest.approx(4000 + 1000, rel=0.3)
    assert first_ms(line, 9000, 400) == pytest.approx(400, rel=0.1)


def test_one_that_is_given_up_takes_no_more_time() -> None:
    given_up, other = Place(2000, 10), Place(3000, 10)
    line = line_of(given_up, other)
    line.leave(500, given_up)
    assert first_ms(line, 500, 9000) == pytest.approx(3000 + 9000, rel=0.05)
    line.leave(600, other)
    assert first_ms(line, 600, 100) == pytest.approx(100)


def test_who_was_alone_is_known() -> None:
    early, late = Place(100, 5), Place(100, 5)
    line = line_of(early)
    line.first_token(100, early)
    line.join(150, late, PACE)
    assert early.alone
    assert not late.alone


def test_when_it_is_asked_changes_nothing() -> None:
    dice = random.Random(3)
    for _ in range(50):
        asked, left_alone = Line(), Line()
        pairs: list[tuple[Place, Place]] = []
        now = 0.0
        for _ in range(40):
            now += dice.expovariate(1 / 300)
            asked.foresee(now - 1, Place(300, 10), PACE)
            event = dice.random()
            if event < 0.5 or not pairs:
                work = dice.uniform(10, 4000), dice.uniform(0, 60)
                pairs.append((Place(*work), Place(*work)))
                asked.join(now, pairs[-1][0], PACE)
                left_alone.join(now, pairs[-1][1], PACE)
            elif event < 0.8:
                one, same = dice.choice(pairs)
                asked.first_token(now, one)
                left_alone.first_token(now, same)
            else:
                one, same = pairs.pop(dice.randrange(len(pairs)))
                asked.leave(now, one)
                left_alone.leave(now, same)
        assert asked.foresee(now, Place(700, 20), PACE) == pytest.approx(
            left_alone.foresee(now, Place(700, 20), PACE), abs=PACE.token_ms
        )


@pytest.mark.parametrize("speed", [500.0, 150.0, 20.0, 4000.0])
def test_a_step_computes_what_the_engine_would(speed: float) -> None:
    dice = random.Random(9)
    one_ms = 1000 / speed
    for _ in range(500):
        tokens = sorted(
            dice.choice([1, 40, 128, 129, 500, 3000]) + dice.randrange(30) for _ in range(dice.randint(1, 6))
        )
        answers = dice.randint(0, 3)
        parts = Line()._parts([Place(n * one_ms, 5) for n in tokens], answers, speed)
        rows = prompt_rows(tokens, room=STEP_ROWS, speed=speed, generating=answers > 0, owed=False)
        assert sum(part_ms for _, part_ms in parts) / one_ms == pytest.approx(min(rows, sum(tokens)))


def test_a_slow_engine_makes_shorter_steps() -> None:
    slow = PACE._replace(prefill_tokens_per_s=100)
    line = Line()
    line.join(0, Place(40_000, 0), slow)
    # 512 tokens would take five seconds.
    first, _ = line.foresee(0, Place(1000, 0), slow)
    assert first == pytest.approx(STEP_S * 1000 + 1000)


def test_a_pace_that_cannot_be_costs_no_more_steps_than_others() -> None:
    slow, fast = Pace(2, 20.0, 0.5, 0.01), Pace(2, 20.0, 0.5, 1e6)
    line = Line()
    places = [Place(1e12, 1e5), Place(2e12, 1e5), Place(3e12, 1e5)]
    for place in places:
        line.join(0, place, slow)
    first, end = line.foresee(0, Place(100, 20), fast)
    assert 0 < first <= end < math.inf
    # As time goes on at the other pace: whatever it takes the line for, it ends.
    line.join(1, Place(100, 20), fast)
    for place in places:
        line.first_token(1e9, place)
        line.leave(1e9, place)
    first, end = line.foresee(1e9, Place(100, 20), fast)
    assert 0 < first <= end < math.inf


@pytest.mark.parametrize("beyond", [False, True])
def test_lines_that_would_take_too_long_are_not_run_ahead(
    monkeypatch: pytest.MonkeyPatch, beyond: bool
) -> None:
    asked: list[Line] = []
    foresee = Line.foresee

    def noted(line: Line, now_ms: float, place: Place, pace: Pace) -> tuple[float, float]:
        asked.append(line)
        return foresee(line, now_ms, place, pace)

    monkeypatch.setattr(Line, "foresee", noted)
    near, far = (
        TargetState(Target("mec", "m:1", node=node), frozenset({"chat"}), frozenset(), 8192, parallel=4)
        for node in ("near", "far")
    )
    dispatch = Dispatch()
    for at in range(MOST_IN_LINES + beyond):
        target = (near, far)[at % 2].target.id
        dispatch.begin(target, prefill_ms=100, output_tokens=20, pace=PACE, streams=True)
    decision = RouterAgent(RouterConfig()).decide(
        ingest("chat", model="auto", body={"messages": [{"role": "user", "content": "Hello"}]}),
        Context(RequestFeatures(0.2, (), 20, 20), DeviceState("test"), NetworkState()),
        [near, far],
        battery_floor=0.15,
        correction=lambda _: NO_CORRECTION,
        dispatch=dispatch,
    )
    assert {c.target.node for c in decision.candidates} == {"near", "far"}
    assert all(c.parts is not None and c.parts.queue_ms > 0 for c in decision.candidates)
    assert len({id(line) for line in asked}) == (0 if beyond else 2)
