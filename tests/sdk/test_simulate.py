"""The simulation: its queues against closed forms, its traces, and that it repeats."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from mecroute.config import RouterConfig
from mecroute.errors import InvalidRequestError
from mecroute.simulate.agents import Agents, Published
from mecroute.simulate.queueing import Job, Server, ServerModel
from mecroute.simulate.run import simulate
from mecroute.simulate.scenario import Network, Scenario, read_scenario
from mecroute.simulate.strategies import STRATEGIES, make_strategy
from mecroute.simulate.trace import Arrival, fit_trace, read_trace, synthetic_trace
from mecroute.simulate.world import World, draw_requests, p_right


def _server(*, parallel: int, contention: float, max_queue: int = 1000) -> Server:
    return Server(ServerModel(1.0, 1.0, parallel, contention, max_queue))


def _run(server: Server, jobs: list[Job]) -> None:
    """Feed jobs by their arrival and let them end, stepping from event to event."""
    waiting = sorted(jobs, key=lambda job: job.arrived_s)
    while True:
        event = server.next_event_s()
        if waiting and (event is None or waiting[0].arrived_s <= event):
            job = waiting.pop(0)
            assert server.submit(job, job.arrived_s)
        elif event is None:
            return
        else:
            server.advance(event)


def test_one_request_takes_its_prefill_and_its_decode() -> None:
    job = Job(prefill_s=2, decode_s=3, arrived_s=10)
    _run(_server(parallel=4, contention=0.5), [job])
    assert job.first_token_s == pytest.approx(12)
    assert job.done_s == pytest.approx(15)


def test_two_at_once_share_the_server_as_contention_says() -> None:
    jobs = [Job(1, 1, 0), Job(1, 1, 0)]
    _run(_server(parallel=2, contention=0.5), jobs)
    # Both get on at 1 / 1.5 of their speed alone: 2 s of work take 3 s.
    assert [job.done_s for job in jobs] == [pytest.approx(3), pytest.approx(3)]


def test_one_at_a_time_is_a_queue() -> None:
    jobs = [Job(1, 1, 0), Job(1, 1, 0.5), Job(1, 1, 5)]
    _run(_server(parallel=1, contention=0), jobs)
    assert [job.done_s for job in jobs] == [pytest.approx(2), pytest.approx(4), pytest.approx(7)]
    assert jobs[1].first_token_s == pytest.approx(3)


def test_a_queue_of_random_arrivals_waits_as_queueing_theory_says() -> None:
    """M/M/1: mean time in the system is 1 / (service rate - arrival rate)."""
    rng = random.Random(3)
    at, jobs = 0.0, []
    for _ in range(40_000):
        at += rng.expovariate(0.6)
        jobs.append(Job(0.0, rng.expovariate(1.0), at))
    _run(_server(parallel=1, contention=0, max_queue=10**6), jobs)
    mean = sum((job.done_s or math.nan) - job.arrived_s for job in jobs) / len(jobs)
    assert mean == pytest.approx(1 / (1 - 0.6), rel=0.1)


def test_a_full_queue_refuses() -> None:
    server = _server(parallel=1, contention=0, max_queue=1)
    assert [server.submit(Job(1, 1, 0), 0.0) for _ in range(3)] == [True, True, False]
    assert (server.running, server.queued) == (1, 1)


def test_azure_and_mooncake_traces_are_read(tmp_path: Path) -> None:
    azure = tmp_path / "a.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:05.0319600,3180,8\n2023-11-16 18:17:03.9799600,4808,10\n"
    )
    assert read_trace(azure) == [Arrival(0, 4808, 10), Arrival(pytest.approx(1.052), 3180, 8)]  # type: ignore[arg-type]
    mooncake = tmp_path / "m.jsonl"
    mooncake.write_text('{"timestamp": 500, "input_length": 7, "output_length": 0, "hash_ids": [1]}\n')
    assert read_trace(mooncake) == [Arrival(0, 7, 1, (1,))]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "lacks the column"),
        ("a,b\n1,2\n", "lacks the column"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2: TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,many,2\n", "line 2: ContextTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,-1,2\n", "line 2: ContextTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03\n", "line 2: ContextTokens"),
        ('{"timestamp": 1}\n', "line 1: input_length"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', "line 1: timestamp"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["x"]}\n', "line 1: hash_ids"),
        ("{\n", "line 1 is not JSON"),
    ],
)
def test_a_damaged_trace_names_the_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match=told):
        read_trace(path)


def test_a_trace_is_repeated_and_stretched_to_a_rate() -> None:
    fitted = fit_trace(synthetic_trace(100), requests=1000, rate_per_s=5)
    assert len(fitted) == 1000
    assert fitted[-1].at_s == pytest.approx(200)
    assert all(a.at_s <= b.at_s for a, b in pairwise(fitted))
    assert fitted[100].prompt_tokens == fitted[0].prompt_tokens
    together = fit_trace([Arrival(0, 1, 1)], requests=3, rate_per_s=1)
    assert len(together) == 3


def test_right_answers_have_the_stated_accuracy_at_mean_difficulty() -> None:
    asked = draw_requests(synthetic_trace(20_000), Scenario(), seed=1)
    share = sum(p_right(0.7, request.difficulty) for request in asked) / len(asked)
    assert share == pytest.approx(0.7, abs=0.01)
    assert p_right(0.0, 1.0) == 0.0


def test_every_strategy_answers_and_the_same_seed_gives_the_same_figures() -> None:
    scenario, trace = Scenario(nodes=8, clients=3), synthetic_trace(200)
    first = simulate(trace, scenario, requests=400, load=0.5, seed=4)
    again = simulate(trace, scenario, requests=400, load=0.5, seed=4)
    assert [report.strategy for report in first] == list(STRATEGIES)
    for one, two in zip(first, again, strict=True):
        assert one.to_dict() | {"wall_s": 0} == two.to_dict() | {"wall_s": 0}
    by_name = {report.strategy: report for report in first}
    assert by_name["device-only"].cost_usd == 0
    assert by_name["cloud-only"].tiers["cloud"] == 1
    assert by_name["cloud-only"].answered == 1
    assert by_name["threshold"].tiers["cloud"] == pytest.approx(0.5, abs=0.02)
    assert by_name["mecroute"].answered > by_name["device-only"].answered


def test_another_seed_gives_other_figures() -> None:
    scenario, trace = Scenario(nodes=4, clients=2), synthetic_trace(100)
    one = simulate(trace, scenario, requests=100, strategies=["mecroute"], seed=1)
    two = simulate(trace, scenario, requests=100, strategies=["mecroute"], seed=2)
    assert one[0].to_dict() | {"wall_s": 0} != two[0].to_dict() | {"wall_s": 0}


def test_a_device_serves_its_own_client_only() -> None:
    world = World(Scenario(nodes=1, clients=2), seed=0)
    assert world.server(world.device, 0) is not world.server(world.device, 1)
    assert world.server(world.cloud, 0) is world.server(world.cloud, 1)


def test_a_scenario_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "world.toml"
    path.write_text("nodes = 3\n[slo]\nttft_ms = -1\n")
    with pytest.raises(InvalidRequestError, match=r"slo\.ttft_ms"):
        read_scenario(path)
    path.write_text("nodes = [")
    with pytest.raises(InvalidRequestError, match="TOML"):
        read_scenario(path)
    path.write_text("nodes = 5\n")
    assert read_scenario(path).nodes == 5
    with pytest.raises(InvalidRequestError, match="no scenario"):
        read_scenario(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "wrong", [{"strategies": ["luck"]}, {"requests": 0}, {"load": 0.0}, {"rate_per_s": -1.0}]
)
def test_a_simulation_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"requests": 10} | wrong
    with pytest.raises(InvalidRequestError):
        simulate(synthetic_trace(10), Scenario(nodes=2), **arguments)  # type: ignore[arg-type]


def _agents(**facts: object) -> tuple[World, Agents, dict[str, int]]:
    """mecroute's agents on 300 requests: the world and the agents afterwards, and the answers by tier."""
    scenario = Scenario.model_validate({"nodes": 6, "clients": 4, **facts})
    asked = draw_requests(fit_trace(synthetic_trace(300), requests=300, rate_per_s=1), scenario, seed=5)
    world = World(scenario, seed=5)
    strategy = make_strategy("mecroute", world, RouterConfig(), asked, seed=5)
    assert isinstance(strategy, Agents)
    results = world.run(asked, strategy.choose, strategy.heard)
    tiers = Counter(world.places[r.place].target.tier for r in results if r.place is not None)
    return world, strategy, dict(tiers)


