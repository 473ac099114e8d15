"""Hard constraints: which targets may not serve a request, each with a named reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mecroute.classification import shortened
from mecroute.context import Context
from mecroute.decision import Reason, Rejection
from mecroute.errors import InvalidRequestError
from mecroute.lazy import Lazy
from mecroute.request import Request
from mecroute.requirements import TIERS_WITHIN
from mecroute.target import ANY_MODEL, TargetState
from mecroute_registry.facts import Task

_GB = 1e9


def check_consistent(request: Request) -> None:
    """Refuse a request that asks for what its own requirements exclude.

    Raises:
        InvalidRequestError: the message names the two that contradict each other.
    """
    tier, asked = request.model.tier, request.requirements
    if tier is not None and not asked.allows_tier(tier):
        raise InvalidRequestError(
            f"model '{request.model.text}' and requirements.privacy '{asked.privacy}' contradict each other: "
            f"the privacy floor excludes the {tier} tier",
            hint="ask for a model of a tier within the floor, or relax the floor",
        )


class Screen:
    """The constraints of one request.

    Attributes:
        check: called with a target's state: the first constraint that excludes it, or None; privacy and
            residency come before all others.
    """

    def __init__(self, request: Request, context: Context, battery_floor: float) -> None:
        self._request = request
        self._context = context
        self._battery_floor = battery_floor
        self.check = _check(request, context, battery_floor)

    def detail(self, state: TargetState, reason: Reason) -> str:
        """A refusal in words."""
        target, asked, device = state.target, self._request.requirements, self._context.device
        if reason == "privacy":
            return f"privacy is '{asked.privacy}'"
        if reason == "residency":
            return f"data must stay in '{asked.residency}', this is in {target.region or 'an unknown region'}"
        if reason == "model":
            return f"the request asks for '{self._request.model.text}'"
        if reason == "capability":
            if self._request.task == "classify":
                if "chat" in state.tasks and self._request.body.get("labels") is None:
                    return "a chat model needs labels= to choose from"
                return "neither a text classifier nor a chat model that keeps to a JSON schema"
            if self._request.task not in state.tasks:
                return f"cannot do '{self._request.task}'"
            return f"lacks {', '.join(sorted(self._context.features.needs - state.abilities))}"
        if reason == "labels":
            lacking = [one for one in self._request.body["labels"] if one not in (state.labels or ())]
            return f"has no class {shortened(lacking)}"
        if reason == "offline":
            return "this host has no network route"
        if reason == "metered":
            limit = self._context.network.upload_limit_bytes
            return f"{self._context.upload_bytes} bytes to send, at most {limit} on a metered network"
        if reason == "unavailable":
            return state.unavailable or "its price is not a number of at least 0"
        if reason == "context_length":
            features = self._context.features
            tokens = features.longest_tokens or features.prompt_tokens
            if asked_for(self._request.task, state) != self._request.task:
                tokens += features.chat_prompt_tokens
            return f"about {tokens} tokens do not fit {state.context_length}"
        if reason == "memory":
            free = device.memory_available_bytes or 0
            return f"needs {state.memory_needed_bytes / _GB:.2f} GB, {free / _GB:.2f} GB are free"
        if reason == "battery":
            return f"battery at {device.battery or 0:.0%}, the floor is {self._battery_floor:.0%}"
        return reason


def asked_for(task: Task, state: TargetState) -> Task:
    """What a target is asked for that may serve a task: a chat model is asked for classes in a chat."""
    return "chat" if task == "classify" and task not in state.tasks else task


def _check(
    request: Request, context: Context, battery_floor: float
) -> Callable[[TargetState], Reason | None]:
    """A function over local names: it is called for every target."""
    asked, model, task, device = request.requirements, request.model, request.task, context.device
    tiers = TIERS_WITHIN[asked.privacy]
    has_residency = asked.residency is not None
    any_model = model.name is None and model.tier is None
    features = context.features
    needs, prompt_tokens = features.needs, features.longest_tokens or features.prompt_tokens
    chat_tokens = features.chat_prompt_tokens
    labels = frozenset(request.body["labels"]) if request.body.get("labels") and task == "classify" else None
    offline, limit = context.network.offline, context.network.upload_limit_bytes
    is_too_much = limit is not None and context.upload_bytes > limit
    free, battery = device.memory_available_bytes, device.battery
    is_low = battery is not None and not device.charging and battery < battery_floor

    def check(state: TargetState) -> Reason | None:
        target = state.target
        tier = target.tier
        if tier not in tiers:
            return "privacy"
        if has_residency and not asked.allows_region(tier, target.region):
            return "residency"
        if not any_model and not (
            model.admits(tier, target.model)
            # A node of which nothing is known may have the model that is asked for: it is out of reach.
            or (target.model == ANY_MODEL and model.tier in (None, tier))
        ):
            return "model"
        tokens = prompt_tokens
        if task not in state.tasks:
            # A chat model is asked for one of the labels.
            if labels is None or "chat" not in state.tasks or "json_schema" not in state.abilities:
                return "capability"
            tokens += chat_tokens
        elif labels is not None and state.labels is not None and not labels <= state.labels:
            return "labels"
        if needs and not needs <= state.abilities:
            return "capability"
        if offline and state.reached_over_network:
            return "offline"
        if is_too_much and state.reached_over_network:
            return "metered"
        if state.unavailable is not None:
            return "unavailable"
        if tokens > state.context_length:
            return "context_length"
        if tier == "device":
            if free is not None and state.memory_needed_bytes > free:
                return "memory"
            if is_low:
                return "battery"
        return None

    return check


def rejections(
    screen: Screen, found: Sequence[tuple[TargetState, Reason, str | None]]
) -> Sequence[Rejection]:
    """The rejected targets; each put into words when it is read."""

    def make(place: int) -> Rejection:
        state, reason, detail = found[place]
        return Rejection(state.target, reason, detail or screen.detail(state, reason))

    return Lazy(len(found), make)
