"""How long the answers are that each user usually gets. On disk and in memory, users are digests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from mecroute.numbers import finite

_ALPHA = 0.2  # weight of the newest observation
_USERS_KEPT = 1000


class UsualLengths:
    """Mean answer length per user, in tokens, the newest answers weighing most. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mean: OrderedDict[str, float] = OrderedDict()
        self._changed: set[str] = set()

    def of(self, user: str) -> float | None:
        """The mean of one user, by digest; None where unknown."""
        return self._mean.get(user)

    def learn(self, user: str, output_tokens: int) -> None:
        """Take one answer in."""
        with self._lock:
            known = self._mean.get(user)
            mean = float(output_tokens) if known is None else known + _ALPHA * (output_tokens - known)
            self._mean[user] = mean
            self._mean.move_to_end(user)
            self._changed.add(user)
            while len(self._mean) > _USERS_KEPT:
                gone, _ = self._mean.popitem(last=False)
                self._changed.discard(gone)

    def take_changes(self) -> dict[str, dict[str, Any]]:
        """What changed since the last call, as JSON objects by digest."""
        with self._lock:
            changed, self._changed = self._changed, set()
            return {user: {"output_tokens": self._mean[user]} for user in changed}

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        """Take back what `take_changes` gave. Damaged values are left out."""
        mean = finite(value.get("output_tokens"))
        if mean is not None and mean >= 0:
            with self._lock:
                if len(self._mean) < _USERS_KEPT:
                    self._mean[name] = mean

    def forget(self) -> None:
        """Start afresh."""
        with self._lock:
            self._mean.clear()
            self._changed.clear()


def known_as(user: str) -> str:
    """A user's name as it is kept: a digest, so that no list of users lies on the disk."""
    return blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
