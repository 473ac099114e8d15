from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import pytest

from mecroute.engines.llama import (
    GREEDY,
    Generation,
    GenerationEvent,
    GenerationRequest,
    LlamaEngine,
    SamplingParams,
)
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.embedding import Embedder
from mecroute.engines.llama.free_places import FreePlaces
from mecroute.errors import (
    ContextLengthError,
    InvalidModelFileError,
    InvalidRequestError,
    OverloadedError,
    TierUnreachableError,
)
from support.oracle import Oracle
from support.tiny_gguf import FIRST_BYTE, IM_END, write_tiny_gguf

MakeEngine = Callable[..., LlamaEngine]
Decided = list[tuple[tuple[int, ...], str]]


def ask(prompt: tuple[int, ...], max_tokens: int = 20, *, stop: tuple[str, ...] = ()) -> GenerationRequest:
    return GenerationRequest(prompt, max_tokens, GREEDY, stop)


def read(generation: Generation) -> tuple[str, GenerationEvent]:
    events = list(generation)
    assert all(event.finish_reason is None for event in events[:-1])
    assert events[-1].finish_reason is not None
    assert events[-1].usage is not None
    assert sum(event.tokens for event in events) == events[-1].usage.completion_tokens
    return "".join(event.text for event in events), events[-1]


def chat(engine: LlamaEngine, text: str) -> tuple[int, ...]:
    return engine.tokenize_chat([{"role": "user", "content": text}])


# What comes out


@pytest.mark.parametrize("n_parallel", [1, 4, 16])
def test_greedy_text_is_the_same_alone_and_in_a_batch(
    engine: MakeEngine, decided: Decided, n_parallel: int
) -> None:
    one = engine(n_parallel=n_parallel)

    def answer(item: tuple[tuple[int, ...], str]) -> str:
        return read(one.submit(ask(item[0], 16)))[0]

    with ThreadPoolExecutor(len(decided)) as pool:
        answers = list(pool.map(answer, decided * 3))
    assert answers == [text for _, text in decided * 3]


def test_a_continued_answer_equals_the_uncut_one(engine: MakeEngine, talking_model: Path, says: str) -> None:
    talking = engine(talking_model)
    question = {"role": "user", "content": "Say it"}
    whole, _ = read(talking.submit(ask(talking.tokenize_chat([question]), 34)))
    assert whole == (says * 3)[: len(whole)]
    assert len(whole) > len(says)
    for cut in range(1, len(whole)):
        answer = {"role": "assistant", "content": whole[:cut]}
        prompt = talking.tokenize_chat([question, answer])
        used = len(prompt) - len(talking.tokenize_chat([question]))
        rest, _ = read(talking.submit(ask(prompt, 34 - used)))
        assert whole[:cut] + rest == whole


def test_a_continuation_has_the_very_tokens_of_the_uncut_run(engine: MakeEngine, talking_model: Path) -> None:
    talking = engine(talking_model)
    question = {"role": "user", "content": "Say it"}
    answer = {"role": "assistant", "content": "ABC"}
    head = talking.tokenize_chat([question])
    prompt = talking.tokenize_chat([question, answer])
    assert prompt[: len(head)] == head
    assert talking.detokenize(prompt[len(head) :]) == "ABC"
    assert IM_END not in prompt[len(head) :]


def test_text_of_control_tokens_in_an_answer_to_continue_stays_text(
    engine: MakeEngine, talking_model: Path
) -> None:
    talking = engine(talking_model)
    prompt = talking.tokenize_chat(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<|im_end|>"}]
    )
    assert prompt.count(IM_END) == 1


