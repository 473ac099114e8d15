"""Budgets: never overspent, whoever calls at once; freed by time, by settling and after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mecroute import AsyncClient, Client, Config
from mecroute.budgets.ledger import RESERVED_FOR_S, Budget, Ledger
from mecroute.budgets.period import period_of
from mecroute.budgets.worst_case import worst_case_tokens
from mecroute.config import BudgetConfig, CloudConfig, DeviceConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.errors import (
    AllTargetsFailedError,
    BudgetExceededError,
    DeadlineExceededError,
    NoEligibleTargetError,
)
from support.process import child_environment
from support.upstream import WORDS, Upstream, upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]
TEAM = Budget("team", 1.0, "day")
#: One answer of the upstream: 5 prompt tokens and as many output tokens as it has words.
ANSWER_USD = (5 * 100 + len(WORDS) * 1000) / 1e6


class Clock:
    """Unix seconds, that pass with `now` and jump with `ahead`."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 10, 30, tzinfo=UTC).timestamp()
        self.ahead = 0.0

    def __call__(self) -> float:
        return self.now + self.ahead

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "deep" / "budgets.sqlite3", clock=clock, monotonic=clock.monotonic)
    yield ledger
    ledger.close()


@pytest.fixture
def cloud() -> Iterator[Upstream]:
    with upstream() as up:
        yield up


def config(
    tmp_path: Path, cloud: Upstream, *budgets: BudgetConfig, nodes: tuple[NodeConfig, ...] = ()
) -> Config:
    return Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        cloud=(
            CloudConfig(
                name="c1", base_url=f"{cloud.url}/v1", model="big", continues_prefix=True,
                input_usd_per_mtok=100, output_usd_per_mtok=1000,
            ),
        ),
        nodes=nodes,
        budgets=budgets,
    )  # fmt: skip


def spent(tmp_path: Path, name: str = "team", per: Any = "day") -> tuple[float, float]:
    ledger = Ledger(tmp_path / "budgets.sqlite3")
    subjects = ledger.subjects(name, per) or [""]
    balances = ledger.balances([Budget(name, 0, per, subject) for subject in subjects])
    ledger.close()
    return sum(b.spent_usd for b in balances), sum(b.reserved_usd for b in balances)


def test_what_is_reserved_counts_until_it_is_settled(ledger: Ledger) -> None:
    first = ledger.reserve([TEAM], 0.6)
    with pytest.raises(
        BudgetExceededError, match=r"\$0.400000 of \$1 a day left.*reserved.*\$0.500000"
    ) as told:
        ledger.reserve([TEAM], 0.5)
    assert told.value.budget == "team"
    assert told.value.frees_at == datetime(2026, 11, 24, tzinfo=UTC).timestamp()
    assert "2026-11-24 00:00 UTC" in told.value.message
    ledger.settle(first, 0.1)
    ledger.settle(ledger.reserve([TEAM], 0.9), 0.9)
    (balance,) = ledger.balances([TEAM])
    assert (balance.spent_usd, balance.reserved_usd, balance.left_usd) == (1.0, 0.0, 0.0)


def test_several_budgets_are_reserved_together_or_not_at_all(ledger: Ledger) -> None:
    month = Budget("all", 0.05, "month")
    with pytest.raises(BudgetExceededError, match="'all'"):
        ledger.reserve([TEAM, month], 0.1)
    assert ledger.balances([TEAM])[0].reserved_usd == 0
    ledger.reserve([TEAM, month], 0.05)
    assert [b.reserved_usd for b in ledger.balances([TEAM, month])] == [0.05, 0.05]


def test_each_subject_has_a_budget_of_its_own(ledger: Ledger) -> None:
    ann, bob = Budget("each", 1.0, "day", "ann"), Budget("each", 1.0, "day", "bob")
    ledger.reserve([ann], 1.0)
    ledger.reserve([bob], 1.0)
    assert ledger.subjects("each", "day") == ["ann", "bob"]


