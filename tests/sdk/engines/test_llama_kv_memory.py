"""The room accounting against what llama.cpp itself says it holds."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from mecroute.engines.llama import LlamaModel, native
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.kv_memory import KvMemory, sequences_for
from mecroute.engines.llama.kv_slot import Slot

CELLS = 512
SLOTS = 9


class Real:
    """A memory over a real context, filled with made-up tokens."""

    def __init__(self, model: LlamaModel) -> None:
        self._lib = native.llama()
        self.context = DecodeContext(
            model, n_ctx=CELLS, n_seq_max=SLOTS, n_batch=128, n_outputs=SLOTS, n_threads=1
        )
        self.memory = KvMemory(self.context, n_slots=SLOTS, kv_tokens=CELLS, sharing="any")

    def compute(self, slot: Slot, tokens: list[int]) -> None:
        context = self.context
        for at in range(0, len(tokens), 128):
            part = tokens[at : at + 128]
            rows, done = len(part), len(slot.tokens)
            context.tokens[:rows] = part
            context.positions[:rows] = range(done, done + rows)
            context.sequences[:rows] = slot.id
            context.wants_logits[:rows] = 0
            context.wants_logits[rows - 1] = 1
            assert context.decode(rows) == 0
            slot.tokens.extend(part)

    def cells(self) -> int:
        """How many cells llama.cpp has in use, read from the state of its whole memory."""
        handle = self.context.handle
        size = self._lib.llama_state_get_size(handle)
        buffer = (ctypes.c_uint8 * size)()
        assert self._lib.llama_state_get_data(handle, buffer, size) == size
        state = bytes(buffer)
        (name,) = struct.unpack_from("<I", state)
        streams, cells = struct.unpack_from("<II", state, 4 + name)
        assert streams == 1
        return int(cells)

    def lengths(self) -> list[int]:
        memory = self._lib.llama_get_memory(self.context.handle)
        return [self._lib.llama_memory_seq_pos_max(memory, slot.id) + 1 for slot in self.memory.slots]


@pytest.fixture(scope="module")
def model(random_model: Path) -> Iterator[LlamaModel]:
    one = LlamaModel(random_model)
    yield one
    one.close()


@pytest.fixture
def real(model: LlamaModel) -> Iterator[Real]:
    one = Real(model)
    yield one
    one.context.close()


def check(real: Real) -> None:
    memory = real.memory
    assert real.lengths() == [len(slot.tokens) for slot in memory.slots]
    assert real.cells() == memory.used_tokens() <= CELLS
    assert memory.pinned_tokens() <= memory.used_tokens()


@pytest.mark.parametrize("seed", range(4))
def test_cells_are_counted_as_llama_cpp_counts_them(real: Real, seed: int) -> None:
    rng = random.Random(seed)
    memory = real.memory
    story = [rng.randint(261, 300) for _ in range(150)]
    running: dict[Slot, list[int]] = {}
    known: list[list[int]] = [story]
    for number in range(600):
        action = rng.random()
        if action < 0.4 and len(running) < 4:
            base = rng.choice(known)
            prompt = base[: rng.randint(1, len(base))] + [rng.randint(261, 300)] * rng.randint(0, 20)
            match = memory.find(prompt)
            held = max(
                (len(_shared(slot.tokens, prompt[:-1])) for slot in memory.slots),
                default=0,
            )
            assert match.length == held
            slot = memory.place(prompt, session=f"s{rng.randint(0, 3)}" if rng.random() < 0.3 else None)
            assert slot.busy
            assert len(slot.tokens) == held
            assert slot.tokens == prompt[:held]
            running[slot] = prompt
        elif action < 0.7 and running:
            slot = rng.choice(list(running))
            left = running[slot][len(slot.tokens) :] or [rng.randint(261, 300)]
            part = left[: rng.randint(1, 60)]
            others = {id(other): list(other.tokens) for other in running if other is not slot}
            if memory.make_room(len(part)):
                real.compute(slot, part)
            assert {id(other): other.tokens for other in running if other is not slot} == others
        elif action < 0.95 and running:
            slot = rng.choice(list(running))
            del running[slot]
            known.append(list(slot.tokens) or story)
            del known[1:-6]
            memory.release(slot)
        elif not running and rng.random() < 0.2:
            memory.clear()
        check(real)
        assert [slot for slot in memory.slots if slot.busy] == sorted(running, key=lambda slot: slot.id)
        if number % 50 == 0:
            idle = [slot.tokens for slot in memory.slots if slot.tokens and not slot.busy]
            assert len(idle) <= SLOTS
    for slot in list(running):
        memory.release(slot)
    assert memory.make_room(CELLS)
    assert real.cells() == 0


def _shared(held: list[int], prompt: list[int]) -> list[int]:
    length = 0
    while length < min(len(held), len(prompt)) and held[length] == prompt[length]:
        length += 1
    return held[:length]


def test_a_conversation_that_went_on_keeps_one_sequence(real: Real) -> None:
    memory = real.memory
    tokens: list[int] = []
    for turn in range(5):
        tokens = [*tokens, *([300 - turn] * 20)]
        slot = memory.place(tokens)
        real.compute(slot, tokens[len(slot.tokens) :])
        memory.release(slot)
    assert [len(slot.tokens) for slot in memory.conversations()] == [100]
    assert real.cells() == 100


def test_a_beginning_shared_by_many_takes_its_cells_once(real: Real) -> None:
    memory = real.memory
    system = [270] * 100
    for question in range(SLOTS - 1):
        prompt = [*system, *([280 + question] * 10)]
        slot = memory.place(prompt)
        real.compute(slot, prompt[len(slot.tokens) :])
        memory.release(slot)
    assert real.cells() == memory.used_tokens() == 100 + 10 * (SLOTS - 1)
    check(real)


def test_the_least_recently_used_goes_first_and_what_runs_never(real: Real) -> None:
    memory = real.memory
    gone: list[list[int]] = []
    memory.on_evict = lambda slot: gone.append(list(slot.tokens))
    prompts = [[261 + n] * 100 for n in range(5)]
    for prompt in prompts:
        slot = memory.place(prompt)
        real.compute(slot, prompt[len(slot.tokens) :])
        if prompt is not prompts[0]:
            memory.release(slot)
    memory.release(memory.place(prompts[1]))  # used again
    assert memory.make_room(212)
    assert gone == [prompts[2], prompts[3]]
    assert not memory.make_room(CELLS)
    assert [len(slot.tokens) for slot in memory.conversations()] == [100]
    assert memory.evictions == 4
    check(real)


def test_names_count_once_their_tokens_are_there(real: Real) -> None:
    memory = real.memory
    first = memory.place([270] * 40, ("a", "b"))
    assert first.resident_keys == ()
    real.compute(first, [270] * 40)
    assert first.resident_keys == ("a", "b")
    memory.release(first)
    # The next turn is cancelled before its prompt was computed: what is there has the names of before.
    second = memory.place([*([270] * 40), 280, 281], ("a", "b", "c"))
    assert second is first
    memory.release(second)
    assert second.resident_keys == ("a", "b")


def test_sessions_with_the_same_words_keep_their_names(real: Real) -> None:
    memory = real.memory
    prompt = [270] * 30
    for name in ("one", "two"):
        slot = memory.place(prompt, session=name)
        real.compute(slot, prompt[len(slot.tokens) :])
        memory.release(slot)
    assert [slot.session for slot in memory.conversations()] == ["two", "one"]
    check(real)


def test_a_memory_that_can_only_hand_over_the_whole(model: LlamaModel) -> None:
    real = Real(model)
    memory = real.memory = KvMemory(real.context, n_slots=4, kv_tokens=CELLS, sharing="whole")
    slot = memory.place([270] * 30)
    real.compute(slot, [270] * 30)
    memory.release(slot)
    assert memory.find([270] * 20).length == 0
    assert memory.find([*([270] * 20), 280]).length == 0
    assert memory.find([*([270] * 30), 280]).length == 30
    real.context.close()


def test_a_memory_that_can_hand_over_nothing(model: LlamaModel) -> None:
    real = Real(model)
    memory = real.memory = KvMemory(real.context, n_slots=4, kv_tokens=CELLS, sharing="none")
    slot = memory.place([270] * 30)
    real.compute(slot, [270] * 30)
    memory.release(slot)
    assert real.cells() == 0
    assert memory.find([*([270] * 30), 280]).length == 0
    real.context.close()


@pytest.mark.parametrize(
    ("n_parallel", "kv_tokens", "count"),
    [(1, 64, 2), (1, 4096, 65), (8, 32768, 72), (256, 100_000, 256), (200, 100_000, 256)],
)
def test_more_sequences_than_requests_within_llama_cpps_bound(
    n_parallel: int, kv_tokens: int, count: int
) -> None:
    assert sequences_for(n_parallel, kv_tokens) == count
