"""The closest edge zone by CAMARA Simple Edge Discovery, against a real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from mecroute.config import CamaraSource
from mecroute.config.schema import StoreConfig
from mecroute.errors import AuthenticationError, ConfigError, MecrouteError, TierResponseError
from mecroute.nodes.discovery import Found, open_discovery
from support.upstream import running

ZONE = {"edgeCloudZoneId": "z-17", "edgeCloudZoneName": "Munich 3", "edgeCloudProvider": "operator"}
NODE = "https://munich.example:8100"


@dataclass
class Operator:
    content: bytes = b"{}"
    status: int = 200
    url: str = ""
    asked: list[tuple[dict[str, str], Any]] = field(default_factory=list)


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    monkeypatch.setenv("EDGE_TOKEN", "secret-token")
    told = Operator()
    app = FastAPI()

    @app.post("/op/simple-edge-discovery/v2/retrieve-closest-edge-cloud-zone")
    async def closest(request: Request) -> Response:
        told.asked.append((dict(request.headers), await request.json()))
        return Response(told.content, status_code=told.status, media_type="application/json")

    with running(app) as url:
        told.url = f"{url}/op"
        yield told


def find(operator: Operator, **facts: Any) -> Found:
    source = CamaraSource.model_validate(
        {"kind": "camara", "name": "op", "root": operator.url, "token_env": "EDGE_TOKEN",
         "zones": {"z-17": NODE, "Berlin 1": "https://berlin.example"}, **facts}
    )  # fmt: skip

    async def run() -> Found:
        discovery = open_discovery(source, StoreConfig())
        try:
            return await discovery.find()
        finally:
            await discovery.aclose()

    return asyncio.run(run())


def as_json(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


def refusal(code: str, message: str) -> bytes:
    return as_json({"status": 400, "code": code, "message": message})


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_closest_zone_becomes_its_node_as_an_object_or_a_list(operator: Operator, wrapped: bool) -> None:
    operator.content = as_json([ZONE] if wrapped else ZONE)
    (node,) = find(operator).nodes
    assert (node.url, node.zone) == (NODE, "Munich 3")
    headers, body = operator.asked[0]
    assert headers["authorization"] == "Bearer secret-token"
    assert len(headers["x-correlator"]) == 36
    assert body == {}


def test_a_zone_is_found_by_its_name_and_the_device_is_told_where_configured(operator: Operator) -> None:
    operator.content = as_json({**ZONE, "edgeCloudZoneId": "z-1", "edgeCloudZoneName": "Berlin 1"})
    device = {"phoneNumber": "+4900000000"}
    assert find(operator, device=device).nodes[0].url == "https://berlin.example"
    assert operator.asked[0][1] == {"device": device}


def test_a_zone_without_a_node_is_noted(operator: Operator) -> None:
    operator.content = as_json({**ZONE, "edgeCloudZoneId": "z-99"})
    found = find(operator)
    assert not found.nodes
    assert "z-99 / Munich 3" in found.notes[0]


@pytest.mark.parametrize(
    ("status", "content", "error", "said"),
    [
        (401, refusal("UNAUTHENTICATED", "no"), AuthenticationError, "UNAUTHENTICATED: no"),
        (404, refusal("NOT_FOUND", "who?"), MecrouteError, "NOT_FOUND: who"),
        (503, b"<html>", MecrouteError, "503 .no reason given"),
        (200, b"<html>", TierResponseError, "not JSON"),
        (200, b"5", TierResponseError, "not a zone"),
        (200, as_json(["z"]), TierResponseError, "not a zone"),
        (200, as_json([ZONE] * 65), TierResponseError, "not a zone"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_named_and_the_token_is_not(
    operator: Operator, status: int, content: bytes, error: type[MecrouteError], said: str
) -> None:
    operator.status, operator.content = status, content
    with pytest.raises(error, match=said) as caught:
        find(operator)
    assert "secret-token" not in str(caught.value)


def test_without_a_token_nobody_is_asked(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_TOKEN")
    with pytest.raises(AuthenticationError, match="EDGE_TOKEN"):
        find(operator)
    assert not operator.asked


def test_a_token_is_not_sent_without_tls(operator: Operator) -> None:
    with pytest.raises(ConfigError, match="not https"):
        find(operator, root="http://operator.example")
