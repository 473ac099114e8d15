"""While a conversation is copied, others look at the engine, leave requests and close it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mecroute.engines.llama import GenerationRequest, LlamaEngine, SamplingParams
from mecroute.engines.llama.sequence_states import SequenceStates

#: Nothing waited for here takes more than milliseconds, if it comes at all.
PATIENCE_S = 20
SYSTEM = "You are a helpful assistant who answers in few words and never forgets a name. " * 3


class Held:
    """Makes a method of `SequenceStates` wait until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        original = getattr(SequenceStates, method)

        def waiting(states: SequenceStates, *args: object) -> object:
            self.begun.set()
            assert self.go_on.wait(2 * PATIENCE_S)
            return original(states, *args)

        monkeypatch.setattr(SequenceStates, method, waiting)


@pytest.fixture
def other_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def _request(engine: LlamaEngine, text: str, tokens: int) -> GenerationRequest:
    return GenerationRequest(
        engine.tokenize(SYSTEM + text), max_tokens=tokens, sampling=SamplingParams(temperature=0.0)
    )


def test_requests_come_and_are_counted_while_a_prefix_is_copied(
    random_model: Path, monkeypatch: pytest.MonkeyPatch, other_thread: ThreadPoolExecutor
) -> None:
    with LlamaEngine(random_model, n_ctx=512, n_parallel=2, n_threads=1, max_queue=1) as engine:
        asked = [_request(engine, text, 6) for text in ("who?", "where?", "when?")]
        alone = ["".join(event.text for event in engine.submit(one)) for one in asked]

    held = Held(monkeypatch, "copy")
    with LlamaEngine(random_model, n_ctx=512, n_parallel=2, n_threads=1, max_queue=1) as engine:
        first = engine.submit(_request(engine, "who?", 200))
        try:
            next(iter(first))
            second = engine.submit(asked[1])
            assert held.begun.wait(PATIENCE_S), "the second one takes over the beginning of the first"
            stats = other_thread.submit(engine.stats).result(PATIENCE_S)
            assert (stats.running, stats.queued) == (2, 0)
            assert stats.prefill_left_tokens > 0
            third = other_thread.submit(engine.submit, asked[2]).result(PATIENCE_S)
            assert other_thread.submit(engine.stats).result(PATIENCE_S).queued == 1
            assert other_thread.submit(engine.residents).result(PATIENCE_S)[0].running
        finally:
            held.go_on.set()
        answers = ["".join(event.text for event in one) for one in (second, third)]
        assert answers == alone[1:]
        first.cancel()


def test_what_comes_during_a_copy_wakes_an_engine_that_has_nothing_else_to_do(
    random_model: Path, monkeypatch: pytest.MonkeyPatch, other_thread: ThreadPoolExecutor
) -> None:
    held = Held(monkeypatch, "read")
    held.go_on.set()
    with LlamaEngine(random_model, n_ctx=512, n_parallel=2, n_threads=1) as engine:
        list(engine.submit(GenerationRequest(engine.tokenize(SYSTEM), max_tokens=2, session="s")))
        for end in ("submit", "close"):
            held.begun.clear()
            held.go_on.clear()
            exported = other_thread.submit(engine.sessions.export, "s")
            try:
                assert held.begun.wait(PATIENCE_S)
                if end == "submit":
                    asked = engine.submit(_request(engine, "why?", 2))
                else:
                    closing = threading.Thread(target=engine.close)
                    closing.start()
            finally:
                held.go_on.set()
            assert len(exported.result(PATIENCE_S).tokens) > 0
        assert len(list(asked)) > 0
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
