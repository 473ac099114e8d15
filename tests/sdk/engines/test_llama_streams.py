"""A stream of KV cells for each sequence: what is copied, cut and moved is what was computed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mecroute.engines.llama import GenerationRequest, LlamaEngine, LlamaModel, SamplingParams, native
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.kv_lineup import KvLineup
from mecroute.engines.llama.kv_memory import KvMemory
from mecroute.engines.llama.kv_slot import Slot
from mecroute.engines.llama.kv_state import StateLayout

CELLS, SLOTS = 256, 5
GREEDY = SamplingParams(temperature=0.0)


class Streams:
    """A memory with streams over a real context, filled with made-up tokens."""

    def __init__(self, model: LlamaModel) -> None:
        self.model = model
        self.context = DecodeContext(
            model,
            n_ctx=CELLS * SLOTS,
            n_seq_max=SLOTS,
            n_batch=128,
            n_outputs=SLOTS,
            n_threads=1,
            streams=True,
        )
        self.memory = KvMemory(
            self.context, n_slots=SLOTS, kv_tokens=CELLS * SLOTS, sharing="any", streams=True
        )

    def compute(self, slot: Slot, tokens: list[int]) -> np.ndarray:
        """The logits after the last one."""
        context, rows, done = self.context, len(tokens), len(slot.tokens)
        context.tokens[:rows] = tokens
        context.positions[:rows] = range(done, done + rows)
        context.sequences[:rows] = slot.id
        context.wants_logits[:rows] = 0
        context.wants_logits[rows - 1] = 1
        assert context.decode(rows) == 0
        slot.tokens.extend(tokens)
        logits: np.ndarray = context.logits(rows - 1, self.model.n_vocab).copy()
        assert context.most_likely([rows - 1]) == {rows - 1: int(logits.argmax())}
        return logits

    def lengths(self) -> list[int]:
        lib = native.llama()
        memory = lib.llama_get_memory(self.context.handle)
        return [lib.llama_memory_seq_pos_max(memory, slot.id) + 1 for slot in self.memory.slots]


@pytest.fixture(scope="module")
def model(random_model: Path) -> Iterator[LlamaModel]:
    one = LlamaModel(random_model)
    yield one
    one.close()


@pytest.fixture
def streams(model: LlamaModel) -> Iterator[Streams]:
    one = Streams(model)
    yield one
    one.context.close()


def fresh_logits(model: LlamaModel, tokens: list[int]) -> np.ndarray:
    one = Streams(model)
    try:
        return one.compute(one.memory.slots[2], tokens)
    finally:
        one.context.close()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_taken_over_is_what_would_be_computed(model: LlamaModel, streams: Streams, seed: int) -> None:
    rng = random.Random(seed)
    memory, lineup = streams.memory, KvLineup(streams.memory)
    story = [rng.randint(261, 300) for _ in range(90)]
    known = [story]
    running: dict[Slot, list[int]] = {}
    taken_over = 0
    for number in range(150):
        if rng.random() < 0.5 and len(running) < SLOTS:
            base = rng.choice(known)
            prompt = [*base[: rng.randint(1, len(base))], *(rng.randint(261, 300) for _ in range(8))]
            slot = memory.place(prompt)
            assert slot.tokens == prompt[: len(slot.tokens)]
            assert len(slot.tokens) == memory.find(prompt).length or not slot.tokens or slot.busy
            taken_over += len(slot.tokens)
            logits = streams.compute(slot, prompt[len(slot.tokens) :])
            if number % 5 == 0:
                assert np.allclose(logits, fresh_logits(model, prompt), atol=0.02)
            running[slot] = prompt
        elif running:
            slot = rng.choice(list(running))
            known.append(running.pop(slot))
            del known[1:-4]
            memory.release(slot)
        lineup.tidy(list(running))
        assert sorted(slot.id for slot in memory.slots) == list(range(SLOTS))
        assert streams.lengths() == [len(slot.tokens) for slot in memory.slots]
        assert memory.used_tokens() == sum(len(slot.tokens) for slot in memory.slots)
    assert taken_over > 500


def test_the_tail_that_has_to_go_can_be_kept_elsewhere_first(streams: Streams) -> None:
    memory = streams.memory
    gone: list[list[int]] = []
    memory.on_evict = lambda slot: gone.append(list(slot.tokens))
    prompts = [[*([270] * 40), *([280 + number] * 10)] for number in range(SLOTS + 1)]
    for prompt in prompts:
        slot = memory.place(prompt, ("system", f"all of {prompt[-1]}"))
        streams.compute(slot, prompt[len(slot.tokens) :])
        memory.release(slot)
    # The last one needed the sequence of the first, which began as it does.
    assert gone == [prompts[0]]
    assert memory.evictions == 1
    assert streams.lengths() == [50] * SLOTS
    assert memory.slots[0].resident_keys == ("system", f"all of {prompts[-1][-1]}")


def test_a_short_beginning_of_a_long_sequence_is_not_worth_a_copy(streams: Streams) -> None:
    memory = streams.memory
    slot = memory.place([270] * 120)
    streams.compute(slot, [270] * 120)
    assert memory.find([270, 270, 280]).length == 0
    assert memory.find([270, 270, 270, 280]).length == 3


def test_a_gap_that_stays_is_closed(streams: Streams) -> None:
    memory, lineup = streams.memory, KvLineup(streams.memory)
    slots = [memory.place([261 + number] * 20) for number in range(4)]
    for number, slot in enumerate(slots):
        streams.compute(slot, [261 + number] * (20 + number))
    assert [slot.id for slot in slots] == [0, 1, 2, 3]
    memory.release(slots[1])
    far = memory.slots[4]
    running = [slots[0], slots[2], slots[3]]
    for _ in range(3):
        lineup.tidy(running)
        assert [slot.id for slot in running] == [0, 2, 3]
    lineup.tidy(running)
    assert [slot.id for slot in running] == [1, 2, 3], "the shorter one of the two ends is moved"
    assert (slots[1].id, far.id) == (0, 4)
    assert streams.lengths() == [20, 21, 22, 23, 0], "the idle one keeps what it holds"
    assert np.allclose(
        streams.compute(slots[0], [265]), fresh_logits(streams.model, [*([261] * 20), 265]), atol=0.02
    )


def test_a_request_gets_its_place_beside_those_that_run(streams: Streams) -> None:
    memory = streams.memory
    prompts = [[261 + number] * (20 + number) for number in range(SLOTS)]
    slots = [memory.place(prompt) for prompt in prompts]
    for slot, prompt in zip(slots, prompts, strict=True):
        streams.compute(slot, prompt)
    for slot in slots[1:]:
        memory.release(slot)
    again = memory.place([*prompts[4], 290])
    assert again is slots[4]
    assert (again.id, slots[1].id) == (1, 4)
    assert streams.lengths() == [len(slot.tokens) for slot in memory.slots] == [20, 21, 22, 23, 24]
    assert np.allclose(
        streams.compute(again, [290]), fresh_logits(streams.model, [*prompts[4], 290]), atol=0.02
    )
    # A new prompt takes what was used least recently, and a place in the row.
    new = memory.place([299] * 5)
    assert new is slots[1]
    assert new.id == 2
    assert streams.lengths() == [20, 0, 22, 23, 25]


def test_a_state_is_the_same_with_streams_and_without(model: LlamaModel, streams: Streams) -> None:
    tokens = [270 + number % 7 for number in range(30)]
    one = DecodeContext(model, n_ctx=CELLS, n_seq_max=4, n_batch=128, n_outputs=4, n_threads=1)
    try:
        streams.compute(streams.memory.slots[3], tokens)
        state = streams.context.read_state(3)
        layout = StateLayout.of_one_token(_of_one_token(one))
        assert layout is not None
        assert layout.flaw_in(state, len(tokens)) is None
        assert one.write_state(1, state)
        assert bytes(one.read_state(1))[12:] == _with_id(bytes(state)[12:], len(tokens), 1)
        assert streams.context.write_state(4, one.read_state(1))
        assert streams.lengths() == [0, 0, 0, 30, 30]
    finally:
        one.close()


def _of_one_token(context: DecodeContext) -> memoryview:
    assert context.decode_one(0)
    state = context.read_state(0)
    context.keep_prefix(0, 0)
    return state


def _with_id(state: bytes, tokens: int, sequence: int) -> bytes:
    """The same state, of a sequence with another id."""
    data = bytearray(state)
    for at in range(tokens):
        start = 4 + 12 * at + 8
        data[start : start + 4] = sequence.to_bytes(4, "little")
    return bytes(data)


def test_answers_do_not_depend_on_how_the_memory_is_laid_out(random_model: Path) -> None:
    system = "You are a helpful assistant who answers in few words. " * 3
    asked = [f"{system}{number}: tell me more about {number * 7}" for number in range(9)]

    def answers(**options: int) -> list[str]:
        with LlamaEngine(random_model, n_ctx=512, n_threads=1, **options) as engine:
            begun = [
                engine.submit(
                    GenerationRequest(engine.tokenize(text), max_tokens=6 + 5 * at, sampling=GREEDY)
                )
                for at, text in enumerate(asked)
            ]
            said = ["".join(event.text for event in generation) for generation in begun]
            assert engine.stats().kv_total_tokens == options.get("kv_tokens", 512 * options["n_parallel"])
            return said

    alone = answers(n_parallel=1)
    assert answers(n_parallel=4) == alone
    assert answers(n_parallel=4, kv_tokens=1024) == alone
