from __future__ import annotations

import random

import pytest

from mecroute.engines.llama.radix import RadixTree, common_prefix


def shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 128, 200])
def test_common_prefix_across_blocks(length: int) -> None:
    tokens = list(range(200))
    other = tokens[:length] + [-1] * (220 - length)
    assert common_prefix(tokens, other) == length


def test_the_walk_finds_what_comparing_with_everyone_finds() -> None:
    rng = random.Random(1)
    tree: RadixTree[int] = RadixTree()
    held: dict[int, tuple[int, ...]] = {}
    for number in range(4000):
        # Few different tokens: beginnings are shared often, and at every depth.
        tokens = tuple(rng.randint(0, 2) for _ in range(rng.randint(0, 12)))
        holder = rng.randint(0, 20)
        if rng.random() < 0.3:
            tree.discard(holder)
            held.pop(holder, None)
        elif rng.random() < 0.1 and held:
            other = rng.choice(list(held))
            held[holder] = held[other] + tokens
            tree.put(holder, held[holder])
        elif tokens:
            held[holder] = tokens
            tree.put(holder, tokens)
        prompt = tuple(rng.randint(0, 2) for _ in range(rng.randint(0, 15)))
        best: dict[int, int] = {}
        depths = []
        for depth, holders in tree.matches(prompt):
            depths.append(depth)
            for one in holders:
                best.setdefault(one, depth)
        assert best == {one: n for one, tokens in held.items() if (n := shared(tokens, prompt))}, number
        assert depths == sorted(set(depths), reverse=True)
        assert set(tree.ending_on(prompt)) == {h for h, t in held.items() if t == prompt[: len(t)]}
        assert len(tree) == len(held)


def test_edges_join_again_when_what_branched_off_is_gone() -> None:
    tree: RadixTree[str] = RadixTree()
    story = tuple(range(1000))
    tree.put("long", story)
    for cut in range(1, 1000, 7):
        tree.put("branch", (*story[:cut], -1))
    tree.discard("branch")
    assert [depth for depth, _ in tree.matches(story)] == [1000]
    tree.discard("long")
    assert tree.matches(story) == []
