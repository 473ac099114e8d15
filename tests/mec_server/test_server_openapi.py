"""The OpenAPI description: it is true, and requests made from it never make the server fail or hang."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mecroute_server.auth import OPEN_PATHS
from mecroute_server.openapi import BODIES
from mecroute_server.run import NodeServer

#: What every chat-like path answers with 200, so that each body described is a body that works.
MESSAGES = [{"role": "user", "content": "hi"}]
WORKING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/embeddings": {"input": "x"},
    "/v1/rerank": {"query": "x", "documents": ["y"]},
    "/v1/responses": {"input": "x", "max_output_tokens": 2},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/api/chat": {"messages": MESSAGES, "options": {"num_predict": 2}},
    "/api/generate": {"prompt": "x", "options": {"num_predict": 2}},
    "/api/embed": {"input": "x"},
    "/api/show": {},
}


def test_every_body_is_described_where_it_belongs(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for path in BODIES:
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert content["application/json"]["schema"] == BODIES[path]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert ("security" in operation) == (path not in OPEN_PATHS)


@pytest.mark.parametrize("path", [path for path in BODIES if not path.startswith(("/admin", "/v1/classify"))])
def test_a_body_with_what_is_required_is_answered(http: httpx.Client, path: str) -> None:
    body = {"model": "tiny", **WORKING[path]}
    assert set(BODIES[path]["required"]) <= set(body)
    assert set(body) <= set(BODIES[path]["properties"])
    assert http.post(path, json=body).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_made_from_the_description_makes_it_fail_or_hang(node: NodeServer, mode: str) -> None:
    import schemathesis
    from hypothesis import HealthCheck, given, settings

    document = schemathesis.openapi.from_url(f"{node.url}/openapi.json")
    generation_mode = getattr(schemathesis.GenerationMode, mode)
    asked: set[str] = set()

    for found in document.get_all_operations():
        operation = found.ok()
        if mode == "NEGATIVE" and (operation.method.upper() != "POST" or operation.path not in BODIES):
            continue  # there is nothing in it to make wrong

        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=generation_mode))
        def send(case: Any) -> None:
            if isinstance(case.body, dict) and case.body.get("model"):
                case.body["model"] = "tiny"  # a name made up at random gets no further than 404
            answer = case.call(timeout=30)
            asked.add(case.operation.path)
            assert answer.status_code < 500, (case.operation.label, case.body, answer.text)

        send()
    assert asked >= set(BODIES)
    assert httpx.get(f"{node.url}/healthz").status_code == 200
    slot = node.node.pool.find("tiny")
    assert slot.loaded is not None
    assert slot.loaded.in_flight == 0
