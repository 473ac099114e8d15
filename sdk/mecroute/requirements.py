"""What a caller asks of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast, get_args

from mecroute.errors import InvalidRequestError
from mecroute.request_body import shown
from mecroute_registry.facts import Tier

#: No latency, price or deadline is larger.
_MOST = 1e18
Privacy = Literal["device", "edge", "any"]
Caching = Literal["off", "private", "shared"]

#: The tiers a request may reach under each privacy floor.
TIERS_WITHIN: Mapping[Privacy, frozenset[Tier]] = {
    "device": frozenset({"device"}),
    "edge": frozenset({"device", "mec"}),
    "any": frozenset({"device", "mec", "cloud"}),
}


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a caller asks of one answer. Immutable; safe to share between threads.

    Args:
        max_latency_ms: > 0, wished-for time to the whole answer. It shapes the score and does not
            exclude: a late answer is better than none.
        min_quality: 0..1, predicted share of right answers. Excludes targets below it.
        max_cost_usd: >= 0, most that this one answer may cost. Excludes dearer targets.
        privacy: `device` (never leaves it), `edge` (device or MEC) or `any`. Never relaxed.
        residency: region in which the data must stay, as `eu` or `eu-central-1`. Never relaxed;
            the device always satisfies it.
        deadline_ms: > 0, wall clock from the call; past it the call ends with
            `DeadlineExceededError`.
        policy: name of the policy that weighs the factors; default: the configured one.
        zone: where the user is. Of equally good targets those in the same zone come first, and a
            conversation is handed over to them when it changes.
        cache: `off` (neither taken from the cache nor kept there), `private` (within the user, the app and
            the API key) or `shared` (among all). Stating `private` or `shared` asks for it also where the
            answer is sampled; unstated, only answers that would come out the same are cached, privately.
        cascade: whether a nearby answer may be judged and, if it is too poor, asked for elsewhere. True asks
            for that, whatever the policy and the settings say, also for a stream, which is then held back
            until it is judged. Unstated, they say.

    Raises:
        InvalidRequestError: a value is out of its range, or two contradict each other.
    """

    max_latency_ms: float | None = None
    min_quality: float | None = None
    max_cost_usd: float | None = None
    privacy: Privacy = "any"
    residency: str | None = None
    deadline_ms: float | None = None
    policy: str | None = None
    zone: str | None = None
    cache: Caching | None = None
    cascade: bool | None = None

    def __post_init__(self) -> None:
        _check("max_latency_ms", self.max_latency_ms, "a number above 0", lambda v: v > 0)
        _check("min_quality", self.min_quality, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        _check("max_cost_usd", self.max_cost_usd, "a number of at least 0", lambda v: v >= 0)
        _check("deadline_ms", self.deadline_ms, "a number above 0", lambda v: v > 0)
        if not _is_one_of(self.privacy, Privacy):
            raise InvalidRequestError(
                f"requirements.privacy must be 'device', 'edge' or 'any', not {shown(self.privacy)}"
            )
        if self.cache is not None and not _is_one_of(self.cache, Caching):
            raise InvalidRequestError(
                f"requirements.cache must be 'off', 'private' or 'shared', not {shown(self.cache)}"
            )
        if self.cascade not in (None, True, False):
            raise InvalidRequestError(f"requirements.cascade must be a boolean, not {shown(self.cascade)}")
        for name, expected in (("residency", "a region"), ("policy", "a policy's name"), ("zone", "a zone")):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or not text):
                raise InvalidRequestError(f"requirements.{name} must be {expected}, not {shown(text)}")
        if self.max_latency_ms and self.deadline_ms and self.max_latency_ms > self.deadline_ms:
            raise InvalidRequestError(
                f"requirements.max_latency_ms ({self.max_latency_ms:g}) and requirements.deadline_ms "
                f"({self.deadline_ms:g}) contradict each other: the wish lies beyond the limit",
                hint="wish for a latency within the deadline, or leave one of them out",
            )

    @classmethod
    def parse(cls, value: Requirements | Mapping[str, Any] | None) -> Requirements:
        """Accept what callers pass: an instance, a mapping (as in a JSON body) or nothing."""
        if value is None:
            return _NONE_STATED
        if isinstance(value, Requirements):
            return value
        if not isinstance(value, Mapping):
            raise InvalidRequestError(f"requirements must be an object, not {type(value).__name__}")
        known = {field.name for field in fields(cls)}
        unknown = [name for name in value if name not in known]
        if unknown:
            told = unknown[0] if isinstance(unknown[0], str) else shown(unknown[0])
            raise InvalidRequestError(
                f"requirements.{told} is not known", hint=f"known: {', '.join(sorted(known))}"
            )
        return cls(**cast("dict[str, Any]", dict(value)))

    def allows_tier(self, tier: Tier) -> bool:
        """Whether the privacy floor lets a request reach this tier."""
        return tier in TIERS_WITHIN[self.privacy]

    def allows_region(self, tier: Tier, region: str | None) -> bool:
        """Whether the residency lets data be in this region. An unknown region never does."""
        if self.residency is None or tier == "device":
            return True
        if region is None:
            return False
        return region == self.residency or region.startswith(f"{self.residency}-")

    def to_dict(self) -> dict[str, Any]:
        """The stated requirements as JSON types; what was not stated is left out."""
        return {name: value for name in Requirements.__slots__ if (value := getattr(self, name)) is not None}


def _check(name: str, value: object, expected: str, within: Any) -> None:
    if value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= _MOST  # neither NaN nor infinite, nor a whole number that no float holds
        or not within(value)
    ):
        raise InvalidRequestError(f"requirements.{name} must be {expected}, not {shown(value)}")


def _is_one_of(value: object, names: Any) -> bool:
    return isinstance(value, str) and value in get_args(names)


#: Immutable, so that every request without requirements may share it.
_NONE_STATED = Requirements()
