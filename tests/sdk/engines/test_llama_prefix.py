from __future__ import annotations

import pytest

from mecroute.engines.llama.prefix import PrefixCache, Slot, common_prefix


def slots(*held: list[int]) -> list[Slot]:
    made = []
    for at, tokens in enumerate(held):
        slot = Slot(at)
        slot.tokens = tokens
        slot.last_used = at
        made.append(slot)
    return made


@pytest.mark.parametrize("shared", [0, 1, 63, 64, 65, 128, 200])
def test_common_prefix_across_blocks(shared: int) -> None:
    tokens = list(range(200))
    other = tokens[:shared] + [-1] * (220 - shared)
    assert common_prefix(tokens, other, limit=1000) == shared
    assert common_prefix(tokens, other, limit=100) == min(shared, 100)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    (slot,) = slots([1, 2, 3])
    assert PrefixCache([slot], can_share=True).place([1, 2, 3]) == (slot, slot, 2)


def test_the_slot_that_holds_most_of_the_prompt_is_taken() -> None:
    a, b, c = slots([1, 2, 9], [1, 2, 3, 4], [])
    assert PrefixCache([a, b, c], can_share=True).place([1, 2, 3, 4, 5]) == (b, b, 4)


def test_a_busy_slots_prefix_goes_to_an_empty_one_first() -> None:
    a, b, c = slots([1, 2, 3, 4], [7, 8], [])
    a.busy = True
    assert PrefixCache([a, b, c], can_share=True).place([1, 2, 3, 9]) == (c, a, 3)
    c.busy = True
    assert PrefixCache([a, b, c], can_share=True).place([1, 2, 3, 9]) == (b, a, 3)


def test_a_long_conversation_is_not_given_up_for_a_short_common_start() -> None:
    long, other = slots([1, 2, *range(10, 100)], [5])
    long.last_used = 9
    assert PrefixCache([long, other], can_share=True).place([1, 2, 7, 8]) == (other, long, 2)
    # …unless there is no other slot to take.
    other.busy = True
    assert PrefixCache([long, other], can_share=True).place([1, 2, 7, 8]) == (long, long, 2)


def test_nothing_is_shared_where_the_memory_cannot_be_cut() -> None:
    a, b = slots([1, 2, 3], [4])
    assert PrefixCache([a, b], can_share=False).place([1, 2, 3, 4]) == (a, None, 0)


def test_victims_are_the_idle_slots_least_recently_used_first() -> None:
    a, b, c, d = slots([1], [2], [3], [])
    a.last_used, b.busy = 9, True
    assert list(PrefixCache([a, b, c, d], can_share=True).victims()) == [c, a]
