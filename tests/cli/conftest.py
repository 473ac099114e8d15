"""Runs commands of the command line in this process, in a folder without settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mecroute_cli.main import main


@pytest.fixture(autouse=True)
def _in_an_empty_folder(empty_dir: Path) -> None:
    """No mecroute.toml is found from where a command runs."""


@dataclass(frozen=True)
class Answer:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as the one JSON document it must be."""
        return json.loads(self.out)


@pytest.fixture
def mecroute(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command in this process: `mecroute("models", "list")`."""

    def run(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return run
