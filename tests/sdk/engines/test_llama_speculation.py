from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Line
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mecroute.engines.llama import (
    GREEDY,
    GenerationEvent,
    GenerationRequest,
    LlamaEngine,
    SamplingParams,
)
from mecroute.engines.llama.draft_model import CATCH_UP_ROWS, DraftModel
from mecroute.engines.llama.prompt_lookup import PromptLookup
from mecroute.engines.llama.speculation import MARGIN, Acceptance
from mecroute.engines.llama.step_cost import StepCost, draft_length
from mecroute.errors import ConfigError, InvalidModelFileError
from support.tiny_gguf import IM_END

MakeEngine = Callable[..., LlamaEngine]
Decided = list[tuple[tuple[int, ...], str]]


@pytest.fixture
def free_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further rows cost nothing, as on a GPU: what is drafted then depends on acceptance alone."""
    monkeypatch.setattr(StepCost, "per_row_s", property(lambda _: 1e-9))
    monkeypatch.setattr(StepCost, "step_s", lambda _self, _rows: 1.0)


def answer(
    engine: LlamaEngine, prompt: tuple[int, ...], max_tokens: int, **fields: object
) -> tuple[str, GenerationEvent, list[GenerationEvent]]:
    request = GenerationRequest(prompt, max_tokens, **{"sampling": GREEDY, **fields})  # type: ignore[arg-type]
    events = list(engine.submit(request))
    assert events[-1].usage is not None
    assert sum(event.tokens for event in events) == events[-1].usage.completion_tokens
    return "".join(event.text for event in events), events[-1], events


def prompt_of(engine: LlamaEngine) -> tuple[int, ...]:
    return engine.tokenize_chat([{"role": "user", "content": "Say it"}])


# Where the drafts come from


def test_lookup_drafts_what_followed_the_last_occurrence() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 7, 8, 9, 1, 2, 3, 4, 5, 6])
    assert lookup.draft(3) == [], "4 5 6 has not been there before"
    lookup.extend([1, 2])
    assert lookup.draft(3) == []
    lookup.extend([3])
    assert lookup.draft(3) == [4, 5, 6], "the later of two occurrences"
    assert lookup.draft(0) == []


def test_lookup_goes_on_with_a_short_period() -> None:
    lookup = PromptLookup()
    lookup.extend([5, 6, 5, 6, 5])
    assert lookup.draft(5) == [6, 5, 6, 5, 6]


def test_lookup_finds_the_same_however_the_tokens_came() -> None:
    tokens = np.random.default_rng(0).integers(0, 3, 200).tolist()
    whole, single = PromptLookup(), PromptLookup()
    whole.extend(tokens)
    for token in tokens:
        single.extend([token])
    assert whole.draft(8) == single.draft(8) != []
    assert len(single) == 200


def test_lookup_of_few_tokens_drafts_nothing() -> None:
    lookup = PromptLookup()
    assert lookup.draft(4) == []
    lookup.extend([1, 1])
    assert lookup.draft(4) == []


# When it pays


def cost(base_s: float, per_row_s: float) -> StepCost:
    measured = StepCost()
    for step in range(40):
        rows = 1 + step % 4
        measured.add(rows, base_s + rows * per_row_s)
    return measured


def test_step_cost_finds_the_price_of_a_row() -> None:
    measured = cost(0.010, 0.002)
    assert measured.per_row_s == pytest.approx(0.002, rel=0.01)
    assert measured.step_s(8) == pytest.approx(0.026, rel=0.01)


def test_step_cost_is_unknown_while_rows_do_not_vary() -> None:
    measured = StepCost()
    for _ in range(50):
        measured.add(1, 0.01)
    assert measured.per_row_s is None
    assert measured.step_s(1) is None


def test_an_old_price_is_forgotten() -> None:
    measured = cost(0.010, 0.002)
    for _ in range(300):
        measured.add(1, 0.012)
    assert measured.per_row_s is not None
    for _ in range(300):
        measured.add(1, 0.012)
    assert measured.per_row_s is None


def test_a_price_that_stays_the_same_is_asked_more_and_more_seldom() -> None:
    measured, lasted = StepCost(), []
    for _ in range(3):
        for step in range(40):
            measured.add(1 + step % 4, 0.010 + (1 + step % 4) * 0.002)
        lasted.append(0)
        while measured.per_row_s is not None:
            measured.add(1, 0.012)
            lasted[-1] += 1
    assert lasted[2] - lasted[1] > 1.8 * (lasted[1] - lasted[0]) > 0


def test_one_slow_step_changes_little() -> None:
    measured = cost(0.010, 0.002)
    measured.add(1, 60.0)
    step_s = measured.step_s(1)
    assert step_s is not None
    assert step_s < 0.020


def length(probability: float, measured: StepCost, generating: int = 1, draft_token_s: float = 0.0) -> int:
    return draft_length(
        probability,
        generating=generating,
        cost=measured,
        draft_token_s=draft_token_s,
        margin=MARGIN,
        limit=8,
    )


def test_cheap_rows_are_drafted_far_ahead_and_dear_ones_not_at_all() -> None:
    assert length(0.9, cost(0.010, 0.0002)) == 8
    assert length(0.9, cost(0.0005, 0.010)) == 0
    # Half a step a row: worth it for one that is nearly certain, not for one that is wrong every other time.
    assert length(0.95, cost(0.005, 0.005)) > 0
    assert length(0.5, cost(0.005, 0.005)) == 0


def test_many_requests_at_a_time_leave_less_to_gain() -> None:
    measured = cost(0.010, 0.002)
    lengths = [length(0.8, measured, generating) for generating in (1, 2, 4, 16)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 0


def test_a_slow_draft_model_is_not_asked() -> None:
    assert length(0.9, cost(0.010, 0.001), draft_token_s=0.001) > 0
    assert length(0.9, cost(0.010, 0.001), draft_token_s=0.012) == 0


def test_acceptance_follows_what_was_right() -> None:
    acceptance = Acceptance(0.5)
    acceptance.add(20, wrong=False)
    assert acceptance.probability > 0.9
    for _ in range(20):
        acceptance.add(0, wrong=True)
    assert acceptance.probability < 0.15


# The text is the same


@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("n_parallel", [1, 4])
def test_greedy_text_is_the_one_without_drafts(engine: MakeEngine, decided: Decided, n_parallel: int) -> None:
    one = engine(n_parallel=n_parallel, speculation="prompt-lookup")
    with ThreadPoolExecutor(len(decided)) as pool:
        answers = list(pool.map(lambda item: answer(one, item[0], 16)[0], decided * 3))
    assert answers == [text for _, text in decided * 3]


@pytest.mark.usefixtures("free_rows")
def test_repetition_is_accepted_and_saves_steps(engine: MakeEngine, talking_model: Path, says: str) -> None:
    one = engine(talking_model, n_parallel=2, speculation="prompt-lookup")
    text, last, _ = answer(one, prompt_of(one), 200)
    assert text == (says * 20)[: len(text)]
    assert last.usage is not None
    assert last.usage.completion_tokens == 200
    stats = one.stats()
    assert stats.drafted_tokens >= stats.accepted_tokens > 140
    assert stats.tokens_total == 200
    # What is in memory afterwards is what was said: the conversation goes on from it.
    again = engine(talking_model)
    follow_up = (*prompt_of(one), *one.tokenize(text, add_special=False))
    assert answer(one, follow_up, 30)[0] == answer(again, follow_up, 30)[0]
    assert one.stats().prefix_hit_tokens > 0


@pytest.mark.usefixtures("free_rows")
def test_seeded_text_is_the_one_without_drafts(engine: MakeEngine, talking_model: Path) -> None:
    # Flat enough that drafts are often wrong, and right often enough that they are made.
    sampling = SamplingParams(temperature=2.0, top_k=0, top_p=1, min_p=0.0, seed=11, repeat_penalty=1.05)
    plain = engine(talking_model)
    one = engine(talking_model, speculation="prompt-lookup")
    for seed in range(4):
        seeded = SamplingParams(temperature=1.3, top_k=3, top_p=1, min_p=0, seed=seed)
        for chosen in (seeded, sampling):
            prompt = prompt_of(one)
            assert (
                answer(one, prompt, 80, sampling=chosen)[0] == answer(plain, prompt, 80, sampling=chosen)[0]
            )
    assert one.stats().drafted_tokens > 0


@pytest.mark.usefixtures("free_rows")
def test_wrong_drafts_leave_nothing_in_memory(
    engine: MakeEngine, decided: Decided, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted: list[int] = []

    def nonsense(_self: PromptLookup, limit: int) -> list[int]:
        drafted.append(limit)
        return [IM_END + 1 + len(drafted) % 40] * limit

    monkeypatch.setattr(PromptLookup, "draft", nonsense)
    monkeypatch.setattr(Acceptance, "probability", property(lambda _: 1.0 - 1e-9))
    one = engine(n_parallel=2, speculation="prompt-lookup")
    for prompt, text in decided:
        assert answer(one, prompt, 16)[0] == text
        # Again, on the cells that are left of the first time.
        assert answer(one, prompt, 16)[0] == text
    assert one.stats().drafted_tokens > 200
    assert one.stats().accepted_tokens < one.stats().drafted_tokens / 10


def test_drafts_end_on_text_that_does_not_repeat(engine: MakeEngine, free_rows: None) -> None:
    one = engine(speculation="prompt-lookup")
    rng = np.random.default_rng(3)
    for _ in range(6):
        prompt = tuple(rng.integers(IM_END + 1, 320, 200).tolist())
        sampling = SamplingParams(temperature=2, top_k=0, top_p=1, min_p=0, seed=1)
        answer(one, prompt, 100, sampling=sampling)
    assert one.stats().tokens_total >= 500
    assert one.stats().drafted_tokens < 60


@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("max_tokens", range(20, 30))
def test_max_tokens_is_kept_inside_an_accepted_run(
    engine: MakeEngine, talking_model: Path, max_tokens: int
) -> None:
    one, plain = engine(talking_model, speculation="prompt-lookup"), engine(talking_model)
    text, last, _ = answer(one, prompt_of(one), max_tokens)
    assert text == answer(plain, prompt_of(one), max_tokens)[0]
    assert last.usage is not None
    assert (last.usage.completion_tokens, last.finish_reason) == (max_tokens, "length")


@pytest.mark.usefixtures("free_rows")
def test_a_stop_string_ends_an_accepted_run(engine: MakeEngine, talking_model: Path, says: str) -> None:
    one = engine(talking_model, speculation="prompt-lookup")
    stop = says[3] + says[4]
    prompt = (*prompt_of(one), *one.tokenize(says * 3 + says[:5], add_special=False))
    text, last, _ = answer(one, prompt, 100, stop=(stop,))
    assert text == says[5:] + says[:3]
    assert (last.finish_reason, last.stop_met) == ("stop", stop)
    # The next request finds the memory in order.
    assert answer(one, prompt, 40)[0] == (says[5:] + says * 4)[: len(answer(one, prompt, 40)[0])]


@pytest.mark.usefixtures("free_rows")
def test_logprobs_are_those_of_each_token(engine: MakeEngine, talking_model: Path) -> None:
    def noted(one: LlamaEngine) -> list[tuple[int, float]]:
        _, _, events = answer(one, prompt_of(one), 60, top_logprobs=2)
        return [(entry.token, entry.logprob) for event in events for entry in event.logprobs]

    one = engine(talking_model, speculation="prompt-lookup")
    ours, plain = noted(one), noted(engine(talking_model))
    assert one.stats().accepted_tokens > 20
    assert [token for token, _ in ours] == [token for token, _ in plain]
    assert [value for _, value in ours] == pytest.approx([value for _, value in plain], abs=0.02)


# With a draft model


@pytest.mark.usefixtures("free_rows")
def test_a_draft_model_that_agrees_is_accepted(engine: MakeEngine, talking_model: Path, says: str) -> None:
    one = engine(talking_model, n_parallel=3, speculation="draft", draft_model=talking_model)
    with ThreadPoolExecutor(3) as pool:
        texts = list(pool.map(lambda _: answer(one, prompt_of(one), 90)[0], range(6)))
    assert texts == [(says * 9)[: len(texts[0])]] * 6
    stats = one.stats()
    assert stats.accepted_tokens > 0.9 * stats.drafted_tokens > 250


@pytest.mark.usefixtures("free_rows")
def test_a_draft_model_that_disagrees_changes_nothing_and_is_left_alone(
    engine: MakeEngine, decided: Decided, talking_model: Path
) -> None:
    one = engine(n_parallel=2, speculation="draft", draft_model=talking_model)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda item: answer(one, item[0], 16)[0], decided * 2))
    assert answers == [text for _, text in decided * 2]
    stats = one.stats()
    assert 0 < stats.drafted_tokens < stats.tokens_total / 3
    assert stats.accepted_tokens <= stats.drafted_tokens / 4


@pytest.mark.usefixtures("free_rows")
def test_a_long_prompt_is_read_by_the_draft_model_in_pieces(
    engine: MakeEngine, talking_model: Path, says: str
) -> None:
    one = engine(talking_model, speculation="draft", draft_model=talking_model)
    prompt = tuple(one.tokenize("the and " * CATCH_UP_ROWS))
    assert len(prompt) > 2 * CATCH_UP_ROWS
    text, _, _ = answer(one, prompt, 60)
    assert text == (says * 6)[: len(text)]
    assert one.stats().accepted_tokens > 20


def test_a_draft_model_with_another_vocabulary_is_refused(
    engine: MakeEngine, tmp_path: Path, random_model: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(random_model.read_bytes().replace(b"<|im_end|>", b"<|im_eot|>", 1))
    with pytest.raises(InvalidModelFileError, match="another vocabulary"):
        engine(random_model, speculation="draft", draft_model=other)
    with pytest.raises(InvalidModelFileError):
        engine(random_model, speculation="draft", draft_model=tmp_path / "missing.gguf")


@pytest.mark.parametrize(
    ("speculation", "draft_model"),
    [("draft", None), ("off", Path("x")), ("prompt-lookup", Path("x")), ("on", None)],
)
def test_settings_that_do_not_fit_together_are_refused(
    engine: MakeEngine, speculation: str, draft_model: Path | None
) -> None:
    with pytest.raises(ConfigError):
        engine(speculation=speculation, draft_model=draft_model)


def test_a_model_that_cannot_take_tokens_back_is_served_without(
    engine: MakeEngine, talking_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mecroute.engines.llama.model.LlamaModel.can_drop_suffix", property(lambda _: False, lambda *_: None),
        raising=False,
    )  # fmt: skip
    one = engine(talking_model, speculation="prompt-lookup")
    answer(one, prompt_of(one), 60)
    assert one.stats().drafted_tokens == 0


def test_what_a_row_costs_is_found_out_by_drafting(engine: MakeEngine, talking_model: Path) -> None:
    one = engine(talking_model, speculation="prompt-lookup")
    answer(one, prompt_of(one), 40)
    # Whatever this machine is like, it has been tried: prices are measured, not assumed.
    assert one.stats().drafted_tokens > 0


def test_a_draft_model_that_is_always_right_and_slow_is_left_alone(
    engine: MakeEngine, talking_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = DraftModel.draft

    def slowly(self: DraftModel, asked: Line[tuple[int, list[int], int]]) -> list[list[int]]:
        time.sleep(0.02)  # many times what a step of this model takes
        return draft(self, asked)

    monkeypatch.setattr(DraftModel, "draft", slowly)
    one = engine(talking_model, speculation="draft", draft_model=talking_model)
    answer(one, prompt_of(one), 200)
    stats = one.stats()
    assert 0 < stats.drafted_tokens < 40
    assert stats.accepted_tokens == stats.drafted_tokens
    for _ in range(5):  # nor is it for the first token of each request
        answer(one, prompt_of(one), 10)
    assert one.stats().drafted_tokens == stats.drafted_tokens
