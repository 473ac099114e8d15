"""Keys take turns, deadlines come first within a key, and nobody starves or is shut out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mecroute.engines.llama import GREEDY, GenerationRequest, LlamaEngine, Submitter, submitting
from mecroute.engines.llama.admission import (
    UNMEASURED_ANSWER_TOKENS,
    AnswerLength,
    Promise,
    Work,
    check_deadline,
    predict_completions_s,
)
from mecroute.engines.llama.generation import Generation
from mecroute.engines.llama.pace import Pace, PaceMeter
from mecroute.engines.llama.request_queue import PATIENCE_S, FairQueue
from mecroute.errors import DeadlineExceededError, OverloadedError

PACE = Pace(step_s=0.1, answer_s=0, prompt_s=0.01)


def waiting(key: str, name: str, *, deadline_s: float | None = None) -> Generation:
    """A request that came just now."""
    deadline_at = None if deadline_s is None else time.perf_counter() + deadline_s
    request = GenerationRequest((1,), 1, id=name, submitter=Submitter(key, deadline_at=deadline_at))
    return Generation(request, max_tokens=1, cancel=lambda _: None)


def filled(*generations: Generation) -> FairQueue:
    queue = FairQueue()
    for generation in generations:
        queue.push(generation)
    return queue


def drained(queue: FairQueue) -> list[str]:
    names = []
    while (next_one := queue.peek()) is not None:
        assert queue.pop() is next_one
        names.append(next_one.id)
    assert len(queue) == 0
    return names


def test_one_key_is_served_in_the_order_it_came() -> None:
    assert drained(filled(*(waiting("a", str(i)) for i in range(5)))) == ["0", "1", "2", "3", "4"]


def test_keys_take_turns() -> None:
    queue = filled(*(waiting("a", f"a{i}") for i in range(4)), waiting("b", "b0"), waiting("c", "c0"))
    assert [generation.id for generation in queue] == ["a0", "b0", "c0", "a1", "a2", "a3"]
    assert queue.pop().id == "a0"
    queue.push(waiting("d", "d0"))
    assert [generation.id for generation in queue] == ["b0", "c0", "a1", "d0", "a2", "a3"]
    assert drained(queue) == ["b0", "c0", "a1", "d0", "a2", "a3"]


def test_a_flood_delays_another_key_by_one_turn_only() -> None:
    queue = filled(*(waiting("flood", f"f{i}") for i in range(100)))
    for number in range(20):
        queue.push(waiting("calm", f"c{number}"))
        assert [queue.pop().id[0], queue.pop().id[0]] == ["f", "c"]
        queue.push(waiting("flood", "f"))


def test_the_earliest_deadline_is_first_within_a_key() -> None:
    late, soon = waiting("a", "late", deadline_s=20), waiting("a", "soon", deadline_s=5)
    assert drained(filled(waiting("a", "whenever"), late, soon)) == ["soon", "late", "whenever"]


def test_urgent_requests_do_not_starve_a_patient_one() -> None:
    patient = waiting("a", "patient")
    patient.submitted_at -= PATIENCE_S  # it has waited that long
    assert filled(patient, waiting("a", "urgent", deadline_s=0.1)).pop() is patient


def test_removing() -> None:
    first, second = waiting("a", "1"), waiting("b", "2")
    queue = filled(first, second)
    assert queue.remove(first)
    assert not queue.remove(first)
    assert drained(queue) == ["2"]


def test_what_is_too_late_is_taken_out() -> None:
    now = time.perf_counter()
    queue = filled(
        waiting("a", "never"), waiting("a", "soon", deadline_s=1), waiting("b", "later", deadline_s=60)
    )
    assert queue.expire(now) == []
    assert [generation.id for generation in queue.expire(now + 2)] == ["soon"]
    assert [generation.id for generation in queue.expire(now + 61)] == ["later"]
    assert queue.expire(now + 3600) == []
    assert drained(queue) == ["never"]


def test_a_full_queue_makes_room_for_a_key_that_has_less() -> None:
    queue = filled(*(waiting("a", f"a{i}") for i in range(4)), waiting("b", "b0"))
    victim = queue.make_room_for("b")
    assert victim is not None
    assert victim.id == "a3"
    queue.push(waiting("b", "b1"))
    assert queue.make_room_for("b") is None
    assert queue.make_room_for("a") is None
    victim = queue.make_room_for("c")
    assert victim is not None
    assert victim.id == "a2"
    assert drained(queue) == ["a0", "b0", "a1", "b1"]


def completion_s(
    own: Work, *, running: Sequence[Work] = (), ahead: Sequence[Work] = (), pace: Pace = PACE
) -> float:
    return predict_completions_s([*ahead, own], running=running, slots=2, pace=pace)[-1]


def test_an_idle_engine_takes_the_requests_own_time() -> None:
    assert completion_s(Work(50, 20)) == pytest.approx(0.1 + 0.5 + 2)


def test_answers_and_prompts_slow_each_other_down() -> None:
    # The shorter prompt is first; while the longer one is computed in a step, its answer gets a token.
    assert completion_s(Work(50, 20), running=[Work(100, 1)]) == pytest.approx(0.6 + 1.1 + 19 * 0.1)
    # A long one is computed in slices of 100 tokens, which take 1.1 s; then the answer beside it has as long.
    ends_s = predict_completions_s([], running=[Work(0, 20), Work(160, 1)], slots=2, pace=PACE)
    assert ends_s == pytest.approx([160 * 0.01 + 20 * 0.1, 160 / 100 * (1.1 + 1.1) + 0.1])
    busy = Pace(step_s=0.1, answer_s=0.05, prompt_s=0.01)
    assert completion_s(Work(0, 10), running=[Work(0, 10)], pace=busy) == pytest.approx(10 * 0.2)


def test_drafts_that_are_accepted_save_steps() -> None:
    pace = Pace(step_s=0.1, answer_s=0, prompt_s=0.01, growth=2)
    assert completion_s(Work(0, 20), pace=pace) == pytest.approx(1)


def test_a_slot_is_waited_for() -> None:
    running = [Work(0, 30), Work(0, 10)]  # free after 3 s and 1 s
    own = Work(0, 10)
    assert completion_s(own, running=running) == pytest.approx(2)
    # Another takes the slot that is free first.
    assert completion_s(own, running=running, ahead=[Work(0, 50)]) == pytest.approx(4)


def test_the_pace_is_learnt_from_steps() -> None:
    meter = PaceMeter()
    assert meter.pace is None
    rng = random.Random(1)
    for _ in range(400):
        answers, prompt = rng.choice([(0, 200), (1, 0), (4, 0), (8, 0), (8, 50), (3, 128)])
        seconds = (0.01 + 0.004 * answers + 0.002 * prompt) * rng.uniform(0.95, 1.05)
        meter.add(answers=answers, prompt_tokens=prompt, seconds=seconds, grown=2 * answers)
    pace = meter.pace
    assert pace is not None
    assert pace.step_s == pytest.approx(0.01, rel=0.4)
    assert pace.answer_s == pytest.approx(0.004, rel=0.2)
    assert pace.prompt_s == pytest.approx(0.002, rel=0.1)
    assert pace.growth == pytest.approx(2, rel=0.05)


def test_a_pace_needs_prompts_and_answers() -> None:
    meter = PaceMeter()
    for _ in range(20):
        meter.add(answers=2, prompt_tokens=0, seconds=0.02)
    assert meter.pace is None
    meter.add(answers=0, prompt_tokens=100, seconds=0.2)
    for _ in range(20):
        meter.add(answers=2, prompt_tokens=0, seconds=0.02)
    pace = meter.pace
    assert pace is not None
    # How it is made up is not known where all steps are alike, but how long one takes is.
    assert pace.of_step(2) == pytest.approx(0.02, rel=0.1)


def test_refusals_tell_a_busy_engine_from_a_slow_one() -> None:
    def ask(left_s: float, pace: Pace | None = PACE) -> None:
        running = [Promise(Work(0, 30), None)]
        check_deadline(Work(0, 10), name="m", left_s=left_s, running=running, ahead=(), slots=1, pace=pace)

    ask(4.1)
    with pytest.raises(OverloadedError, match=r"4\.00 s, 3\.00 s of them waiting") as caught:
        ask(3.5)
    assert caught.value.retry_after_s == pytest.approx(0.5)
    with pytest.raises(DeadlineExceededError):
        ask(0.5)
    ask(0.001, pace=None)
    with pytest.raises(DeadlineExceededError):
        ask(0, pace=None)


def test_an_urgent_request_does_not_make_an_accepted_one_late() -> None:
    def ask(*behind: Promise) -> None:
        check_deadline(
            Work(0, 10),
            name="m",
            left_s=9,
            running=[Promise(Work(0, 30), None)],
            ahead=[],
            behind=behind,
            slots=1,
            pace=PACE,
        )

    # Complete after 3 s + 2 s as it stands, and after 6 s with the new one before it.
    waits = Work(0, 20)
    ask(Promise(waits, 6.1), Promise(waits, None))
    with pytest.raises(OverloadedError, match=r"miss its deadline by 0\.50 s") as caught:
        ask(Promise(waits, None), Promise(waits, 7.5))
    assert caught.value.retry_after_s == pytest.approx(0.5)
    ask(Promise(waits, 4.9))  # it is too late for that one anyway


@pytest.mark.parametrize("is_running", [True, False])
def test_a_request_does_not_slow_down_those_that_have_no_time_to_lose(is_running: bool) -> None:
    def ask(left_s: float) -> None:
        other = [Promise(Work(0, 20), left_s)]  # 2 s, and 0.4 s more if a prompt is computed meanwhile
        running, ahead = (other, []) if is_running else ([], other)
        check_deadline(Work(40, 5), name="m", left_s=60, running=running, ahead=ahead, slots=2, pace=PACE)

    ask(2.5)
    with pytest.raises(OverloadedError, match="would miss its deadline"):
        ask(2.3)
    ask(1.9)


def test_the_expected_length_is_learnt() -> None:
    lengths = AnswerLength()
    # Before there are any: as if every 64th token were the last.
    assert lengths.expected(10**6) == pytest.approx(UNMEASURED_ANSWER_TOKENS, rel=0.1)
    assert lengths.expected(3) == 3
    for _ in range(200):
        lengths.add(200, cut_off=False)
        lengths.add(10, cut_off=True)
    assert lengths.expected(1000) == pytest.approx(200, rel=0.1)
    assert lengths.expected_left(1000, 50) == pytest.approx(150, rel=0.1)
    assert lengths.expected_left(130, 50) == pytest.approx(80, rel=0.05)
    assert 5 <= lengths.expected_left(510, 500) <= 10


def test_answers_that_their_limit_cuts_off_do_not_make_longer_ones_short() -> None:
    lengths = AnswerLength()
    for _ in range(300):
        lengths.add(20, cut_off=True)
        lengths.add(150, cut_off=True)
    assert lengths.expected(20) == 20
    assert lengths.expected(150) == pytest.approx(150, rel=0.05)
    assert lengths.expected_left(150, 100) == pytest.approx(50, rel=0.05)


def test_the_expected_length_follows_the_answers() -> None:
    lengths = AnswerLength()
    for _ in range(300):
        lengths.add(400, cut_off=False)
    for _ in range(300):
        lengths.add(12, cut_off=False)
    assert lengths.expected(1000) == pytest.approx(12, rel=0.2)


MakeEngine = Callable[..., LlamaEngine]


def request(key: str, tokens: int, *, deadline_s: float | None = None, prompt: int = 1) -> GenerationRequest:
    deadline_at = None if deadline_s is None else time.perf_counter() + deadline_s
    submitter = Submitter(key, deadline_at=deadline_at)
    return GenerationRequest((300,) * prompt, tokens, sampling=GREEDY, submitter=submitter)


def first_token_at(generation: Generation) -> float:
    usage = list(generation)[-1].usage
    assert usage is not None
    return generation.submitted_at + usage.ttft_ms / 1000


def test_the_engine_serves_keys_in_turn(engine: MakeEngine, talking_model: Path) -> None:
    one = engine(talking_model, n_ctx=4096)
    with one.submit(request("blocker", 4000)) as blocker:
        next(iter(blocker))
        flood = [one.submit(request("flood", 2)) for _ in range(5)]
        calm = one.submit(request("calm", 2))
        soon = one.submit(request("flood", 2, deadline_s=29))
    asked = {"soon": soon, "calm": calm, **{f"flood{i}": one for i, one in enumerate(flood)}}
    started = {name: first_token_at(generation) for name, generation in asked.items()}
    order = sorted(started, key=lambda name: started[name])
    assert order == ["soon", "calm", "flood0", "flood1", "flood2", "flood3", "flood4"]


def test_a_flood_gives_way_when_the_queue_is_full(engine: MakeEngine, talking_model: Path) -> None:
    one = engine(talking_model, n_ctx=4096, max_queue=3)
    with one.submit(request("flood", 4000)) as blocker:
        next(iter(blocker))
        flood = [one.submit(request("flood", 2)) for _ in range(3)]
        with pytest.raises(OverloadedError):
            one.submit(request("flood", 2))
        calm = one.submit(request("calm", 2))
        with pytest.raises(OverloadedError):
            list(flood[2])
    assert [len(list(generation)) > 0 for generation in (*flood[:2], calm)] == [True] * 3


def test_a_request_that_waits_too_long_is_told_so(engine: MakeEngine, talking_model: Path) -> None:
    one = engine(talking_model, n_ctx=4096)  # nothing measured yet: it is not refused at once
    with one.submit(request("a", 4000)) as blocker:
        late = one.submit(request("b", 2, deadline_s=0.05))
        with pytest.raises(DeadlineExceededError, match="waited"):
            list(late)
        assert not blocker.done
        assert one.stats().queued == 0


def test_a_deadline_that_the_queue_makes_impossible_is_refused_at_once(
    engine: MakeEngine, talking_model: Path
) -> None:
    one = engine(talking_model, n_ctx=4096)
    one.warm_up()
    with one.submit(request("a", 4000)) as blocker:
        next(iter(blocker))
        others = [one.submit(request(f"b{number}", 500)) for number in range(60)]
        # As fast as it is now: on a machine that does other work it may have been another speed before.
        stats = one.stats()
        assert stats.decode_tokens_per_s
        assert stats.prefill_tokens_per_s
        alone_s = UNMEASURED_ANSWER_TOKENS / stats.decode_tokens_per_s + 1 / stats.prefill_tokens_per_s
        with pytest.raises(OverloadedError, match="waiting for other requests") as caught:
            one.submit(request("c", 500, deadline_s=10 * alone_s, prompt=2))
        assert caught.value.retry_after_s > 0
        assert one.stats().queued <= 60  # the refused one is not left among them
        for other in others:
            other.cancel()


def test_the_submitter_is_the_tasks(engine: MakeEngine) -> None:
    one = engine()
    with submitting(Submitter("mine")) as mine:
        generation = one.submit(GenerationRequest((300,), 5, sampling=GREEDY))
    assert len(list(generation)) > 0
    assert mine.generations == [generation]
    assert generation.generated == 5
    outside = one.submit(GenerationRequest((300,), 1, sampling=GREEDY))
    assert list(outside)
    assert outside.request.submitter.generations == []


def test_a_submitter_may_refuse(engine: MakeEngine) -> None:
    class Thrifty(Submitter):
        def reserve(self, tokens: int) -> None:
            raise OverloadedError(f"{tokens} are too many", retry_after_s=1)

    one = engine()
    with pytest.raises(OverloadedError, match="7 are"):
        one.submit(GenerationRequest((300,), 7, submitter=Thrifty()))
    assert one.stats().queued == one.stats().running == 0