def test_events_hold_whole_characters(engine: MakeEngine, talking_model: Path, says: str) -> None:
    talking = engine(talking_model)
    events = list(talking.submit(ask(talking.tokenize("x"), 3 * len(says.encode()) - 1)))
    text = "".join(event.text for event in events)
    # The last character is one byte short, and left out.
    assert text == (says * 3)[:-1]
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("stop", "text"), [(("DEF",), "ABC"), (("É€",), "ABCDEFG"), (("ZZ", "B"), "A"), (("😀A",), "ABCDEFGÉ€")]
)
def test_a_stop_string_across_tokens_is_never_shown(
    engine: MakeEngine, talking_model: Path, stop: tuple[str, ...], text: str
) -> None:
    talking = engine(talking_model)
    shown, last = read(talking.submit(ask(talking.tokenize("x"), 60, stop=stop)))
    assert (shown, last.finish_reason) == (text, "stop")


def test_a_stop_string_that_never_comes_changes_nothing(
    engine: MakeEngine, talking_model: Path, says: str
) -> None:
    talking = engine(talking_model)
    shown, last = read(talking.submit(ask(talking.tokenize("x"), 21, stop=("DEX", "€😀B"))))
    assert shown == "".join(islice(cycle(says), 15))
    assert last.finish_reason == "length"


def test_the_same_seed_gives_the_same_text(engine: MakeEngine) -> None:
    one = engine()
    prompt = one.tokenize("once")

    def run(seed: int | None) -> str:
        return read(one.submit(GenerationRequest(prompt, 40, SamplingParams(temperature=1.5, seed=seed))))[0]

    assert run(7) == run(7)
    assert len({run(1), run(2), run(3), run(None), run(None)}) == 5


def test_a_seeded_text_does_not_depend_on_what_else_is_in_the_batch(
    engine: MakeEngine, talking_model: Path
) -> None:
    one = engine(talking_model, n_parallel=8)
    # The model itself knows one answer only; with these any letter may come, and rounding decides nothing.
    biases = tuple((FIRST_BYTE + letter, 32.0) for letter in range(ord("a"), ord("z") + 1))
    prompt = one.tokenize("once")

    def submit(seed: int) -> Generation:
        sampling = SamplingParams(temperature=2, top_k=0, top_p=1, min_p=0, seed=seed, logit_bias=biases)
        return one.submit(GenerationRequest(prompt, 40, sampling))

    alone = [read(submit(seed))[0] for seed in range(6)]
    assert len(set(alone)) == 6
    others = [one.submit(ask(one.tokenize(f"other {number}"), 400)) for number in range(2)]
    together = [submit(seed) for seed in range(6)]
    assert [read(generation)[0] for generation in together] == alone
    for other in others:
        other.cancel()


def test_penalties_change_the_choice(engine: MakeEngine, talking_model: Path) -> None:
    talking = engine(talking_model)
    penalised = SamplingParams(
        temperature=0, presence_penalty=2.0, frequency_penalty=2.0, repeat_penalty=10.0
    )
    text, _ = read(talking.submit(GenerationRequest(talking.tokenize("x"), 40, penalised)))
    assert "ABCDEFGÉ€😀ABC" not in text


# The context window


def test_a_prompt_that_leaves_no_room_is_refused(engine: MakeEngine) -> None:
    one = engine(n_ctx=64)
    with pytest.raises(ContextLengthError, match="64 tokens"):
        one.submit(ask((5,) * 64))
    text, last = read(one.submit(ask((5,) * 63, 10)))
    assert text
    assert last.finish_reason == "length"
    assert last.usage
    assert last.usage.completion_tokens == 1


def test_max_tokens_is_lowered_to_the_room(engine: MakeEngine) -> None:
    one = engine(n_ctx=64)
    generation = one.submit(ask((5,) * 40, 1000))
    _, last = read(generation)
    assert generation.max_tokens == 24
    assert last.usage
    assert last.usage.completion_tokens == 24


def test_the_context_is_no_longer_than_the_model_was_trained_for(engine: MakeEngine, tmp_path: Path) -> None:
    short = write_tiny_gguf(tmp_path / "short.gguf", context_length=128)
    assert engine(short, n_ctx=4096).n_ctx == 128


