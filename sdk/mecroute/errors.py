"""Every error mecroute raises on purpose.

MecrouteError
├── UsageError                     the caller's mistake
│   ├── ConfigError                a configuration file, variable or flag
│   ├── InvalidRequestError        a request no target could serve as written
│   │   ├── ContextLengthError     prompt and output do not fit any context window
│   │   ├── InvalidSnapshotError   what should be an exported conversation is none
│   │   └── UnknownLabelError      one classifier lacks a class that is wanted; another may have it
│   ├── AuthenticationError        no key, or a key that is not accepted
│   └── MissingExtraError          an optional part is not installed
├── TierError                      a place that should have answered did not
│   ├── NodeNotFoundError          no node of that name is configured
│   ├── NodeNotReadyError          the node is up but cannot serve this now
│   ├── TierUnreachableError       connection refused, reset, timed out, or a 5xx
│   ├── TierResponseError          an answer that is not what the protocol promises
│   │   └── NoClassError           a chat model was asked for a class and named none of them
│   └── AllTargetsFailedError      every ranked target was tried and failed
├── ArtifactError                  a model or artifact problem
│   ├── ModelNotFoundError
│   ├── InvalidModelFileError
│   ├── DigestMismatchError
│   ├── ArtifactExistsError
│   └── RemoteStoreError
├── StateError                     the file of decisions or of budgets cannot be used
└── RequestRefusedError            understood, and not going to be served
    ├── NoEligibleTargetError      the requirements exclude every target
    ├── BudgetExceededError        a budget has no room for it; carries frees_at
    ├── DeadlineExceededError      the deadline passed, or cannot be met
    │   └── TargetTooSlowError     one target could not meet it; another may
    ├── SessionNotFoundError       no such conversation is in memory
    ├── SessionConflictError       the conversation cannot be moved as things are
    ├── InsufficientRoomError      the KV memory has no room for it
    └── OverloadedError            the queue is full; carries retry_after_s
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mecroute_registry.errors import (
    ArtifactError,
    ArtifactExistsError,
    DigestMismatchError,
    InvalidModelFileError,
    MecrouteError,
    MissingExtraError,
    ModelNotFoundError,
    RemoteStoreError,
    UsageError,
)

if TYPE_CHECKING:
    from mecroute.decision import Decision

__all__ = [
    "AllTargetsFailedError",
    "ArtifactError",
    "ArtifactExistsError",
    "AuthenticationError",
    "BudgetExceededError",
    "ConfigError",
    "ContextLengthError",
    "DeadlineExceededError",
    "DigestMismatchError",
    "InsufficientRoomError",
    "InvalidModelFileError",
    "InvalidRequestError",
    "InvalidSnapshotError",
    "MecrouteError",
    "MissingExtraError",
    "ModelNotFoundError",
    "NoClassError",
    "NoEligibleTargetError",
    "NodeNotFoundError",
    "NodeNotReadyError",
    "OverloadedError",
    "RemoteStoreError",
    "RequestRefusedError",
    "SessionConflictError",
    "SessionNotFoundError",
    "StateError",
    "TargetTooSlowError",
    "TierError",
    "TierResponseError",
    "TierUnreachableError",
    "UnknownLabelError",
    "UsageError",
]


class ConfigError(UsageError):
    """A configuration file, environment variable or flag is wrong; the message names which and where."""

    code = "config_error"


class InvalidRequestError(UsageError):
    """The request is malformed: no target could serve it as written."""


class ContextLengthError(InvalidRequestError):
    """Prompt and requested output do not fit the context window."""

    code = "context_length_exceeded"


class InvalidSnapshotError(InvalidRequestError):
    """What should be an exported conversation is none, or was cut off or changed."""

    code = "invalid_snapshot"


class UnknownLabelError(InvalidRequestError):
    """A classifier has no such class. It is in order, and another target may know the class."""

    code = "unknown_label"


class AuthenticationError(UsageError):
    """No API key was sent, or the one sent is not accepted for this."""

    status = 401
    code = "invalid_api_key"


class TierError(MecrouteError):
    """A place that should have answered did not."""

    status = 502
    code = "tier_error"


class NodeNotFoundError(TierError):
    """No node of that name is configured."""

    status = 404
    code = "node_not_found"


class NodeNotReadyError(TierError):
    """The node is up but cannot serve this request now.

    `retry_after_s` is when it says that it may; None where it says nothing.
    """

    status = 503
    code = "node_not_ready"

    def __init__(self, message: str, *, retry_after_s: float | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class TierUnreachableError(TierError):
    """Connection refused, reset or timed out, or the service answered with a server error."""

    code = "tier_unreachable"


class TierResponseError(TierError):
    """The service answered with something its protocol does not allow."""

    code = "tier_response_error"


class NoClassError(TierResponseError):
    """A chat model that was asked for a class named none of them."""

    code = "no_class"


class AllTargetsFailedError(TierError):
    """Every ranked target was tried and failed.

    `attempts` holds one error per target, in the order tried. `retry_after_s` is the soonest that one of them
    said it is worth asking again; None where none did.
    """

    code = "all_targets_failed"

    def __init__(self, attempts: Sequence[tuple[str, MecrouteError]]) -> None:
        tried = "; ".join(f"{target}: {error.message}" for target, error in attempts)
        said = (getattr(error, "retry_after_s", None) for _, error in attempts)
        self.retry_after_s: float | None = min((wait for wait in said if wait is not None), default=None)
        hint = "run `mecroute doctor` to see which tiers are reachable"
        if self.retry_after_s is not None:
            hint = f"retry after {self.retry_after_s:.1f} s"
        super().__init__(
            f"all {len(attempts)} targets failed: {tried}",
            hint=hint,
            retryable=any(error.retryable for _, error in attempts),
        )
        self.attempts = tuple(attempts)


class StateError(MecrouteError):
    """The SQLite file of decisions or of budgets cannot be read or written."""

    status = 500
    code = "state_error"


class RequestRefusedError(MecrouteError):
    """The request was understood and will not be served."""

    status = 422
    code = "request_refused"


class NoEligibleTargetError(RequestRefusedError):
    """The requirements exclude every target; `decision.rejected` says which and why."""

    code = "no_eligible_target"

    def __init__(self, message: str, *, decision: Decision, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.decision = decision


class BudgetExceededError(RequestRefusedError):
    """A budget has no room for the most that this call can cost.

    `budget` is its name; `frees_at` is the Unix time at which its next period begins, None where the budgets
    cannot be read.
    """

    status = 402
    code = "budget_exceeded"

    def __init__(
        self, message: str, *, budget: str, frees_at: float | None, hint: str, tier: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, tier=tier)
        self.budget = budget
        self.frees_at = frees_at


class DeadlineExceededError(RequestRefusedError):
    """The request's deadline passed before it could be answered."""

    status = 504
    code = "deadline_exceeded"


class TargetTooSlowError(DeadlineExceededError):
    """A target refused at once: with nothing else to do it could not meet the deadline. Another may."""


class SessionNotFoundError(RequestRefusedError):
    """No conversation of that name is in memory."""

    status = 404
    code = "session_not_found"


class SessionConflictError(RequestRefusedError):
    """The conversation cannot be moved: it is being answered, or comes from another model or build."""

    status = 409
    code = "session_conflict"


class InsufficientRoomError(RequestRefusedError):
    """The KV memory has no room for a conversation."""

    status = 507
    code = "insufficient_room"


class OverloadedError(RequestRefusedError):
    """The queue is full. `retry_after_s` comes from the rate at which it drains."""

    status = 429
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float, tier: str | None = None) -> None:
        super().__init__(message, hint=f"retry after {retry_after_s:.1f} s", retryable=True, tier=tier)
        self.retry_after_s = retry_after_s
