"""Turns: whoever waits gets one before anybody has a second."""

from __future__ import annotations

import threading
import time

from mecroute.engines.llama.turns import Turns


def test_those_who_wait_get_their_turns_in_order() -> None:
    turns = Turns()
    order: list[str] = []
    rounds = 50

    def work(name: str) -> None:
        for _ in range(rounds):
            with turns:
                order.append(name)
                time.sleep(0.0005)  # as a step does: long enough that the others wait meanwhile

    names = ("a", "b", "c")
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    with turns:
        for thread in threads:
            thread.start()
        while len(turns._waiting) < len(names):
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert sorted(order) == sorted(names * rounds)
    # Nobody is overtaken twice in a row by the same one while all of them wait.
    assert max(order[: 3 * rounds // 2].count(name) for name in names) <= rounds // 2 + 2


def test_one_turn_at_a_time() -> None:
    turns = Turns()
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turns:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    with turns:  # free again
        pass