def test_a_new_period_has_the_whole_budget_and_late_costs_count_in_their_own(
    ledger: Ledger, clock: Clock
) -> None:
    late = ledger.reserve([TEAM], 0.8)
    clock.now += 14 * 3600  # tomorrow
    assert ledger.balances([TEAM])[0].left_usd == 1.0
    ledger.settle(late, 0.7)
    assert ledger.balances([TEAM])[0].left_usd == 1.0
    clock.now -= 14 * 3600  # the clock was wrong
    assert ledger.balances([TEAM])[0].spent_usd == 0.7


def test_a_crash_leaves_a_reservation_that_expires(ledger: Ledger, clock: Clock) -> None:
    lost = ledger.reserve([TEAM], 1.0)
    clock.now += RESERVED_FOR_S - 1
    with pytest.raises(BudgetExceededError):
        ledger.reserve([TEAM], 0.1)
    ledger.renew(lost)  # it was no crash
    clock.now += RESERVED_FOR_S - 1
    with pytest.raises(BudgetExceededError):
        ledger.reserve([TEAM], 0.1)
    clock.now += 2
    assert ledger.balances([TEAM])[0].left_usd == 1.0
    ledger.reserve([TEAM], 0.1)
    ledger.settle(lost, 0.5)  # it lived after all: what was spent counts
    assert ledger.balances([TEAM])[0].spent_usd == 0.5


def test_a_clock_that_was_ahead_leaves_no_reservation_for_years(ledger: Ledger, clock: Clock) -> None:
    month = Budget("team", 1.0, "month")
    clock.ahead = 6 * 86400
    ledger.reserve([month], 1.0)
    clock.ahead = 0
    clock.now += 60
    assert ledger.balances([month])[0].left_usd == 0, "its call may be under way"
    clock.now += RESERVED_FOR_S
    assert ledger.balances([month])[0].left_usd == 1.0
    ledger.reserve([month], 1.0)


@pytest.mark.parametrize("jump_s", [2 * RESERVED_FOR_S, -2 * RESERVED_FOR_S])
def test_a_clock_that_jumps_frees_nothing_that_a_call_under_way_has_reserved(
    ledger: Ledger, clock: Clock, jump_s: float
) -> None:
    month = Budget("team", 1.0, "month")
    held = ledger.reserve([month], 0.8)
    clock.ahead += jump_s
    with pytest.raises(BudgetExceededError):
        ledger.reserve([month], 0.5)
    clock.ahead += jump_s  # and once more
    clock.now += RESERVED_FOR_S - 1
    assert ledger.balances([month])[0].left_usd == pytest.approx(0.2)
    ledger.settle(held, 0.7)
    ledger.reserve([month], 0.3)
    assert ledger.balances([month])[0].left_usd == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("moment", [-1e18, 0.0, 1e12, 4e18])
def test_an_absurd_clock_raises_nothing(moment: float) -> None:
    for per in ("hour", "day", "month"):
        begin, end = period_of(per, moment)  # type: ignore[arg-type]
        assert begin < end


def test_periods_are_calendar_periods() -> None:
    now = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    ends = {per: period_of(per, now)[1] for per in ("hour", "day", "month")}  # type: ignore[arg-type]
    assert set(ends.values()) == {int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())}
    begin, _ = period_of("month", now)
    assert begin == datetime(2026, 12, 1, tzinfo=UTC).timestamp()


def test_threads_that_reserve_at_once_never_go_over(tmp_path: Path) -> None:
    path = tmp_path / "budgets.sqlite3"
    granted: list[float] = []

    def call() -> None:
        ledger = Ledger(path)  # as another process has it: a connection of its own
        for _ in range(4):
            with contextlib.suppress(BudgetExceededError):
                ledger.settle(ledger.reserve([TEAM], 0.04), 0.03)
                granted.append(0.03)
        ledger.close()

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(path)
    (balance,) = ledger.balances([TEAM])
    ledger.close()
    assert balance.spent_usd == pytest.approx(sum(granted))
    assert 0.9 < balance.spent_usd <= 1.0


