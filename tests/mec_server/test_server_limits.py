"""Limits per key and deadlines, as a caller meets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute_server.errors import RateLimitedError
from mecroute_server.keys import ALL_SCOPES, ApiKey, KeyFile, KeyScope
from mecroute_server.limits import RateLimiter
from mecroute_server.settings import ServerSettings
from support.server import running_node

KEY = ApiKey(id="k", name="k", scopes=ALL_SCOPES, digest="")
ASK: dict[str, Any] = {"model": "tiny", "prompt": "x", "temperature": 0, "max_tokens": 4}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_requests_come_back_with_time() -> None:
    clock = Clock()
    limiter = RateLimiter(requests_per_minute=6, clock=clock)
    for _ in range(6):
        limiter.take_request(KEY)
    with pytest.raises(RateLimitedError, match="6 requests per minute") as caught:
        limiter.take_request(KEY)
    assert caught.value.retry_after_s == pytest.approx(10)
    clock.now += 10
    limiter.take_request(KEY)
    with pytest.raises(RateLimitedError):
        limiter.take_request(KEY)
    clock.now += 3600  # no more than a minute's worth is saved up
    for _ in range(6):
        limiter.take_request(KEY)
    with pytest.raises(RateLimitedError):
        limiter.take_request(KEY)


def test_tokens_are_reserved_then_settled() -> None:
    clock = Clock()
    limiter = RateLimiter(output_tokens_per_minute=60, clock=clock)
    first = limiter.reserve_tokens(KEY, 40)
    second = limiter.reserve_tokens(KEY, 40)
    assert (first, second) == (40, 20)
    with pytest.raises(RateLimitedError):  # all of it is promised already
        limiter.reserve_tokens(KEY, 1)
    limiter.settle_tokens(KEY, reserved=first, used=10)
    assert limiter.reserve_tokens(KEY, 100) == 30
    limiter.settle_tokens(KEY, reserved=second, used=40)  # 20 beyond what was set aside
    limiter.settle_tokens(KEY, reserved=30, used=30)
    with pytest.raises(RateLimitedError) as caught:
        limiter.reserve_tokens(KEY, 1)
    assert caught.value.retry_after_s == pytest.approx(21)


def test_a_keys_own_limit_comes_first() -> None:
    limiter = RateLimiter(requests_per_minute=1)
    roomy = ApiKey(id="r", name="r", scopes=ALL_SCOPES, digest="", requests_per_minute=3)
    for _ in range(3):
        limiter.take_request(roomy)
    limiter.take_request(KEY)
    with pytest.raises(RateLimitedError):
        limiter.take_request(KEY)


def test_without_a_limit_nothing_is_remembered() -> None:
    limiter = RateLimiter()
    for _ in range(100):
        limiter.take_request(KEY)
        limiter.settle_tokens(KEY, reserved=limiter.reserve_tokens(KEY, 10), used=10)
    assert not limiter._buckets


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mecroute_server.limits._MAX_KEYS", 8)
    limiter = RateLimiter(requests_per_minute=1)
    for number in range(100):
        limiter.take_request(ApiKey(id=str(number), name="", scopes=ALL_SCOPES, digest=""))
    assert len(limiter._buckets) == 16


@pytest.fixture(scope="module")
def limited(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, KeyFile]]:
    root = tmp_path_factory.mktemp("limited")
    file = KeyFile(root / "keys.json")
    settings = ServerSettings(
        port=0,
        keys_file=file.path,
        registry_root=root / "registry",
        model_files=(tiny,),
        threads=1,
        parallel=2,
    )
    with running_node(settings) as server:
        yield server.url, file


def test_a_key_over_its_requests_gets_429(limited: tuple[str, KeyFile]) -> None:
    url, file = limited
    _, secret = file.create("slow", list(KeyScope), requests_per_minute=2)
    other = file.create("other", list(KeyScope))[1]
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {secret}"}) as http:
        assert [http.post("/v1/completions", json=ASK).status_code for _ in range(2)] == [200, 200]
        refused = http.post("/v1/completions", json=ASK)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert http.get("/v1/models").status_code == 200  # only what asks a model counts
        assert http.get("/admin/node").status_code == 200
        headers = {"authorization": f"Bearer {other}"}
        assert http.post("/v1/completions", json=ASK, headers=headers).status_code == 200
        assert 'mecroute_refused_requests_total{reason="rate_limited"}' in http.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_over_its_tokens_gets_429(limited: tuple[str, KeyFile], stream: bool) -> None:
    url, file = limited
    _, secret = file.create("terse", [KeyScope.INFER], output_tokens_per_minute=4)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {secret}"}) as http:
        assert http.post("/v1/completions", json={**ASK, "stream": stream}).status_code == 200
        refused = http.post("/v1/completions", json={**ASK, "stream": stream})
        assert refused.status_code == 429
        assert "4 output tokens per minute" in refused.json()["error"]["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 15


def test_what_was_not_generated_is_not_charged(limited: tuple[str, KeyFile]) -> None:
    url, file = limited
    _, secret = file.create("terse", [KeyScope.INFER], output_tokens_per_minute=30)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {secret}"}) as http:
        for _ in range(3):  # each may have all that is left, and stops after a few
            answer = http.post("/v1/completions", json={**ASK, "max_tokens": 200, "stop": ["E"]})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] < 5


def test_an_impossible_deadline_gets_504(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json=ASK, headers={"x-mecroute-deadline-ms": "0.001"})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"


def test_a_deadline_that_can_be_met_is(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json=ASK, headers={"x-mecroute-deadline-ms": "60000"})
    assert answer.status_code == 200


@pytest.mark.parametrize("value", ["", "0", "-1", "soon", "1e3", "nan", "inf", "86400001", "9" * 400, "٣"])
def test_what_is_no_deadline_is_refused(http: httpx.Client, value: str) -> None:
    headers = {"x-mecroute-deadline-ms": value.encode()}
    answer = http.post("/v1/completions", json=ASK, headers=headers)
    assert answer.status_code == 400
    assert "x-mecroute-deadline-ms" in answer.json()["error"]["message"]
