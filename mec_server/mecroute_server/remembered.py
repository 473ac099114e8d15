"""What was deployed and pinned on a node, kept in a file so that it is there after a restart."""

from __future__ import annotations

import json
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mecroute.errors import ConfigError
from mecroute_registry.facts import DIGEST_PATTERN

_log = logging.getLogger(__name__)

#: Larger than any node's list, small enough to read without a thought.
_MAX_BYTES = 4 << 20


class Remembered(BaseModel):
    """One model of the node.

    Args:
        digest: the manifest digest that was deployed; None for a model that is only pinned.
        pinned: whether it stays in memory.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str | None = Field(default=None, pattern=DIGEST_PATTERN)
    pinned: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: int = Field(default=1, ge=1, le=1)
    models: dict[str, Remembered] = {}


@dataclass(slots=True)
class NodeMemory:
    """The file; every change is on disk when the call returns. For one thread.

    Args:
        path: the file; it and its folder need not exist.
    """

    path: Path
    _models: dict[str, Remembered] | None = None

    def models(self) -> dict[str, Remembered]:
        """What is remembered, by reference, in the order of deployment.

        A file that cannot be read is put aside as `<name>.damaged`, and the log says so: a node that
        serves nothing but what is asked for anew is better than one that does not start.
        """
        if self._models is None:
            self._models = self._read()
        return dict(self._models)

    def deployed(self, ref: str, digest: str | None) -> None:
        """A model was deployed.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._change(ref, Remembered(digest=digest, pinned=self._get(ref).pinned))

    def pinned(self, ref: str, pinned: bool) -> None:
        """A model was pinned, or is no longer.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._change(ref, Remembered(digest=self._get(ref).digest, pinned=pinned))

    def removed(self, ref: str) -> None:
        """A model is gone from the node.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._change(ref, Remembered())

    def _get(self, ref: str) -> Remembered:
        return self.models().get(ref, Remembered())

    def _change(self, ref: str, entry: Remembered) -> None:
        models = self.models()
        if models.get(ref, Remembered()) == entry:
            return
        if entry == Remembered():
            models.pop(ref, None)
        else:
            models[ref] = entry
        self._write(_File(models=models).model_dump_json(indent=1).encode())
        self._models = models

    def _read(self) -> dict[str, Remembered]:
        try:
            if self.path.stat().st_size > _MAX_BYTES:
                raise ValueError("it is too large")
            return _File.model_validate(json.loads(self.path.read_bytes())).models
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError, ValidationError) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            _log.error("%s cannot be read and is put aside as %s: %s", self.path, aside.name, error)
            try:
                self.path.replace(aside)
            except OSError:
                _log.exception("%s cannot be put aside", self.path)
            return {}

    def _write(self, data: bytes) -> None:
        """Replace the file at once: whoever reads it, after a crash too, finds the old one or the new one."""
        temporary = self.path.with_name(f".{self.path.name}-{os.getpid()}-{secrets.token_hex(8)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ConfigError(
                f"what is deployed cannot be kept in {self.path}: {error.strerror or error}",
                hint="make the folder writable for the node, or name another with [server] state_path",
            ) from error