def test_what_a_locked_file_could_not_settle_is_settled_later(ledger: Ledger, monkeypatch, caplog) -> None:
    monkeypatch.setattr("mecroute.budgets.ledger._BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("mecroute.budgets.ledger._REST_S", 0)
    made = ledger.reserve([TEAM], 0.5)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        ledger.close()
        ledger.settle(made, 0.4)
        with pytest.raises(BudgetExceededError, match="cannot be used"):
            ledger.reserve([TEAM], 0.1)
        holder.execute("ROLLBACK")
    ledger.reserve([TEAM], 0.1)
    (balance,) = ledger.balances([TEAM])
    assert (balance.spent_usd, balance.reserved_usd) == (0.4, 0.1)


@pytest.mark.parametrize(
    ("body", "prompt", "output"),
    [
        ({"messages": [{"role": "user", "content": "x" * 1000}], "max_tokens": 50}, (1000, 1100), 50),
        ({"messages": [{"role": "user", "content": "é" * 100}], "max_tokens": 50, "n": 3}, (200, 300), 150),
        ({"messages": [{"role": "user", "content": "x"}]}, (1, 100), 4096),
        ({"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 7}, (1, 100), 7),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}
                ]
            },
            (4096, 4300),
            4096,
        ),
    ],
)
def test_the_worst_case_bounds_the_tokens(body: dict, prompt: tuple[int, int], output: int) -> None:
    most_prompt, most_output = worst_case_tokens("chat", body, 100_000)
    assert prompt[0] <= most_prompt <= prompt[1]
    assert most_output == output


def test_what_stands_after_a_gap_is_paid_for_too() -> None:
    body = {"prompt": "def f(x):\n", "max_tokens": 5}
    before, _ = worst_case_tokens("completion", body, 4096)
    after, output = worst_case_tokens("completion", {**body, "suffix": "é" * 100}, 4096)
    assert before + 200 < after <= before + 220
    assert output == 5


def test_an_answer_is_charged_what_it_cost(tmp_path: Path, cloud: Upstream) -> None:
    with Client(config(tmp_path, cloud, BudgetConfig(name="team", limit_usd=1))) as client:
        client.chat.completions.create(messages=HELLO, max_tokens=20)
    assert spent(tmp_path) == (pytest.approx(ANSWER_USD), 0)


def test_a_stream_is_charged_at_its_end_and_when_it_is_abandoned(tmp_path: Path, cloud: Upstream) -> None:
    with Client(config(tmp_path, cloud, BudgetConfig(name="team", limit_usd=1))) as client:
        list(client.chat.completions.create(messages=HELLO, max_tokens=20, stream=True))
        while (found := spent(tmp_path))[1]:  # it is settled just after the last chunk
            time.sleep(0.01)
        whole = found[0]
        assert whole > 0
        stream = client.chat.completions.create(messages=HELLO, max_tokens=20, stream=True)
        next(stream)
        next(stream)
        stream.close()
    both, reserved = spent(tmp_path)
    assert whole < both < 2 * whole
    assert reserved == 0


def test_a_refusal_and_a_dead_cloud_are_charged_nothing(tmp_path: Path, cloud: Upstream) -> None:
    cloud.status = 429
    budget = BudgetConfig(name="team", limit_usd=1)
    for _ in range(2):
        with Client(config(tmp_path, cloud, budget)) as client, pytest.raises(Exception, match="failed"):
            client.chat.completions.create(messages=HELLO, max_tokens=20)
        cloud.url = "http://127.0.0.1:9"
    assert spent(tmp_path) == (0, 0)


def test_an_answer_that_was_given_up_is_charged_in_full(tmp_path: Path, cloud: Upstream) -> None:
    cloud.delay_s = 30
    with (
        Client(config(tmp_path, cloud, BudgetConfig(name="team", limit_usd=1))) as client,
        pytest.raises(DeadlineExceededError),
    ):
        client.chat.completions.create(
            messages=HELLO, max_tokens=20, requirements={"deadline_ms": 2000, "max_latency_ms": 10}
        )
    total, reserved = spent(tmp_path)
    assert total > 20 * 1000 / 1e6
    assert reserved == 0


