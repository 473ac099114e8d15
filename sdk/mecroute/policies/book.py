"""Finds a policy by its name: built in, configured, or code that another package brings along."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from mecroute.config.schema import Weighting
from mecroute.errors import InvalidRequestError
from mecroute.policies.policy import BUILT_IN, Policy, Scorer

#: Entry point group under which packages offer policies of their own: name → a `Scorer`.
GROUP = "mecroute.policies"


class PolicyBook:
    """Every policy there is. Entry points are looked up when a name is known in no other way.

    Args:
        configured: `[router.policies]`, by name.
    """

    def __init__(self, configured: Mapping[str, Weighting]) -> None:
        self._known = dict(BUILT_IN)
        for name, weights in configured.items():
            self._known[name] = Policy(
                name,
                weights.latency,
                weights.quality,
                weights.cost,
                weights.availability,
                floor=weights.floor,
                cascade=weights.cascade,
                encode=weights.encode,
            )

    def find(self, name: str) -> Policy:
        """The policy of this name.

        Raises:
            InvalidRequestError: there is none, or its code cannot be loaded.
        """
        policy = self._known.get(name)
        if policy is None:
            policy = self._known[name] = self._load(name)
        return policy

    def names(self) -> list[str]:
        """Every policy that can be asked for."""
        return sorted({*self._known, *_offered()})

    def _load(self, name: str) -> Policy:
        offered = _offered().get(name)
        if offered is None:
            raise InvalidRequestError(
                f"there is no policy '{name}'; known policies: {', '.join(self.names())}",
                hint="name one of these, or add your own under [router] policies",
            )
        try:
            scorer = offered.load()
        except Exception as error:
            raise InvalidRequestError(
                f"the policy '{name}' ({offered.value}) cannot be loaded: {type(error).__name__}: {error}",
                hint="mend or uninstall the package that offers it",
            ) from error
        if not callable(scorer):
            raise InvalidRequestError(
                f"the policy '{name}' ({offered.value}) is a {type(scorer).__name__} and cannot be called",
                hint="an entry point of mecroute.policies is a function (candidate, features, requirements)",
            )
        return Policy(name, scorer=cast("Scorer", scorer))


def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