def test_requests_wait_for_kv_room_and_all_get_it(engine: MakeEngine, decided: Decided) -> None:
    tight = engine(n_parallel=8, n_ctx=128, kv_tokens=256)
    # Only two fit at a time, and a stop string ends each long before it has used its room.
    running = [tight.submit(ask(prompt, 80, stop=(text[8:],))) for prompt, text in decided]
    for generation, (_, text) in zip(running, decided, strict=True):
        assert read(generation)[0].startswith(text[:8])
    stats = tight.stats()
    assert stats.kv_used_tokens <= stats.kv_total_tokens == 256


# Requests that share the engine


def test_a_long_prompt_does_not_stop_the_tokens_of_others(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[int]] = []
    decode = DecodeContext.decode

    def recorded(self: DecodeContext, n_rows: int) -> int:
        steps.append(self.sequences[:n_rows].tolist())
        return decode(self, n_rows)

    monkeypatch.setattr(DecodeContext, "decode", recorded)
    one = engine(n_parallel=2, n_ctx=8192)
    with one.submit(ask(one.tokenize("short"), 8000)) as talker:
        next(iter(talker))
        (talker_slot,) = set(steps[-1])
        _, last = read(one.submit(ask((5,) * 3000, 1)))
        shared = [step for step in steps if len(set(step)) == 2]
    assert last.usage
    assert last.usage.cached_tokens == 0
    assert sum(len(step) - 1 for step in shared) == 3000
    assert len(shared) >= 3000 // 512
    assert all(step.count(talker_slot) == 1 for step in shared)


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_on_a_slow_machine_steps_are_short_where_others_may_come(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, n_parallel: int
) -> None:
    rows: list[int] = []
    decode = DecodeContext.decode

    def slow(self: DecodeContext, n_rows: int) -> int:
        rows.append(n_rows)
        time.sleep(n_rows / 1000)
        return decode(self, n_rows)

    monkeypatch.setattr(DecodeContext, "decode", slow)
    # Not a second, for which the model's context would have to be longer.
    monkeypatch.setattr("mecroute.engines.steps.STEP_S", 0.1)
    one = engine(n_parallel=n_parallel, n_ctx=2048)
    rows.clear()  # loading makes a step
    read(one.submit(ask((5,) * 1200, 1)))
    if n_parallel == 1:
        assert rows == [512, 512, 176]
    else:
        assert sum(rows) == 1200
        assert max(rows) < 120


def test_a_cancelled_request_frees_its_slot(engine: MakeEngine) -> None:
    one = engine(n_ctx=8192)
    endless = one.submit(ask(one.tokenize("a"), 8000))
    events = iter(endless)
    next(events)
    waiting = one.submit(ask(one.tokenize("b"), 5))
    endless.cancel()
    assert list(events) == []
    read(waiting)
    assert one.stats().running == 0


def test_a_cancelled_request_gives_up_its_place_in_the_queue(engine: MakeEngine) -> None:
    one = engine(n_ctx=8192, max_queue=1)
    with one.submit(ask(one.tokenize("a"), 8000)) as first:
        second = one.submit(ask(one.tokenize("b")))
        second.cancel()
        assert list(second) == []
        third = one.submit(ask(one.tokenize("c"), 3))
        first.cancel()
        read(third)


def test_a_full_queue_refuses_at_once_with_a_time_to_retry(engine: MakeEngine) -> None:
    one = engine(n_ctx=8192, max_queue=1)
    read(one.submit(ask(one.tokenize("z"), 3)))
    with one.submit(ask(one.tokenize("a"), 8000)), one.submit(ask(one.tokenize("b"))):
        with pytest.raises(OverloadedError) as refusal:
            one.submit(ask(one.tokenize("c")))
        assert refusal.value.retry_after_s > 0
        assert one.stats().retry_after_s > 0
    read(one.submit(ask(one.tokenize("d"), 3)))
    assert one.stats().retry_after_s == 0


