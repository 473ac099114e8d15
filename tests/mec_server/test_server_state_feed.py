"""Waiting for a change of a node's state: who is woken, who is not, and how many may wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mecroute_server.state_feed import StateFeed, material


def model(**facts: Any) -> dict[str, Any]:
    return {
        "ref": "m:1", "state": "ready", "digest": None, "context_length": 64, "parallel": 4, "running": 0,
        "queued": 0, "prefill_tokens_per_s": None, "decode_tokens_per_s": None, **facts,
    }  # fmt: skip


class Node:
    def __init__(self) -> None:
        self.models = [model()]
        self.stops = False
        self.looks = 0

    def feed(self, **options: Any) -> StateFeed:
        def look() -> list[dict[str, Any]]:
            self.looks += 1
            return self.models

        return StateFeed(look, stopping=lambda: self.stops, tick_s=0.01, **options)


def test_everybody_who_waits_is_woken_by_one_change() -> None:
    async def run() -> None:
        node = Node()
        feed = node.feed()
        tag = feed.tag()
        waiting = [asyncio.create_task(feed.wait(tag, 60)) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert feed.waiters == 20
        looks, begun = node.looks, time.monotonic()
        await asyncio.sleep(0.1)
        ticks = (time.monotonic() - begun) / 0.01
        assert node.looks - looks <= 2 * ticks, "one look per tick for all of them"
        node.models = [model(state="unloaded")]
        told = await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert set(told) == {feed.tag()} != {tag}
        assert feed.waiters == 0

    asyncio.run(run())


def test_one_too_many_is_answered_at_once() -> None:
    async def run() -> None:
        feed = Node().feed(max_waiters=2)
        tag = feed.tag()
        waiting = [asyncio.create_task(feed.wait(tag, 60)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(feed.wait(tag, 60), 5) == tag
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert feed.waiters == 0

    asyncio.run(run())


def test_a_node_that_stops_lets_everybody_go() -> None:
    async def run() -> None:
        node = Node()
        feed = node.feed()
        waiting = asyncio.create_task(feed.wait(feed.tag(), 60))
        await asyncio.sleep(0.05)
        node.stops = True
        await asyncio.wait_for(waiting, 5)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("before", "after", "matters"),
    [
        ({}, {"running": 1}, True),
        ({"running": 1}, {"running": 2}, False),
        ({"running": 4}, {"running": 4, "queued": 1}, False),
        ({"running": 4}, {"running": 4, "queued": 4}, True),
        ({"decode_tokens_per_s": 40.0}, {"decode_tokens_per_s": 42.0}, False),
        ({"decode_tokens_per_s": 40.0}, {"decode_tokens_per_s": 15.0}, True),
        ({}, {"kv_used_tokens": 9}, False),
        ({}, {"digest": "sha256:1"}, True),
    ],
)
def test_what_matters_to_a_router(before: dict[str, Any], after: dict[str, Any], matters: bool) -> None:
    assert (material(model(**before)) != material(model(**after))) is matters


def test_the_same_state_after_a_restart_is_another_one() -> None:
    assert Node().feed().tag() != Node().feed().tag()
