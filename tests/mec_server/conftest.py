"""A node with a tiny model that says a known text, shared by the tests of one module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node
from support.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says SAYS, of 256 tokens of context."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", says=SAYS)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with so much context that an answer without a limit outlasts any test."""
    path = tmp_path_factory.mktemp("models") / "endless.gguf"
    return write_tiny_gguf(path, says=SAYS, context_length=65536)


@pytest.fixture(scope="module")
def node(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    """A node that serves `tiny`."""
    settings = ServerSettings(
        port=0,
        node="edge-1",
        zone="zone-a",
        region="eu-1",
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=(tiny,),
        threads=1,
        parallel=2,
        max_body_bytes=20_000,
    )
    with running_node(settings) as server:
        yield server


@pytest.fixture
def http(node: NodeServer) -> Iterator[httpx.Client]:
    """A client of that node."""
    with httpx.Client(base_url=node.url, timeout=30) as client:
        yield client