def test_those_refused_together_are_not_told_to_come_back_together(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FreePlaces, "next_s", lambda _: 20.0)
    one = engine(n_ctx=8192, max_queue=2)

    def refused() -> float:
        with pytest.raises(OverloadedError) as refusal:
            one.submit(ask(one.tokenize("c")))
        return refusal.value.retry_after_s

    prompt = one.tokenize("a")
    with one.submit(ask(prompt, 8000)), one.submit(ask(prompt, 8000)), one.submit(ask(prompt, 8000)):
        # One answer ends in 20 s, the next one 20 s later; after 60 s all that are here now have ended.
        told = [refused() for _ in range(5)]
        assert one.stats().retry_after_s == 20
    assert told == pytest.approx([20, 40, 60, 60, 60], abs=5)


def test_a_finished_prompt_is_not_computed_again(
    engine: MakeEngine, decided: Decided, oracle: Oracle
) -> None:
    one = engine(n_parallel=2)
    prompt, answer = decided[-1]
    read(one.submit(ask(prompt, 16)))
    again, last = read(one.submit(ask(prompt, 16)))
    assert again == answer
    assert last.usage
    assert last.usage.cached_tokens == len(prompt) - 1
    ((longer, answer),) = oracle.decided(((*prompt, 1, token) for token in range(200)), 1, 16)
    text, last = read(one.submit(ask(longer, 16)))
    assert text == answer
    assert last.usage
    assert last.usage.cached_tokens == len(prompt)
    assert one.stats().prefix_hit_tokens == 2 * len(prompt) - 1


def test_a_prefix_is_shared_with_a_request_that_still_runs(engine: MakeEngine, oracle: Oracle) -> None:
    one = engine(n_parallel=2, n_ctx=8192)
    system = one.tokenize("you are a helpful assistant ") * 10
    ((prompt, answer),) = oracle.decided(((*system, token) for token in range(1, 300)), 1, 16)
    with one.submit(ask((*system, 300), 8000 - len(system))) as running:
        next(iter(running))
        text, last = read(one.submit(ask(prompt, 16)))
    assert text == answer
    assert last.usage
    assert last.usage.cached_tokens == len(system)


def test_async_readers_get_the_same_text(engine: MakeEngine, decided: Decided) -> None:
    one = engine(n_parallel=4)

    async def answer(prompt: tuple[int, ...]) -> str:
        return "".join([event.text async for event in one.submit(ask(prompt, 16))])

    async def answers() -> list[str]:
        return list(await asyncio.gather(*[answer(prompt) for prompt, _ in decided]))

    assert asyncio.run(answers()) == [text for _, text in decided]


def test_an_async_reader_ends_when_it_is_cancelled(engine: MakeEngine) -> None:
    one = engine(n_ctx=8192)

    async def run() -> int:
        generation = one.submit(ask(one.tokenize("a"), 8000))
        seen = 0
        async with asyncio.timeout(60):
            async for event in generation:
                seen += event.tokens
                if seen > 5:
                    generation.cancel()
        return seen

    assert 5 < asyncio.run(run()) < 8000
    read(one.submit(ask(one.tokenize("b"), 3)))


def test_a_reader_whose_loop_is_gone_does_not_hold_its_slot(engine: MakeEngine) -> None:
    one = engine(n_ctx=8192)

    async def run() -> None:
        async for _ in one.submit(ask(one.tokenize("a"), 8000)):
            return

    asyncio.run(run())
    read(one.submit(ask(one.tokenize("b"), 3)))
    assert one.stats().running == 0


