"""The router over HTTP, asked by the unmodified `openai` client and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mecroute import Config
from mecroute.config import BudgetConfig, CloudConfig, DeviceConfig, RegistryConfig, StateConfig
from mecroute_registry import ModelFacts, Registry
from mecroute_server.router import create_router_app
from support.tiny_gguf import write_tiny_gguf
from support.upstream import WORDS, Upstream, running, upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]


@pytest.fixture
def cloud() -> Iterator[Upstream]:
    with upstream() as up:
        yield up


@pytest.fixture
def url(tmp_path: Path, cloud: Upstream) -> Iterator[str]:
    registry = Registry(tmp_path / "registry")
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    registry.register(model, ModelFacts(name="tiny", version="1", deployment_tiers=("device",)))
    config = Config(
        registry=RegistryConfig(path=registry.root),
        device=DeviceConfig(threads=1, context=256),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        cloud=(CloudConfig(name="c1", base_url=f"{cloud.url}/v1", model="big", continues_prefix=True),),
    )
    with running(create_router_app(config)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_auto_works_from_the_openai_client(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="auto", messages=HELLO, extra_body={"requirements": {"min_quality": 0.89}}
    )
    assert reply.choices[0].message.content
    told = reply.model_extra["mecroute"]
    assert told["tier"] in ("device", "cloud")
    assert told["decision"]["candidates"][0]["scores"]["total"] > 0


def test_a_stream_ends_with_where_it_came_from(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="cloud/big", messages=HELLO, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "".join(WORDS)
    assert chunks[-1].model_extra["mecroute"]["outcome"]["target_id"] == "cloud/c1/big"


def test_privacy_holds_over_http_too(client: openai.OpenAI, cloud: Upstream) -> None:
    reply = client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "Prove, step by step, why we must compare these designs."}],
        max_tokens=4,
        extra_body={"requirements": {"privacy": "device"}},
    )
    assert reply.model_extra["mecroute"]["tier"] == "device"
    assert cloud.requests == []


def test_models_and_embeddings(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["auto", "big", "tiny:1"]
    vectors = client.embeddings.create(model="device/tiny", input=["a", "b"], encoding_format="float")
    assert len(vectors.data) == 2


def test_a_decision_without_running_it(url: str, cloud: Upstream) -> None:
    decision = httpx.post(f"{url}/v1/route", json={"messages": HELLO}).json()
    assert {c["target"]["tier"] for c in decision["candidates"]} == {"device", "cloud"}
    assert cloud.requests == []


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b"{}", 400, "'messages' is missing"),
        (b'{"messages": []}', 400, "messages is empty"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": 5}', 400, "stream"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "none"}', 422, "no target is left"),
        (b'{"messages": [{"role": "user", "content": "x"}], "requirements": {"privacy": 1}}', 400, "privacy"),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "requirements": {"policy": "fast"}}',
            400,
            "known policies: balanced",
        ),
    ],
)
def test_bad_requests_are_named_in_openais_shape(url: str, body: bytes, status: int, named: str) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", content=body)
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]


def test_pages_of_other_origins_are_refused(url: str) -> None:
    headers = {"origin": "https://example.com"}
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 403


def test_an_unknown_path_has_the_same_shape(url: str) -> None:
    answer = httpx.get(f"{url}/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_apps_have_budgets_of_their_own_by_the_key_they_send(tmp_path: Path, cloud: Upstream) -> None:
    config = Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        cloud=(CloudConfig(name="c1", base_url=f"{cloud.url}/v1", model="big", output_usd_per_mtok=1000),),
        budgets=(BudgetConfig(name="each", limit_usd=0.021, scope="key"),),  # type: ignore[call-arg]
    )
    asked: dict[str, Any] = {"model": "auto", "messages": HELLO, "max_tokens": 20}
    with running(create_router_app(config)) as url:
        told = []
        for key in ("app-1", "app-1", "app-2"):
            answer = httpx.post(
                f"{url}/v1/chat/completions",
                json={**asked, "key": "of my own choice"},
                headers={"authorization": f"Bearer {key}"},
            )
            told.append((answer.status_code, "budget 'each'" in answer.text))
    assert told == [(200, False), (422, True), (200, False)]
    assert b"app-1" not in (tmp_path / "budgets.sqlite3").read_bytes()


def test_classes_are_routed_too(url: str, cloud: Upstream) -> None:
    cloud.words = ['{"label": "sad"}']
    ask = {"input": "so blue", "labels": ["calm", "sad"], "model": "cloud/auto"}
    answer = httpx.post(f"{url}/v1/classify", json=ask).json()
    assert answer["data"] == [{"index": 0, "label": "sad", "probs": [], "num_classes": 2, "scores": []}]
    assert answer["mecroute"]["tier"] == "cloud"
    decided = httpx.post(f"{url}/v1/route", json=ask).json()
    assert decided["candidates"][0]["task"] == "chat"
