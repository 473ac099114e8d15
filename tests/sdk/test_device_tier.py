"""The device tier on a real, tiny model: answers, streams, continues, refuses, and stays private."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mecroute import Client, Config
from mecroute.config import DeviceConfig, RegistryConfig, StateConfig
from mecroute.errors import AllTargetsFailedError, DigestMismatchError, NoEligibleTargetError
from mecroute_registry.facts import ModelFacts
from mecroute_registry.store import Registry
from support.tiny_gguf import write_tiny_gguf

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    registry.register(model, ModelFacts(name="tiny", version="1", deployment_tiers=("device",)))
    return registry


@pytest.fixture
def client(tmp_path: Path, registry: Registry) -> Iterator[Client]:
    config = Config(
        registry=RegistryConfig(path=registry.root),
        device=DeviceConfig(threads=1, context=256),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
    )
    with Client(config) as client:
        yield client


def text(stream) -> str:
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def test_it_answers_without_any_network_or_key(client: Client) -> None:
    reply = client.chat.completions.create(messages=HELLO, max_tokens=8, temperature=0)
    assert reply.mecroute.tier == "device"
    assert reply.usage is not None
    assert 1 <= reply.usage.completion_tokens <= 8
    assert reply.choices[0].finish_reason in ("stop", "length")


def test_streamed_and_whole_answers_are_the_same(client: Client) -> None:
    whole = client.chat.completions.create(messages=HELLO, max_tokens=24, temperature=0)
    stream = client.chat.completions.create(messages=HELLO, max_tokens=24, temperature=0, stream=True)
    assert text(stream) == whole.choices[0].message.content
    assert stream.mecroute is not None
    assert stream.mecroute.outcome.ttft_ms is not None
    assert whole.usage is not None
    assert stream.mecroute.outcome.output_tokens == whole.usage.completion_tokens


def test_a_loaded_model_is_faster_to_begin(client: Client) -> None:
    before = client.route(messages=HELLO)
    client.chat.completions.create(messages=HELLO, max_tokens=4)
    after = client.route(messages=HELLO)
    assert any("must be loaded first" in note for note in before.candidates[0].notes)
    assert not any("must be loaded first" in note for note in after.candidates[0].notes)


def test_embeddings_have_length_one(client: Client) -> None:
    got = client.embeddings.create(input=["one", "two words"])
    assert len(got.data) == 2
    for vector in got.data:
        assert sum(float(x) ** 2 for x in vector.embedding) == pytest.approx(1, abs=1e-3)


def test_tampered_bytes_are_never_run(client: Client, registry: Registry) -> None:
    path = registry.path(registry.get("tiny"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(AllTargetsFailedError) as caught:
        client.chat.completions.create(messages=HELLO)
    assert isinstance(caught.value.attempts[0][1], DigestMismatchError)


def test_a_model_registered_later_is_found(client: Client, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NoEligibleTargetError):
        client.chat.completions.create(model="later", messages=HELLO)
    other = write_tiny_gguf(tmp_path / "later.gguf", seed=2)
    registry.register(other, ModelFacts(name="later", version="1", deployment_tiers=("device",)))
    reply = client.chat.completions.create(model="later", messages=HELLO, max_tokens=2)
    assert reply.mecroute.model == "later:1"


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(client: Client) -> None:
    long = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(NoEligibleTargetError, match="context_length.*do not fit 256"):
        client.chat.completions.create(messages=long)