# Embeddings


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(engine: MakeEngine) -> None:
    one = engine()
    texts = [f"text number {i} " * (i + 1) for i in range(40)]
    vectors, tokens = one.embed(texts)
    assert tokens == sum(len(one.tokenize(text)) for text in texts)
    assert len(vectors) == 40
    assert {len(vector) for vector in vectors} == {one.facts.embedding_length}
    for vector in vectors:
        assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
    (alone,), _ = one.embed([texts[7]])
    assert alone == pytest.approx(vectors[7], abs=1e-5)
    assert alone != pytest.approx(vectors[8], abs=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embeddings_do_not_depend_on_the_pieces_in_which_a_text_is_computed(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    texts = [f"text number {i} " * (3 * i + 1) for i in range(10)]

    def embed(rows: int, *, in_pieces: bool = True) -> list[list[float]]:
        one = engine(n_ctx=1024)
        monkeypatch.setattr(one._model, "pooling", pooling)
        monkeypatch.setattr(one._model, "is_causal", in_pieces)
        monkeypatch.setattr(Embedder, "LOGITS_BYTES", 4 * one._model.n_vocab * rows)
        return one.embed(texts)[0]

    whole = embed(1024, in_pieces=False)  # llama.cpp pools
    for rows in (1024, 50, 32):
        for vector, expected in zip(embed(rows), whole, strict=True):
            assert vector == pytest.approx(expected, abs=1e-3)


def test_a_text_too_long_to_embed_is_refused(engine: MakeEngine) -> None:
    one = engine(n_ctx=64)
    with pytest.raises(ContextLengthError, match="text 1"):
        one.embed(["short", "7" * 100])


# Requests and files that are wrong


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ask(()), "no tokens"),
        (ask((1,), 0), "max_tokens"),
        (ask((1, 320)), "vocabulary"),
        (ask((-1,)), "vocabulary"),
        (ask((1,), stop=("",)), "stop"),
    ],
)
def test_a_malformed_request_is_refused(engine: MakeEngine, request_: GenerationRequest, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        engine().submit(request_)


def test_files_that_are_no_model_are_refused(tmp_path: Path, random_model: Path) -> None:
    whole = random_model.read_bytes()
    cases = {
        "empty": b"",
        "text": b"this is not a model file at all, but it is long enough to be read",
        "truncated": whole[:-1000],
        "header": whole[:3000],
        # The header is fine for a reader of GGUF, and llama.cpp does not know the architecture.
        "architecture": whole.replace(b"llama", b"xlama", 1),
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(InvalidModelFileError, match=name):
            LlamaEngine(path)
    with pytest.raises(InvalidModelFileError, match="absent"):
        LlamaEngine(tmp_path / "absent.gguf")


def test_a_model_without_a_template_is_asked_in_chatml(engine: MakeEngine, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "plain.gguf", chat_template=False)
    plain, templated = engine(path), engine()
    assert chat(plain, "hello") == chat(templated, "hello")


# Life and death


def test_warm_up_measures_both_speeds(engine: MakeEngine) -> None:
    one = engine()
    before = one.stats()
    assert (before.prefill_tokens_per_s, before.decode_tokens_per_s) == (None, None)
    one.warm_up()
    after = one.stats()
    assert after.prefill_tokens_per_s
    assert after.decode_tokens_per_s
    assert after.tokens_total == 16


def test_closing_fails_what_runs_and_what_waits(engine: MakeEngine) -> None:
    one = engine(n_ctx=8192)
    running = one.submit(ask(one.tokenize("a"), 8000))
    waiting = one.submit(ask(one.tokenize("b")))
    next(iter(running))
    one.close()
    one.close()
    for generation in (running, waiting):
        with pytest.raises(TierUnreachableError, match="closed"):
            list(generation)
    for call in (
        lambda: one.submit(ask((1,))),
        lambda: one.tokenize("a"),
        lambda: one.embed(["a"]),
        lambda: chat(one, "a"),
    ):
        with pytest.raises(TierUnreachableError, match="closed"):
            call()


def test_a_forgotten_engine_is_closed(random_model: Path) -> None:
    one = LlamaEngine(random_model, n_threads=1, name="forgotten")
    one.warm_up()
    del one
    gc.collect()
    assert not [thread for thread in threading.enumerate() if "forgotten" in thread.name]


def test_an_open_engine_does_not_disturb_the_exit(random_model: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mecroute.engines.llama import *\n"
        "e = LlamaEngine(Path(sys.argv[1]), n_threads=1, n_ctx=8192)\n"
        "g = e.submit(GenerationRequest((5,), 8000, GREEDY)); next(iter(g)); print('ok')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(random_model)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_importing_the_engine_loads_nothing_heavy() -> None:
    script = (
        "import sys, mecroute.engines.llama, mecroute.engines.llama.openai\n"
        "print([m for m in ('llama_cpp', 'numpy', 'jinja2', 'psutil', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")
