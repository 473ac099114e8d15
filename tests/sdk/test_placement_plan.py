"""Placement: never beyond a budget, close to the best there is, and steady."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from mecroute.errors import InvalidRequestError
from mecroute.placement.plan import ModelNeed, Place, plan, value_of


def best_value(needs: dict[str, ModelNeed], places: list[Place]) -> float:
    """Every placement there is; for small cases only."""
    options = []
    for place in places:
        fitting = []
        for count in range(len(needs) + 1):
            for refs in itertools.combinations(sorted(needs), count):
                if all(place.admits(ref) for ref in refs) and (
                    sum(needs[ref].size_bytes for ref in refs) <= place.budget_bytes
                ):
                    fitting.append(frozenset(refs))
        options.append(fitting)
    return max(
        value_of(needs, dict(zip((p.name for p in places), combination, strict=True)))
        for combination in itertools.product(*options)
    )


def random_case(rng: random.Random) -> tuple[dict[str, ModelNeed], list[Place]]:
    needs = {
        f"m{i}": ModelNeed(
            f"m{i}",
            rng.randint(1, 60),
            rng.choice([0.0, rng.uniform(0, 5), rng.uniform(0, 100)]),
            rng.uniform(0.1, 3),
            rng.choice([math.inf, rng.uniform(1, 30)]),
        )
        for i in range(rng.randint(1, 6))
    }
    places = [
        Place(
            f"p{i}",
            rng.randint(0, 100),
            frozenset(ref for ref in needs if rng.random() < 0.2),
            None if rng.random() < 0.8 else frozenset(ref for ref in needs if rng.random() < 0.5),
        )
        for i in range(rng.randint(1, 2))
    ]
    return needs, places


def test_against_every_placement_there_is() -> None:
    rng = random.Random(7)
    shares = []
    for _ in range(400):
        needs, places = random_case(rng)
        made = plan(needs.values(), places)
        for place in places:
            wanted = made.wanted[place.name]
            assert sum(needs[ref].size_bytes for ref in wanted) <= place.budget_bytes
            assert all(place.admits(ref) for ref in wanted)
        assert made.value == pytest.approx(value_of(needs, made.wanted))
        best = best_value(needs, places)
        if best > 0:
            shares.append(made.value / best)
    assert min(shares) >= 0.5 / 1.25, "half of the best, but for the bonus of what is loaded"
    assert sum(shares) / len(shares) >= 0.95


def test_a_plan_that_was_carried_out_is_left_as_it_is() -> None:
    rng = random.Random(8)
    for _ in range(200):
        needs, places = random_case(rng)
        first = plan(needs.values(), places)
        done = [Place(p.name, p.budget_bytes, first.wanted[p.name], p.allowed) for p in places]
        again = plan(needs.values(), done)
        assert again.value >= first.value - 1e-9
        if again.wanted == first.wanted:
            assert not again.load
            assert not again.unload


def test_one_large_model_can_be_worth_more_than_many_small_ones() -> None:
    needs = [ModelNeed("small", 1, 2), ModelNeed("large", 100, 100)]
    assert plan(needs, [Place("p", 100)]).wanted == {"p": frozenset({"large"})}


def test_demand_beyond_one_copy_s_capacity_is_worth_a_second_copy() -> None:
    needs = [ModelNeed("hot", 10, 100, capacity_per_hour=60), ModelNeed("cool", 10, 30)]
    made = plan(needs, [Place("a", 10), Place("b", 10)])
    assert sorted(map(sorted, made.wanted.values())) == [["hot"], ["hot"]]
    assert made.value == 100


def test_what_is_loaded_stays_unless_something_clearly_better_comes() -> None:
    needs = [ModelNeed("old", 10, 10), ModelNeed("new", 10, 11)]
    assert plan(needs, [Place("p", 10, frozenset({"old"}))]).wanted["p"] == {"old"}
    clearly = [ModelNeed("old", 10, 10), ModelNeed("new", 10, 20)]
    made = plan(clearly, [Place("p", 10, frozenset({"old"}))])
    assert (made.load, made.unload) == ({"p": ("new",)}, {"p": ("old",)})


def test_nothing_is_unloaded_that_is_in_nobody_s_way() -> None:
    needs = [ModelNeed("wanted", 10, 5), ModelNeed("idle", 10, 0), ModelNeed("idler", 30, 0)]
    made = plan(needs, [Place("p", 30, frozenset({"idle"}))])
    assert (made.load, made.unload) == ({"p": ("wanted",)}, {})
    tight = plan(needs, [Place("p", 15, frozenset({"idle"}))])
    assert (tight.load, tight.unload) == ({"p": ("wanted",)}, {"p": ("idle",)})


@pytest.mark.parametrize(
    "bad",
    [
        {"size_bytes": 0}, {"requests_per_hour": math.nan}, {"requests_per_hour": -1.0},
        {"benefit": math.inf}, {"capacity_per_hour": 0.0}, {"capacity_per_hour": math.nan},
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match="'m'"):
        ModelNeed(**{"ref": "m", "size_bytes": 1, "requests_per_hour": 1.0, **bad})  # type: ignore[arg-type]


def test_a_place_named_twice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="twice"):
        plan([], [Place("p", 1), Place("p", 1)])
