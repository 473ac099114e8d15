"""Which models should lie where: the value of demand served per byte, greedily, within each place's bytes.

One copy of a model serves so many requests an hour; what is left of the demand is worth another copy
elsewhere. Taking the pair of model and place with the most value per byte until nothing fits is the usual
greedy for knapsacks (Dantzig 1957); since a single large model can be worth more than the small ones that
were taken before it, each place is also compared with its single most valuable model, which keeps at least
half of the best value there (Kellerer et al. 2004, "Knapsack Problems", section 2.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mecroute.errors import InvalidRequestError

#: Keeping a model costs nothing and loading one does, so what is there counts for so much more.
STAY_BONUS = 1.25


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """One model that could be placed.

    Args:
        ref: its reference.
        size_bytes: > 0; memory that a loaded copy takes.
        requests_per_hour: >= 0; expected demand.
        benefit: >= 0; what serving one request there is worth, in any unit that all models share.
        capacity_per_hour: > 0; requests that one copy serves; infinite where unknown.
    """

    ref: str
    size_bytes: int
    requests_per_hour: float
    benefit: float = 1.0
    capacity_per_hour: float = math.inf

    def __post_init__(self) -> None:
        if self.size_bytes <= 0 or not self.capacity_per_hour > 0:
            raise InvalidRequestError(f"'{self.ref}' needs a size and a capacity above 0")
        if not (math.isfinite(self.requests_per_hour) and self.requests_per_hour >= 0):
            raise InvalidRequestError(f"the demand for '{self.ref}' is not a number of at least 0")
        if not (math.isfinite(self.benefit) and self.benefit >= 0):
            raise InvalidRequestError(f"the benefit of '{self.ref}' is not a number of at least 0")


@dataclass(frozen=True, slots=True)
class Place:
    """One place with memory for models.

    Args:
        name: the node's name, or `device`.
        budget_bytes: >= 0; for models, those that are loaded now among them.
        loaded: what is loaded there now.
        allowed: what may lie there; None for everything.
    """

    name: str
    budget_bytes: int
    loaded: frozenset[str] = frozenset()
    allowed: frozenset[str] | None = None

    def admits(self, ref: str) -> bool:
        """Whether a model may lie here."""
        return self.allowed is None or ref in self.allowed


@dataclass(frozen=True, slots=True)
class Plan:
    """What should lie where.

    Args:
        wanted: by place, the models that should be loaded.
        load, unload: by place, what has to be done; a model without demand stays where it is in nobody's way.
        value: of the demand that is served per hour.
    """

    wanted: dict[str, frozenset[str]]
    load: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unload: dict[str, tuple[str, ...]] = field(default_factory=dict)
    value: float = 0.0


def plan(models: Iterable[ModelNeed], places: Sequence[Place]) -> Plan:
    """Place models by demand. Pure: the same input gives the same plan.

    Args:
        models: what could be placed, each reference once.
        places: where, each name once.

    Raises:
        InvalidRequestError: a reference or a name occurs twice.
    """
    needs = {need.ref: need for need in models}
    names = [place.name for place in places]
    if len(set(names)) != len(names):
        raise InvalidRequestError("a place is named twice")
    chosen = _greedy(needs, places)
    wanted = {place.name: frozenset(chosen[place.name]) for place in places}
    load, unload = {}, {}
    for place in places:
        keep = wanted[place.name]
        new = tuple(sorted(keep - place.loaded))
        if new:
            load[place.name] = new
        gone = _to_unload(place, keep, needs)
        if gone:
            unload[place.name] = gone
    return Plan(wanted, load, unload, value_of(needs, wanted))


def value_of(needs: dict[str, ModelNeed], wanted: dict[str, frozenset[str]]) -> float:
    """The value of the demand that a placement serves, per hour."""
    total = 0.0
    for ref, need in needs.items():
        copies = sum(ref in models for models in wanted.values())
        served = min(need.requests_per_hour, copies * need.capacity_per_hour) if copies else 0.0
        total += served * need.benefit
    return total


def _greedy(needs: dict[str, ModelNeed], places: Sequence[Place]) -> dict[str, set[str]]:
    left = {place.name: place.budget_bytes for place in places}
    unserved = {ref: need.requests_per_hour for ref, need in needs.items()}
    chosen: dict[str, set[str]] = {place.name: set() for place in places}
    first_served = dict(unserved)
    while True:
        best: tuple[float, str, str] | None = None
        for place in places:
            for ref, need in needs.items():
                if ref in chosen[place.name] or need.size_bytes > left[place.name] or not place.admits(ref):
                    continue
                gain = _gain(need, unserved[ref])
                if gain <= 0:
                    continue
                density = gain / need.size_bytes * (STAY_BONUS if ref in place.loaded else 1.0)
                # Ties in the order of names, so that the same input gives the same plan.
                if best is None or (density, best[1], best[2]) > (best[0], ref, place.name):
                    best = (density, ref, place.name)
        if best is None:
            break
        _, ref, name = best
        chosen[name].add(ref)
        left[name] -= needs[ref].size_bytes
        unserved[ref] -= min(unserved[ref], needs[ref].capacity_per_hour)
    for place in places:
        _prefer_single(place, needs, chosen, first_served)
    return chosen


def _prefer_single(
    place: Place, needs: dict[str, ModelNeed], chosen: dict[str, set[str]], demand: dict[str, float]
) -> None:
    """Take one large model in place of all chosen here where that serves more."""
    elsewhere = dict(demand)
    for name, refs in chosen.items():
        if name != place.name:
            for ref in refs:
                elsewhere[ref] -= min(elsewhere[ref], needs[ref].capacity_per_hour)
    here = sum(_gain(needs[ref], elsewhere[ref]) for ref in chosen[place.name])
    for ref in sorted(needs):
        need = needs[ref]
        if need.size_bytes <= place.budget_bytes and place.admits(ref):
            gain = _gain(need, elsewhere[ref])
            if gain > here * STAY_BONUS:
                here, chosen[place.name] = gain, {ref}


def _gain(need: ModelNeed, unserved: float) -> float:
    return min(unserved, need.capacity_per_hour) * need.benefit


def _to_unload(place: Place, keep: frozenset[str], needs: dict[str, ModelNeed]) -> tuple[str, ...]:
    """What must go for the wanted models to fit: the least asked for first, and no more than needed."""
    others = [ref for ref in place.loaded - keep if ref in needs]
    used = sum(needs[ref].size_bytes for ref in keep) + sum(needs[ref].size_bytes for ref in others)
    gone = []
    for ref in sorted(others, key=lambda ref: (needs[ref].requests_per_hour * needs[ref].benefit, ref)):
        if used <= place.budget_bytes:
            break
        gone.append(ref)
        used -= needs[ref].size_bytes
    return tuple(gone)