def test_a_target_without_room_is_rejected_by_name_and_a_free_one_answers(
    tmp_path: Path, cloud: Upstream
) -> None:
    report = {
        "node": "n", "hardware": "t",
        "models": [{"ref": "fox:1", "state": "ready", "context_length": 4096, "accuracy": 0.8}],
    }  # fmt: skip
    with upstream(report=report) as mec:
        nodes = (NodeConfig(name="n1", url=mec.url),)
        budget = BudgetConfig(name="team", limit_usd=0.001, per="hour")
        with Client(config(tmp_path, cloud, budget, nodes=nodes)) as client:
            reply = client.chat.completions.create(messages=HELLO, max_tokens=20)
            with pytest.raises(NoEligibleTargetError, match="budget 'team'") as refused:
                client.chat.completions.create(messages=HELLO, max_tokens=20, model="cloud/auto")
    assert reply.mecroute.tier == "mec"
    (rejection,) = reply.mecroute.decision.rejected
    assert (rejection.target.tier, rejection.reason) == ("cloud", "budget")
    assert "more than the whole of it" in rejection.detail
    assert {r.reason for r in refused.value.decision.rejected} == {"budget", "model"}
    assert not cloud.requests


def test_both_targets_of_a_broken_stream_are_reserved_for_and_charged(
    tmp_path: Path, cloud: Upstream
) -> None:
    report = {
        "node": "n", "hardware": "t",
        "models": [{"ref": "fox:1", "state": "ready", "context_length": 4096, "accuracy": 0.8}],
    }  # fmt: skip
    with upstream(report=report, break_after=4) as mec:
        nodes = (NodeConfig(name="n1", url=mec.url, output_usd_per_mtok=1000),)
        budget = BudgetConfig(name="team", limit_usd=1)
        with Client(config(tmp_path, cloud, budget, nodes=nodes)) as client:
            stream = client.chat.completions.create(messages=HELLO, max_tokens=20, stream=True)
            assert "".join(c.choices[0].delta.content or "" for c in stream) == "".join(WORDS)
        assert stream.mecroute is not None
        assert [s.tier for s in stream.mecroute.segments] == ["mec", "cloud"]
    both, reserved = spent(tmp_path)
    assert reserved == 0
    # Four tokens of the node's and the five left for the cloud, besides first chunks and prompts.
    assert both >= len(WORDS) * 1000 / 1e6


def test_a_fallback_without_room_is_not_called(tmp_path: Path, cloud: Upstream) -> None:
    report = {
        "node": "n", "hardware": "t",
        "models": [{"ref": "fox:1", "state": "ready", "context_length": 4096, "accuracy": 0.8}],
    }  # fmt: skip
    with upstream(report=report, status=500) as mec:
        nodes = (NodeConfig(name="n1", url=mec.url, output_usd_per_mtok=1),)
        budget = BudgetConfig(name="team", limit_usd=0.0001)
        with (
            Client(config(tmp_path, cloud, budget, nodes=nodes)) as client,
            pytest.raises(AllTargetsFailedError, match="all 1 targets failed: mec/n1"),
        ):
            client.chat.completions.create(messages=HELLO, max_tokens=20)
    assert not cloud.requests


def test_budgets_are_kept_by_user_app_and_key(tmp_path: Path, cloud: Upstream) -> None:
    budgets = [
        BudgetConfig(name=f"per-{scope}", limit_usd=0.03, scope=scope)  # type: ignore[call-arg]
        for scope in ("user", "app", "key")
    ]
    asked: dict[str, Any] = {"messages": HELLO, "max_tokens": 20}
    with Client(config(tmp_path, cloud, *budgets)) as client:
        client.chat.completions.create(**asked, user="ann", app="mail", key="k1")
        for same in ({"user": "ann"}, {"app": "mail"}, {"key": "k1"}):
            other = {"user": "bob", "app": "notes", "key": "k2"} | same
            with pytest.raises(NoEligibleTargetError, match=f"per-{next(iter(same))}"):
                client.chat.completions.create(**asked, **other)
        client.chat.completions.create(**asked, user="bob", app="notes", key="k2")
    assert len(cloud.requests) == 2
    assert all("app" not in body and "key" not in body for body in cloud.requests)


