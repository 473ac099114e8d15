from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from mecroute.engines.llama import GenerationRequest, LlamaEngine
from mecroute.engines.llama.threads import ThreadGovernor, cores_left


@pytest.mark.parametrize(
    ("free", "most", "threads"),
    [(2.0, 2, 2), (1.85, 2, 2), (1.3, 2, 1), (0.2, 2, 1), (-0.5, 2, 1), (60.0, 8, 8), (5.6, 8, 6)],
)
def test_threads_are_the_cores_that_are_left(free: float, most: int, threads: int) -> None:
    assert cores_left(free, most) == threads


def test_the_load_is_read_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now, everything, own = 100.0, 50.0, 5.0
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(ThreadGovernor, "_read", lambda _: (now, everything, own))
    governor = ThreadGovernor(4)
    assert governor.threads() is None
    now, everything, own = 102.0, 58.0, 9.0
    governor.worked()
    # In two seconds all processes used 8 CPU seconds, this one 4 of them: others keep 2 of 4 cores busy.
    assert governor.threads() == 2
    assert governor.threads() is None
    now, everything, own = 104.0, 60.0, 11.0
    governor.worked()
    assert governor.threads() == 4


def test_what_others_did_during_a_pause_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, everything, own = 100.0, 50.0, 5.0
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(ThreadGovernor, "_read", lambda _: (now, everything, own))
    governor = ThreadGovernor(4)
    governor.worked()
    now, everything = 110.0, 90.0
    assert governor.threads() is None
    governor.worked()
    # Soon after it the load is looked at: all of one second's four cores went to this process.
    now, everything, own = 111.0, 94.0, 9.0
    governor.worked()
    assert governor.threads() == 4


def test_the_load_of_this_machine_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mecroute.engines.llama.threads.INTERVAL_S", 0.0)
    governor = ThreadGovernor(2)
    governor.worked()
    assert governor.threads() in (1, 2)
    assert ThreadGovernor(1).threads() is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a single thread has no niceness")
def test_what_computes_gives_way_and_nothing_else(random_model: Path) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    tasks = Path("/proc/self/task")
    threads = set(tasks.iterdir())
    with LlamaEngine(random_model, n_ctx=512, n_threads=2) as engine:
        list(engine.submit(GenerationRequest(engine.tokenize("hello"), max_tokens=4)))
        (own,) = (one for one in threading.enumerate() if one.name.startswith("mecroute-engine"))
        new = set(tasks.iterdir()) - threads
        nice = {int(one.name): os.getpriority(os.PRIO_PROCESS, int(one.name)) for one in new}
        assert len(nice) >= 2, "the engine's thread, and the one that computes with it"
        assert own.native_id in nice
        assert set(nice.values()) == {max(before, 5)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
