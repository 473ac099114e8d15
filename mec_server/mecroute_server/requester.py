"""Whoever made an HTTP request: its key, its deadline, and the tokens set aside for it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from mecroute.engines.llama.submitter import Submitter
from mecroute.errors import InvalidRequestError
from mecroute.nodes.headers import DEADLINE_HEADER, MAX_DEADLINE_MS
from mecroute_server.auth import scopes_for
from mecroute_server.keys import ApiKey, KeyScope
from mecroute_server.limits import RateLimiter


class Requester(Submitter):
    """One HTTP request's share of the node; `settle` must be called when it is answered.

    Args:
        key: the caller's key.
        limiter: the limits of every key.
        deadline_at: time.perf_counter() after which the caller does not want the answer, or None.
    """

    def __init__(self, key: ApiKey, limiter: RateLimiter, *, deadline_at: float | None = None) -> None:
        super().__init__(key.id, deadline_at=deadline_at)
        self._api_key = key
        self._limiter = limiter
        self._reserved = 0

    def reserve(self, tokens: int) -> None:
        """Set the tokens of one answer aside, or raise RateLimitedError."""
        self._reserved += self._limiter.reserve_tokens(self._api_key, tokens)

    def settle(self) -> None:
        """Charge what was generated, and give back the rest."""
        used = sum(generation.generated for generation in self.generations)
        self._limiter.settle_tokens(self._api_key, reserved=self._reserved, used=used)
        self._reserved = 0
        self.generations.clear()


def admit(
    key: ApiKey, limiter: RateLimiter, *, method: str, path: str, headers: Mapping[str, str]
) -> Requester:
    """Let a request in, within its key's limits. Only what asks a model (POST) counts.

    Raises:
        RateLimitedError: the key has used up its requests.
        InvalidRequestError: the deadline is not one.
    """
    deadline_at = None
    if (value := headers.get(DEADLINE_HEADER)) is not None:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or not 0 < float(value) <= MAX_DEADLINE_MS:
            raise InvalidRequestError(
                f"{DEADLINE_HEADER} is not a number of milliseconds from now, above 0 and at most a day"
            )
        deadline_at = time.perf_counter() + float(value) / 1000
    if method == "POST" and scopes_for(method, path) == {KeyScope.INFER}:
        limiter.take_request(key)
    return Requester(key, limiter, deadline_at=deadline_at)