@pytest.mark.parametrize("fault", ["corrupt", "locked"])
def test_without_its_file_nothing_is_spent_and_that_is_said(
    tmp_path: Path, cloud: Upstream, fault: str, monkeypatch, caplog
) -> None:
    monkeypatch.setattr("mecroute.budgets.ledger._BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "budgets.sqlite3"
    if fault == "corrupt":
        path.write_bytes(b"this is no database" * 500)
    with contextlib.ExitStack() as held:
        if fault == "locked":
            holder = held.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
            holder.execute("BEGIN EXCLUSIVE")
        budget = BudgetConfig(name="team", limit_usd=1)
        with (
            caplog.at_level(logging.WARNING, logger="mecroute.budgets"),
            Client(config(tmp_path, cloud, budget)) as client,
        ):
            for _ in range(2):
                with pytest.raises(NoEligibleTargetError, match="cannot be used"):
                    client.chat.completions.create(messages=HELLO, max_tokens=20)
    assert caplog.text.count("nothing that costs money is called") == 1
    assert not cloud.requests


def test_a_cancelled_caller_leaves_nothing_reserved(tmp_path: Path, cloud: Upstream) -> None:
    async def run() -> None:
        async with AsyncClient(config(tmp_path, cloud, BudgetConfig(name="team", limit_usd=1))) as client:
            calls = [
                asyncio.create_task(client.chat.completions.create(messages=HELLO, max_tokens=20))
                for _ in range(20)
            ]
            await asyncio.sleep(0.02)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(run())
    assert spent(tmp_path)[1] == 0


def test_of_many_that_meet_a_locked_file_only_the_first_waits(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mecroute.budgets.ledger._BUSY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("mecroute.budgets.ledger._REST_S", 60)
    waited: list[str] = []
    real = sqlite3.connect
    monkeypatch.setattr(
        "mecroute.budgets.ledger.sqlite3.connect", lambda *a, **k: waited.append("once") or real(*a, **k)
    )
    path = tmp_path / "budgets.sqlite3"
    with closing(real(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        ledger = Ledger(path)
        for _ in range(20):
            with pytest.raises(BudgetExceededError, match="cannot be used"):
                ledger.reserve([TEAM], 0.1)
        ledger.close()
    assert waited == ["once"]


CALLERS = """
import asyncio, json, sys
from mecroute import AsyncClient
from mecroute.config import load_config
from mecroute.errors import BudgetExceededError, NoEligibleTargetError

async def main():
    answered = refused = 0
    async with AsyncClient(load_config().config) as client:
        async def call(number):
            nonlocal answered, refused
            for round in range(3):
                try:
                    await client.chat.completions.create(
                        messages=[{"role": "user", "content": f"Tell me about the fox, {number}."}],
                        max_tokens=20, temperature=1,
                    )
                    answered += 1
                except (BudgetExceededError, NoEligibleTargetError) as error:
                    assert "budget" in str(error), error
                    refused += 1
        await asyncio.gather(*(call(number) for number in range(25)))
    print(json.dumps([answered, refused]))

asyncio.run(main())
"""


def test_fifty_callers_in_two_processes_never_overspend(tmp_path: Path, cloud: Upstream) -> None:
    limit = 0.2
    (tmp_path / "mecroute.toml").write_text(
        f'[registry]\npath = "{tmp_path}/registry"\n[device]\nenabled = false\n'
        f'[state]\npath = "{tmp_path}/state.sqlite3"\n'
        f'[[cloud]]\nname = "c1"\nbase_url = "{cloud.url}/v1"\nmodel = "big"\n'
        "input_usd_per_mtok = 100\noutput_usd_per_mtok = 1000\n"
        f'[[budgets]]\nname = "team"\nlimit_usd = {limit}\nper = "month"\nfor = "all"\n'
    )
    environment = child_environment({**os.environ, "MECROUTE_CONFIG": str(tmp_path / "mecroute.toml")})
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CALLERS],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    answered = refused = 0
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        counts = json.loads(out)
        answered, refused = answered + counts[0], refused + counts[1]
    assert answered + refused == 150
    assert answered == len(cloud.requests)
    total, reserved = spent(tmp_path, per="month")
    assert total == pytest.approx(answered * ANSWER_USD)
    assert reserved == 0
    assert total <= limit
    assert total > limit / 2  # and not for want of trying
    assert refused > 0
