"""For whom a request is made: whose turn it takes, until when its answer is of use, what it may cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mecroute.engines.llama.generation import Generation


class Submitter:
    """Whoever submits requests to engines; make a subclass to bound what it may generate.

    Args:
        key: waiting requests of different keys take turns.
        deadline_at: time.perf_counter() after which nobody wants the answer; None: no deadline.

    Attributes:
        generations: what it has submitted, and an engine accepted.
    """

    def __init__(self, key: str = "", *, deadline_at: float | None = None) -> None:
        self.key = key
        self.deadline_at = deadline_at
        self.generations: list[Generation] = []

    def left_s(self, now: float) -> float | None:
        """Seconds until the deadline, negative once it has passed; None without one.

        Args:
            now: time.perf_counter().
        """
        return None if self.deadline_at is None else self.deadline_at - now

    def reserve(self, tokens: int) -> None:
        """Called before a request that may generate up to `tokens` is queued; raises to refuse it."""

    def accepted(self, generation: Generation) -> None:
        """Called once it is queued."""
        self.generations.append(generation)


class _Nobody(Submitter):
    """Requests of an application that has not said who it asks for; it remembers none of them."""

    def accepted(self, generation: Generation) -> None:
        del generation


_NOBODY = _Nobody()
#: The server's routes make their requests in many places, and each belongs to the HTTP request that is being
#: answered: like a trace's context, that is a property of the task, not an argument of every function.
_current: ContextVar[Submitter] = ContextVar("mecroute_submitter", default=_NOBODY)


def current_submitter() -> Submitter:
    """The submitter of the requests that this task or thread makes."""
    return _current.get()


@contextmanager
def submitting(submitter: Submitter) -> Iterator[Submitter]:
    """Make it the submitter of every request made in the block, tasks started in it included."""
    token = _current.set(submitter)
    try:
        yield submitter
    finally:
        _current.reset(token)
