"""What models exist, where they may run, and their bytes.

Public names are imported on first use, so that `import mecroute`, which needs only the version from here,
stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mecroute_registry._version import __version__

if TYPE_CHECKING:
    from mecroute_registry.digest import Progress, sha256_file
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
    from mecroute_registry.facts import (
        Evaluation,
        ModelFacts,
        ModelFile,
        ModelFormat,
        ModelVersion,
        Profile,
        Task,
        Tier,
        parse_ref,
    )
    from mecroute_registry.gguf import GgufFacts, read_gguf
    from mecroute_registry.paths import cache_dir, config_dir, data_dir, default_registry_dir, state_dir
    from mecroute_registry.store import Registry

_HOMES = {
    "ArtifactError": "errors",
    "ArtifactExistsError": "errors",
    "DigestMismatchError": "errors",
    "Evaluation": "facts",
    "GgufFacts": "gguf",
    "InvalidModelFileError": "errors",
    "MecrouteError": "errors",
    "MissingExtraError": "errors",
    "ModelFacts": "facts",
    "ModelFile": "facts",
    "ModelFormat": "facts",
    "ModelNotFoundError": "errors",
    "ModelVersion": "facts",
    "Profile": "facts",
    "Progress": "digest",
    "Registry": "store",
    "RemoteStoreError": "errors",
    "Task": "facts",
    "Tier": "facts",
    "UsageError": "errors",
    "cache_dir": "paths",
    "config_dir": "paths",
    "data_dir": "paths",
    "default_registry_dir": "paths",
    "parse_ref": "facts",
    "read_gguf": "gguf",
    "sha256_file": "digest",
    "state_dir": "paths",
}

__all__ = [
    "ArtifactError",
    "ArtifactExistsError",
    "DigestMismatchError",
    "Evaluation",
    "GgufFacts",
    "InvalidModelFileError",
    "MecrouteError",
    "MissingExtraError",
    "ModelFacts",
    "ModelFile",
    "ModelFormat",
    "ModelNotFoundError",
    "ModelVersion",
    "Profile",
    "Progress",
    "Registry",
    "RemoteStoreError",
    "Task",
    "Tier",
    "UsageError",
    "__version__",
    "cache_dir",
    "config_dir",
    "data_dir",
    "default_registry_dir",
    "parse_ref",
    "read_gguf",
    "sha256_file",
    "state_dir",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mecroute_registry' has no attribute '{name}'")
    value = getattr(import_module(f"mecroute_registry.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
