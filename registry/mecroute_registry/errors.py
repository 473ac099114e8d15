"""The root of every error mecroute raises, and the branch for models and artifacts.

The whole tree is drawn in `mecroute.errors`; this module holds what the registry itself raises.
"""

from __future__ import annotations


class MecrouteError(Exception):
    """Anything mecroute raises on purpose.

    Args:
        message: what failed and where, in one sentence.
        hint: what the reader can do about it (a command where there is one).
        retryable: whether the same call may succeed later without a change.
        tier: the tier concerned (`device`, `mec`, `cloud`), if one is.
        model: the model reference concerned, if one is.
    """

    #: HTTP status when a mecroute server answers with this error.
    status: int = 500
    #: OpenAI's `error.code`: stable, snake_case.
    code: str = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        tier: str | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retryable = retryable
        self.tier = tier
        self.model = model

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(MecrouteError):
    """The caller's own mistake: a bad argument, a bad configuration, a missing extra."""

    status = 400
    code = "invalid_request"


class MissingExtraError(UsageError):
    """An optional part of mecroute is not installed.

    Args:
        extra: the extra that carries it, as in `pip install 'mecroute[extra]'`.
        needed_for: what was about to be done, as a noun phrase.
    """

    status = 501
    code = "missing_extra"

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the '{extra}' extra, which is not installed",
            hint=f"pip install 'mecroute[{extra}]'",
        )
        self.extra = extra


class ArtifactError(MecrouteError):
    """A model or another artifact is missing, damaged or out of reach."""

    code = "artifact_error"


class ModelNotFoundError(ArtifactError):
    """No model of that name, or no such version of it."""

    status = 404
    code = "model_not_found"


class InvalidModelFileError(ArtifactError):
    """A model file cannot be read: wrong format, truncated, or with impossible sizes."""

    status = 422
    code = "invalid_model_file"


class DigestMismatchError(ArtifactError):
    """The bytes are not those that their digest names."""

    status = 422
    code = "digest_mismatch"


class ArtifactExistsError(ArtifactError):
    """That name and version are already taken by other bytes."""

    status = 409
    code = "artifact_exists"


class RemoteStoreError(ArtifactError):
    """The remote model store cannot be reached, or refuses."""

    status = 502
    code = "remote_store_error"