def test_clients_without_a_network_are_answered_by_their_devices() -> None:
    fast = {"prefill_tokens_per_s": 1e5, "decode_tokens_per_s": 1e4, "parallel": 8, "contention": 0.0}
    _, _, tiers = _agents(
        conditions={"offline_share": 1, "battery_share": 0}, device={**fast, "accuracy": 0.5}
    )
    assert tiers == {"device": 300}


def test_a_low_battery_keeps_a_device_from_being_used() -> None:
    fast = {"prefill_tokens_per_s": 1e5, "decode_tokens_per_s": 1e4, "parallel": 8, "contention": 0.0}
    device = {**fast, "accuracy": 0.9}
    _, _, charged = _agents(device=device, conditions={"battery_share": 1, "low_battery_share": 0})
    _, _, low = _agents(device=device, conditions={"battery_share": 1, "low_battery_share": 1})
    assert charged["device"] > 250
    assert "device" not in low


def test_the_agents_learn_the_ways_as_they_are() -> None:
    """From the same headers and times that a client's own calls tell."""
    slow = {
        "prefill_tokens_per_s": 10,
        "decode_tokens_per_s": 1,
        "parallel": 1,
        "contention": 1,
        "accuracy": 0.1,
    }
    network = {"jitter": 0.2, "rate_spread": 0, "bytes_per_token": 400, "upload_bytes_per_s": 1e6, "loss": 0}
    world, agents, _ = _agents(network=network, device=slow)
    rates, ways = [], []
    for number, client in enumerate(agents._clients):
        for watch in client._nodes.watches:
            if watch.link.rtt_ms is None:
                continue
            place = next(i for i in world.nodes if world.places[i].target.node == watch.node.name)
            ways.append(watch.link.rtt_ms / world.round_trip_ms(place, number))
            if watch.link.upload_bytes_per_s is not None:
                rates.append(watch.link.upload_bytes_per_s)
    assert len(ways) >= 3
    assert sorted(ways)[len(ways) // 2] == pytest.approx(1, rel=0.4)
    assert all(0.5 < way < 2 for way in ways)  # of some, a single exchange is known
    assert sorted(rates)[len(rates) // 2] == pytest.approx(1e6, rel=0.3)


def test_a_node_s_report_is_no_older_than_the_scenario_says() -> None:
    """What a client decides by is what was published, not what is."""
    scenario = Scenario(nodes=2, clients=1, report_age_s=5)
    world = World(scenario, seed=1)
    published = Published(world)
    before = published.reports()[0]
    server = world.server(world.nodes[0], 0)
    server.submit(Job(1, 1, 0), 0.0)
    world.clock.now_s = 4.9
    assert published.reports()[0] is before or published.reports()[0].models[0].running == 0
    world.clock.now_s = 5.1
    assert published.reports()[0].models[0].running == 1


def test_the_network_treats_every_strategy_alike() -> None:
    scenario = Scenario(nodes=3, clients=2)
    asked = draw_requests(synthetic_trace(500), scenario, seed=2)
    one, other = World(scenario, seed=2), World(scenario, seed=2)
    place = one.nodes[0]
    ways = [one.way(request, place) for request in asked]
    assert ways == [other.way(request, place) for request in reversed(asked)][::-1]
    usual = [one.round_trip_ms(place, request.client) for request in asked]
    deviation = sum(
        abs(way - trip) for (way, lost), trip, request in zip(ways, usual, asked, strict=True)
        if not lost and one.sent_bytes(request) < 14_000
    ) / sum(usual)  # fmt: skip
    assert deviation == pytest.approx(scenario.network.jitter, rel=0.3)
    lossy = World(Scenario(nodes=3, clients=2, network=Network(loss=0.2)), seed=2)
    share = sum(lossy.way(request, place)[1] > 0 for request in asked) / len(asked)
    assert share == pytest.approx(0.2, abs=0.06)
