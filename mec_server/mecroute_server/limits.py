"""How much each API key may ask: requests and generated tokens per minute."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from mecroute_server.errors import RateLimitedError
from mecroute_server.keys import ApiKey

#: Keys whose buckets are remembered; beyond that the one that has not asked for longest starts afresh.
_MAX_KEYS = 16_384


class TokenBucket:
    """Lets `per_minute` through per minute, and as many at once after a minute of rest.

    Args:
        per_minute: > 0.
        now: seconds of the caller's clock; the bucket starts full.

    Attributes:
        level: what may be taken now; below 0 after more was used than had been reserved.
    """

    __slots__ = ("_at", "level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self.level = float(per_minute)
        self._at = now

    def refill(self, now: float) -> None:
        """Add what the time since the last call is worth."""
        self.level = min(self.per_minute, self.level + (now - self._at) * self.per_minute / 60)
        self._at = now

    def wait_s(self) -> float:
        """Seconds until there is one to take; 0 if there is."""
        return max(0.0, (1 - self.level) * 60 / self.per_minute)


class RateLimiter:
    """The limits of every key. Belongs to one event loop.

    Args:
        requests_per_minute: of a key that has no limit of its own; None: unlimited.
        output_tokens_per_minute: of a key that has no limit of its own; None: unlimited.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        output_tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests_per_minute = requests_per_minute
        self._output_tokens_per_minute = output_tokens_per_minute
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str], TokenBucket] = OrderedDict()

    def take_request(self, key: ApiKey) -> None:
        """Count one request.

        Raises:
            RateLimitedError: the key has used up its requests.
        """
        limit = key.requests_per_minute or self._requests_per_minute
        if limit is not None:
            bucket = self._bucket(key, "requests", limit)
            self._check(bucket, key, "requests")
            bucket.level -= 1

    def reserve_tokens(self, key: ApiKey, tokens: int) -> int:
        """Set generated tokens aside, so that requests at the same time cannot spend them twice.

        Args:
            key: whose they are.
            tokens: as many as may be generated; with fewer left, all of those.

        Returns:
            How many were set aside.

        Raises:
            RateLimitedError: the key has used up its tokens.
        """
        limit = key.output_tokens_per_minute or self._output_tokens_per_minute
        if limit is None:
            return 0
        bucket = self._bucket(key, "output tokens", limit)
        self._check(bucket, key, "output tokens")
        reserved = min(tokens, int(bucket.level))
        bucket.level -= reserved
        return reserved

    def settle_tokens(self, key: ApiKey, *, reserved: int, used: int) -> None:
        """Give back what was set aside and not used, or charge what was used beyond it."""
        limit = key.output_tokens_per_minute or self._output_tokens_per_minute
        if limit is not None:
            bucket = self._bucket(key, "output tokens", limit)
            bucket.level = min(bucket.per_minute, bucket.level + reserved - used)

    def _bucket(self, key: ApiKey, what: str, limit: int) -> TokenBucket:
        now = self._clock()
        bucket = self._buckets.get((key.id, what))
        if bucket is None or bucket.per_minute != limit:
            bucket = self._buckets[key.id, what] = TokenBucket(limit, now)
        self._buckets.move_to_end((key.id, what))
        while len(self._buckets) > 2 * _MAX_KEYS:
            self._buckets.popitem(last=False)
        bucket.refill(now)
        return bucket

    @staticmethod
    def _check(bucket: TokenBucket, key: ApiKey, what: str) -> None:
        if (wait_s := bucket.wait_s()) > 0:
            raise RateLimitedError(
                f"key '{key.id}' has used its {bucket.per_minute} {what} per minute", retry_after_s=wait_s
            )
