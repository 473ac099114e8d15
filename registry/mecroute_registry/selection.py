"""Find the model version that a reference names, in the local registry and in a remote store alike."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from mecroute_registry.errors import ModelNotFoundError, UsageError
from mecroute_registry.facts import ModelVersion, parse_ref


def newest_first(models: Sequence[ModelVersion], name: str) -> list[ModelVersion]:
    """Return the versions of one model, the one registered last first."""
    named = [model for model in models if model.name == name]
    return sorted(named, key=lambda model: (model.created, model.version), reverse=True)


def select(ref: str, models: Sequence[ModelVersion], where: str) -> ModelVersion:
    """Return the model version that a reference names.

    Args:
        ref: `name` (its newest version), `name:version` or `name@sha256:…` (manifest digest).
        models: what there is.
        where: what holds them, for the error message.

    Raises:
        UsageError: `ref` is not a reference.
        ModelNotFoundError: nothing has that name, version or digest; the message lists close ones.
    """
    try:
        name, wanted = parse_ref(ref)
    except ValueError as error:
        raise UsageError(str(error), hint="see `mecroute models list`") from error
    versions = newest_first(models, name)
    if wanted is None and versions:
        return versions[0]
    for model in versions:
        if wanted in (model.version, model.digest):
            return model
    if versions:
        known = f"; it has {', '.join(model.version for model in versions[:8])}"
    else:
        close = difflib.get_close_matches(name, sorted({model.name for model in models}), n=3)
        known = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ModelNotFoundError(
        f"no model '{ref}' in {where}{known}", hint="see `mecroute models list`", model=ref
    )
