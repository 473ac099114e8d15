"""A beginning that one request is computing is not computed again by others."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mecroute.engines import steps
from mecroute.engines.llama import GREEDY, Generation, GenerationRequest, LlamaEngine
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.prefix_disk import PrefixDisk, PrefixDiskOptions
from mecroute.engines.llama.submitter import Submitter
from mecroute.errors import DeadlineExceededError, TierError
from support.oracle import Oracle

MakeEngine = Callable[..., LlamaEngine]


class Gate:
    """Lets an engine's steps pass one at a time, and counts their rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.status = 0
        self._holds = False
        self._arrived, self._passes = threading.Semaphore(0), threading.Semaphore(0)
        decode = DecodeContext.decode

        def gated(context: DecodeContext, n_rows: int) -> int:
            if self._holds:
                self._arrived.release()
                assert self._passes.acquire(timeout=60)
            self.rows.append(n_rows)
            status, self.status = self.status, 0
            return status or decode(context, n_rows)

        monkeypatch.setattr(DecodeContext, "decode", gated)
        # How long a step takes is the test's affair: it makes none shorter.
        monkeypatch.setattr(steps, "MIN_STEP_ROWS", steps.STEP_ROWS)

    def hold(self) -> None:
        """From now on, steps wait."""
        self._holds = True

    def arrived(self) -> None:
        """Wait until a step waits."""
        assert self._arrived.acquire(timeout=60)

    def step(self) -> None:
        """Let it pass, and wait until the next one waits."""
        self._passes.release()
        self.arrived()

    def open(self) -> None:
        """Let it and all others pass."""
        self._holds = False
        self._passes.release()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def ask(prompt: tuple[int, ...], max_tokens: int = 8, **fields: Any) -> GenerationRequest:
    return GenerationRequest(prompt, max_tokens, GREEDY, **fields)


def text(generation: Generation) -> str:
    return "".join(event.text for event in generation)


def cached(generation: Generation) -> int:
    assert generation.usage is not None
    return generation.usage.cached_tokens


SYSTEM = tuple(np.random.default_rng(7).integers(261, 300, 600).tolist())


def start(one: LlamaEngine, gate: Gate, requests: list[GenerationRequest]) -> list[Generation]:
    """Submit requests together; the engine is about to make its first step with them."""
    gate.hold()
    busy = one.submit(ask((3,), 1))
    gate.arrived()
    gate.rows.clear()
    generations = [one.submit(request) for request in requests]
    gate.step()
    assert text(busy)
    return generations


def asks(prompts: list[tuple[int, ...]]) -> list[GenerationRequest]:
    return [ask(prompt) for prompt in prompts]


def test_requests_that_come_together_compute_their_system_prompt_once(
    engine: MakeEngine, gate: Gate, oracle: Oracle
) -> None:
    one = engine(n_parallel=8, n_ctx=1024)
    decided = oracle.decided(((*SYSTEM[:400], 300, token) for token in range(3, 300)), 8, 8)
    generations = start(one, gate, asks([prompt for prompt, _ in decided]))
    gate.open()
    assert [text(generation) for generation in generations] == [answer for _, answer in decided]
    assert [cached(generation) for generation in generations] == [0] + [401] * 7
    # The busy one's token, one prompt, the last tokens of the others, and the answers.
    assert sum(gate.rows) == 1 + 402 + 7 + 8 * 7
    assert one.stats().prefix_hit_tokens == 7 * 401


def test_a_beginning_longer_than_a_step_is_waited_for(engine: MakeEngine, gate: Gate) -> None:
    one = engine(n_parallel=2, n_ctx=1024)
    first, second = start(one, gate, asks([(*SYSTEM, 3, 4), (*SYSTEM, 5)]))
    assert one.stats().running == 2
    gate.step()
    assert gate.rows[-1] == 512  # of the first alone
    gate.open()
    assert text(first)
    assert text(second)
    assert cached(second) == 600


def test_a_short_overlap_is_not_waited_for(engine: MakeEngine, gate: Gate) -> None:
    one = engine(n_parallel=2, n_ctx=1024)
    _, second = start(one, gate, asks([SYSTEM[:200], (*SYSTEM[:63], 3, 4, 5)]))
    gate.open()
    text(second)
    assert cached(second) == 0
    # The short one first, then the other, or a part of it, beside its next token.
    assert gate.rows[1] == 66
    assert steps.MIN_PREFILL_ROWS + 1 <= gate.rows[2] <= 200 + 1


def test_the_next_one_computes_on_when_the_first_is_cancelled(
    engine: MakeEngine, gate: Gate, oracle: Oracle
) -> None:
    one = engine(n_parallel=4, n_ctx=1024)
    decided = oracle.decided(((*SYSTEM[:400], 300, token) for token in range(3, 300)), 3, 8)
    first, *others = start(one, gate, asks([(*SYSTEM[:400], *SYSTEM), *(prompt for prompt, _ in decided)]))
    first.cancel()  # its step of 512 rows is under way
    gate.open()
    assert [text(generation) for generation in others] == [answer for _, answer in decided]
    assert text(first) == ""
    assert [cached(generation) for generation in others] == [400, 400, 400]


