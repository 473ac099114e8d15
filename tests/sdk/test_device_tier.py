"""The device tier on a real, tiny model: answers, streams, continues, refuses, and stays private."""

from __future__ import annotations

import json
import threading
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


def test_a_deadline_does_not_wait_for_the_bandwidth_to_be_measured(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = threading.Event()

    def slowly() -> float:
        assert measured.wait(30)
        return 1e10

    monkeypatch.setattr("mecroute.device.bandwidth.measure_bandwidth", slowly)
    first = client.route(messages=HELLO, requirements={"deadline_ms": 3000})
    assert any("assumed" in note for note in first.candidates[0].notes), first.explain()
    measured.set()
    later = client.route(messages=HELLO)
    assert any("memory bandwidth" in note for note in later.candidates[0].notes), later.explain()


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


def test_what_the_engine_can_do_is_what_the_device_is_asked_for(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    model = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=2048)
    registry.register(model, ModelFacts(name="tiny", version="1", deployment_tiers=("device",)))
    config = Config(
        registry=RegistryConfig(path=registry.root),
        device=DeviceConfig(threads=1),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
    )
    lamp = {"type": "function", "function": {"name": "lamp"}}
    schema = {"name": "s", "schema": {"enum": ["a", "b"]}, "strict": True}
    with Client(config) as client:
        create = client.chat.completions.create
        form = {"type": "json_schema", "json_schema": schema}
        reply = create(messages=HELLO, n=2, logprobs=True, response_format=form)
        assert reply.mecroute.tier == "device"
        assert len(reply.choices) == 2
        assert all(json.loads(choice.message.content or "") in ("a", "b") for choice in reply.choices)
        assert create(messages=HELLO, response_format={"type": "json_object"}, max_tokens=2)
        assert create(messages=HELLO, logit_bias={"300": 1}, max_tokens=1)
        assert create(messages=HELLO, grammar='root ::= "ok"').choices[0].message.content == "ok"
        calls = create(messages=HELLO, tools=[lamp], tool_choice="required").choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].function is not None
        assert calls[0].function.name == "lamp"
        stream = create(messages=HELLO, tools=[lamp], tool_choice="required", stream=True)
        parts = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
        assert (
            "".join((call.function and call.function.arguments) or "" for call in parts)
            == calls[0].function.arguments
        )


def test_what_the_engine_cannot_do_is_no_request_for_the_device(client: Client) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(NoEligibleTargetError):
        client.chat.completions.create(messages=image)
    with pytest.raises(NoEligibleTargetError):
        client.chat.completions.create(messages=HELLO, functions=[{"name": "f"}])
