"""Model files that would crash native code: a node refuses them, lives on and answers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute.engines.llama.trial import try_gguf
from mecroute.errors import InvalidModelFileError, MecrouteError
from mecroute_registry.facts import ModelFacts
from mecroute_registry.store import Registry
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node


@dataclass
class Victim:
    """A node that serves `tiny`, and the registry into which files for it are put."""

    http: httpx.Client
    registry: Registry
    folder: Path

    def deploy(self, content: bytes, version: str) -> dict[str, Any] | None:
        """Register a file and have the node load it; its state then, or None if it cannot be registered."""
        file = self.folder / f"{version}.gguf"
        file.write_bytes(content)
        try:
            model = self.registry.register(
                file, ModelFacts(name="m", version=version, deployment_tiers=("mec",))
            )
        except MecrouteError:
            return None
        finally:
            file.unlink()
        assert self.http.post("/admin/models", json={"ref": model.ref}).status_code == 202
        ends_at = time.monotonic() + 60
        while True:
            state = dict(self.http.get(f"/admin/models/{model.ref}").json())
            if state["state"] in ("ready", "failed"):
                return state
            assert time.monotonic() < ends_at, state
            time.sleep(0.02)

    def says(self, model: str, text: str = "hi") -> httpx.Response:
        """Ask a model."""
        ask = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        return self.http.post("/v1/chat/completions", json={**ask, "max_tokens": len(SAYS)})

    def assert_well(self) -> None:
        """It still answers, and rightly."""
        answer = self.says("tiny")
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == SAYS


@pytest.fixture
def victim(tiny: Path, tmp_path: Path) -> Iterator[Victim]:
    settings = ServerSettings(
        port=0, registry_root=tmp_path / "node", model_files=(tiny,), threads=1, parallel=2
    )
    with running_node(settings) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        yield Victim(http, Registry(tmp_path / "node"), tmp_path)


def without_the_byte(content: bytes, byte: int) -> bytes:
    """The same model with a vocabulary in which that byte has another name: llama.cpp ends its process when a
    text with it is tokenized."""
    name = f"<0x{byte:02X}>".encode()
    assert content.count(name) == 1
    return content.replace(name, b"<0xZZ>")


def test_a_sound_header_that_crashes_llama_cpp_is_refused(victim: Victim, tiny: Path) -> None:
    state = victim.deploy(without_the_byte(tiny.read_bytes(), ord("Q")), "v1")
    assert state is not None
    assert state["state"] == "failed"
    assert state["error"]["code"] == "invalid_model_file"
    assert "the trial process was ended by SIGABRT" in state["error"]["message"]
    victim.assert_well()


def test_the_crash_is_real(tiny: Path, tmp_path: Path) -> None:
    """Without the trial the process that loads it would be gone."""
    path = tmp_path / "q.gguf"
    path.write_bytes(without_the_byte(tiny.read_bytes(), ord("Q")))
    with pytest.raises(InvalidModelFileError, match="SIGABRT"):
        try_gguf(path, n_threads=1)
    try_gguf(tiny, n_threads=1)


def test_a_file_that_takes_too_long_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "slow.gguf"
    path.write_bytes(tiny.read_bytes())
    with pytest.raises(InvalidModelFileError, match="within"):
        try_gguf(path, n_threads=1, timeout_s=0.001)


def test_a_file_that_passed_is_tried_again_once_it_has_changed(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.gguf"
    path.write_bytes(tiny.read_bytes())
    try_gguf(path, n_threads=1)
    path.write_bytes(without_the_byte(tiny.read_bytes(), ord("Q")))
    with pytest.raises(InvalidModelFileError):
        try_gguf(path, n_threads=1)


def flipped(content: bytes, seed: int) -> bytes:
    """The file with 1 to 4 bits flipped in its header or tensor infos."""
    rng = random.Random(seed)
    end = content.index(b"output.weight") + 60
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(4, end)] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(6), id="some"),
        *(
            pytest.param(range(first, first + 50), id=f"from {first}", marks=pytest.mark.slow)
            for first in (0, 50, 100, 150)
        ),
    ],
)
def test_flipped_bits_never_end_the_node(victim: Victim, tiny: Path, seeds: range) -> None:
    whole = tiny.read_bytes()
    served = 0
    for seed in seeds:
        state = victim.deploy(flipped(whole, seed), f"v{seed}")
        if state is not None and state["state"] == "ready":
            served += 1
            # It may say anything, or refuse, as long as the node survives it.
            assert victim.says(state["ref"], "QxÄ漢 {}").status_code in (200, 400, 422, 502)
            assert victim.http.post(f"/admin/models/{state['ref']}/unload").status_code in (200, 202)
        victim.assert_well()
    assert served