def test_a_wait_is_passed_on(engine: MakeEngine, gate: Gate) -> None:
    """Whoever waited computes the rest where the first one left it, and the others wait for that."""
    one = engine(n_parallel=4, n_ctx=2048)
    long = (*SYSTEM, *SYSTEM)
    first, second, third = start(one, gate, asks([(*long, 3), (*long, 4), (*long, 5)]))
    first.cancel()
    gate.step()  # 512 tokens are there; the second one goes on
    gate.step()
    assert gate.rows[1:] == [512, 512]
    gate.open()
    assert text(second)
    assert text(third)
    assert (cached(second), cached(third)) == (512, 1200)


def test_those_that_wait_go_on_when_the_first_one_fails(
    engine: MakeEngine, gate: Gate, oracle: Oracle
) -> None:
    one = engine(n_parallel=4, n_ctx=1024)
    decided = oracle.decided(((*SYSTEM[:400], 300, token) for token in range(3, 300)), 3, 8)
    first, *others = start(one, gate, asks([(*SYSTEM, 301), *(prompt for prompt, _ in decided)]))
    gate.status = -3
    gate.open()
    with pytest.raises(TierError, match="status -3"):
        text(first)
    assert [text(generation) for generation in others] == [answer for _, answer in decided]


def test_one_that_waits_can_be_cancelled(engine: MakeEngine, gate: Gate) -> None:
    one = engine(n_parallel=3, n_ctx=1024)
    first, second, third = start(one, gate, asks([(*SYSTEM[:400], token) for token in (3, 4, 5)]))
    second.cancel()
    assert text(second) == ""
    gate.open()
    assert text(first)
    assert text(third)
    assert one.stats().running == 0


def test_the_deadline_of_one_that_waits_is_kept(
    engine: MakeEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(n_parallel=2, n_ctx=1024)
    now = time.perf_counter()
    requests = [ask((*SYSTEM, at), submitter=Submitter(deadline_at=now + 5 + at)) for at in (3, 4)]
    first, second = start(one, gate, requests)
    assert one.stats().running == 2
    monkeypatch.setattr(time, "perf_counter", lambda: now + 10)
    gate.open()
    with pytest.raises(DeadlineExceededError, match="deadline"):
        text(second)
    assert text(first)


def test_closing_fails_those_that_wait(engine: MakeEngine, gate: Gate) -> None:
    one = engine(n_parallel=2, n_ctx=1024)
    _, second = start(one, gate, asks([(*SYSTEM, 3), (*SYSTEM, 4)]))
    threading.Timer(0.1, gate.open).start()
    one.close()
    with pytest.raises(TierError, match="closed"):
        text(second)


def test_a_step_without_room_makes_some_and_goes_on(engine: MakeEngine, gate: Gate, oracle: Oracle) -> None:
    one = engine(n_parallel=1, n_ctx=1024)
    ((prompt, answer),) = oracle.decided(((*SYSTEM[:100], at) for at in range(3, 300)), 1, 8)
    assert text(one.submit(ask(SYSTEM[200:400])))
    gate.status = 1
    assert text(one.submit(ask(prompt))) == answer
    assert one.stats().prefix_evictions == 1


@pytest.mark.parametrize("ram_bytes", [0, 500_000, 100_000_000])
def test_random_conversations_say_what_they_say_alone(
    engine: MakeEngine, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ram_bytes: int
) -> None:
    """Shared beginnings, cancels and a tight memory: the text never depends on what was cached, or where."""
    monkeypatch.setattr(PrefixDisk, "_is_faster", lambda *_: True)
    rng = random.Random(3)
    beginnings = [SYSTEM[:100], SYSTEM[:230], (*SYSTEM[:150], *SYSTEM[300:400]), SYSTEM[50:90]]

    def prompts() -> Any:
        while True:
            yield (*rng.choice(beginnings), *(rng.randint(261, 300) for _ in range(rng.randint(1, 30))))

    decided = oracle.decided(prompts(), 40, 12)
    disk = PrefixDiskOptions(tmp_path, max_bytes=2_000_000, min_tokens=5)
    one = engine(
        n_parallel=4,
        n_ctx=300,
        kv_tokens=900,
        max_queue=1000,
        prefix_ram_bytes=ram_bytes,
        prefix_disk=disk,
    )
    wrong: list[str] = []

    def caller(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(60):
            prompt, answer = mine.choice(decided)
            generation = one.submit(ask(prompt, 12))
            if mine.random() < 0.2:
                if mine.random() < 0.5:
                    next(iter(generation), None)
                generation.cancel()
            elif (said := text(generation)) != answer:
                wrong.append(f"{said!r} instead of {answer!r}")

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a request was never answered"
    assert not wrong
    stats = one.stats()
    assert (stats.running, stats.queued) == (0, 0)
    assert stats.kv_used_tokens == stats.kv_cached_tokens <= 900
    assert stats.prefix_evictions
    assert bool(stats.prefix_recalls) == bool(ram_bytes)
    if ram_bytes == 100_000_000:
        assert not stats.disk_hits  # nothing had to leave that
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.kv")) <= 2_000_000
    assert stats.prefix_hit_tokens > stats.prompt_tokens_total / 2
