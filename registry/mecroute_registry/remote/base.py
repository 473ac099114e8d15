"""What every remote model store can do."""

from __future__ import annotations

import builtins
from typing import Protocol

from mecroute_registry.digest import Progress
from mecroute_registry.facts import ModelVersion
from mecroute_registry.store import Registry


class RemoteStore(Protocol):
    """A place outside this machine that keeps model versions with their measurements.

    Implementations are thread-safe. Every method raises `RemoteStoreError` when the store cannot be reached
    or refuses.
    """

    @property
    def uri(self) -> str:
        """The URI that names the store."""
        ...

    def push(self, registry: Registry, model: ModelVersion, progress: Progress | None = None) -> None:
        """Copy a model version, its file and its measurements into the store.

        What the store has already is not sent again.

        Raises:
            ModelNotFoundError: the model is not in the registry.
            DigestMismatchError: its file in the registry is damaged.
            ArtifactExistsError: the store has other content under that name and version.
        """
        ...

    def pull(
        self,
        ref: str,
        registry: Registry,
        *,
        expect_digest: str | None = None,
        progress: Progress | None = None,
    ) -> ModelVersion:
        """Copy a model version into the registry; an interrupted pull resumes where it ended.

        Args:
            ref: `name` (its newest version), `name:version` or `name@sha256:…`.
            registry: where to copy it.
            expect_digest: the manifest digest that it must have.
            progress: called with bytes done and in all.

        Raises:
            UsageError: `ref` is not a reference.
            ModelNotFoundError: the store has no such model.
            DigestMismatchError: the bytes, or the manifest, are not the expected ones; nothing is registered.
            ArtifactExistsError: the registry has other content under that name and version.
        """
        ...

    def list(self) -> builtins.list[ModelVersion]:
        """Return the model versions in the store, sorted by name and version."""
        ...
