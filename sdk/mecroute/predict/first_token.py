"""What a request takes by itself up to its first token: a line over what its prompt is claimed to take.

    time = network + base + factor · prefill

A profile or a live speed tells how long a token of a prompt takes. It does not tell of what comes on top of
each request, of the tokens of a chat template that a cache holds already, and of a tokenizer that makes more
or fewer tokens of a text than was estimated: the first two are the base, the last is in the factor.
"""

from __future__ import annotations

#: Within these, whatever was observed.
FACTOR_BOUNDS = (0.1, 10.0)
BASE_BOUNDS_MS = (-60_000.0, 60_000.0)
#: An answer's weight with each later one.
_KEEP = 0.95
#: And after a surprise: if it was the first of many, what was learned before is soon outweighed.
_KEEP_AFTER_SURPRISE = 0.7
#: How much the factor so far weighs at first, in units of relative errors, what is left of that with each
#: answer, and in the end. The base weighs as much by what may well come on top.
_WEIGHT = 2.0
_FADES = 0.9
_LEAST_WEIGHT = 0.02
_USUAL_BASE_MS = 200.0
#: A shorter time is as hard to predict as this one.
_LEAST_MS = 20.0


class FirstToken:
    """The line of one target, by weighted least squares of relative errors.

    What is known already weighs like a few answers at first and next to nothing later: it then decides only
    where the answers cannot tell base and factor apart.

    Args:
        base_ms, factor: where it begins.
    """

    __slots__ = ("_products", "_times", "_weight", "base_ms", "factor")

    def __init__(self, base_ms: float = 0.0, factor: float = 1.0) -> None:
        self.base_ms = base_ms
        self.factor = factor
        self._weight = _WEIGHT
        #: Weighted sums of (1, prefill, prefill²), and of the time beside the network with (1, prefill).
        self._products = [0.0, 0.0, 0.0]
        self._times = [0.0, 0.0]

    def learn(
        self, prefill_ms: float, off_ms: float, *, of_ms: float, surprise: bool, assumed: bool = False
    ) -> None:
        """Take one answer.

        Args:
            prefill_ms: what its prompt was claimed to take.
            off_ms: how much longer than predicted network, base and prefill took.
            of_ms: the whole predicted time to first token, with the waiting: all that could be wrong.
            surprise: whether it was off by much more than others, and `off_ms` is a bound.
            assumed: whether the claim is a guess, which weighs nothing against an answer.
        """
        if assumed:
            self._weight = _LEAST_WEIGHT
        keep = _KEEP_AFTER_SURPRISE if surprise else _KEEP
        weight = 1 / max(of_ms, _LEAST_MS) ** 2
        time_ms = self.base_ms + self.factor * prefill_ms + off_ms
        for at, value in enumerate((1.0, prefill_ms, prefill_ms * prefill_ms)):
            self._products[at] = self._products[at] * keep + weight * value
        for at, value in enumerate((time_ms, time_ms * prefill_ms)):
            self._times[at] = self._times[at] * keep + weight * value
        known_base, known_factor = self._weight / _USUAL_BASE_MS**2, self._weight
        self._weight = max(_LEAST_WEIGHT, self._weight * _FADES)
        a, b, d = self._products[0] + known_base, self._products[1], self._products[2] + known_factor
        whole = a * d - b * b
        if whole <= 0:
            return
        with_base = self._times[0] + known_base * self.base_ms
        with_factor = self._times[1] + known_factor * self.factor
        self.base_ms = _within(BASE_BOUNDS_MS, (with_base * d - b * with_factor) / whole)
        self.factor = _within(FACTOR_BOUNDS, (a * with_factor - b * with_base) / whole)


def _within(bounds: tuple[float, float], value: float) -> float:
    return min(max(value, bounds[0]), bounds[1])
