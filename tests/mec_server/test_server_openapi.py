"""The OpenAPI description: it is true, and requests made from it never make the server fail or hang."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute_server.auth import OPEN_PATHS
from mecroute_server.openapi import BODIES
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.process import child_environment
from support.server import SAYS, running_node
from support.tiny_encoder import write_encoder, write_text_classifier
from support.tiny_onnx import write_classifier

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


@pytest.mark.parametrize(
    "path", [path for path in BODIES if not path.startswith(("/admin", "/v1/classify", "/v2"))]
)
def test_a_body_with_what_is_required_is_answered(http: httpx.Client, path: str) -> None:
    body = {"model": "tiny", **WORKING[path]}
    assert set(BODIES[path]["required"]) <= set(body)
    assert set(body) <= set(BODIES[path]["properties"])
    assert http.post(path, json=body).status_code == 200


@pytest.fixture(scope="module")
def every(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    """A node with a model of each kind, whose answers are short: nothing generated may take long."""
    folder = tmp_path_factory.mktemp("kinds")
    files = (
        tiny,
        write_classifier(folder / "tensors.onnx"),
        write_encoder(folder / "encoder"),
        write_text_classifier(folder / "moods", ("good", "bad")),
    )
    settings = ServerSettings(
        port=0, registry_root=folder / "registry", model_files=files, threads=1, parallel=2,
        max_body_bytes=200_000, request_timeout_s=60,
    )  # fmt: skip
    with running_node(settings) as server:
        yield server


def for_fuzzing(document: dict[str, Any]) -> dict[str, Any]:
    """The document with names of models that are there: one made up at random gets no further than 404.

    Of the routes that take a model away the names stay as they are, or nothing would be left to be asked.
    """
    document = json.loads(json.dumps(document))
    names = {"type": "string", "enum": ["tiny", "tensors", "encoder", "moods"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            schema = (
                operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            )
            if schema is not None and "model" in schema["properties"]:
                schema["properties"]["model"] = names
            if method == "delete" or path.endswith(("/load", "/unload", "/pin", "/unpin")):
                continue
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in ("name", "ref") and "sessions" not in path:
                    parameter["schema"] = names
    return document


def fuzz(server: NodeServer, folder: Path, *options: str) -> str:
    """Run schemathesis against a node; what it says, where it found something or could not run."""
    document = for_fuzzing(httpx.get(f"{server.url}/openapi.json").json())
    (folder / "openapi.json").write_text(json.dumps(document))
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", str(folder / "openapi.json"),
            "--url", server.url,
            "--checks", "not_a_server_error",
            "--request-timeout", "30",
            "--generation-database", "none",
            "--suppress-health-check", "all",
            "--warnings", "off",
            "--no-color",
            *options,
        ],
        cwd=folder, capture_output=True, text=True, timeout=1200, env=child_environment(), check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


def assert_well(server: NodeServer) -> None:
    """It answers, and nothing of what was asked is still held."""
    http = httpx.Client(base_url=server.url, timeout=30)
    with http:
        body = {"model": "tiny", "prompt": "x", "max_tokens": len(SAYS), "temperature": 0}
        assert http.post("/v1/completions", json=body).json()["choices"][0]["text"] == SAYS
        assert (
            len(http.post("/v1/embeddings", json={"model": "encoder", "input": "edge"}).json()["data"]) == 1
        )
        assert http.post("/v1/classify", json={"model": "moods", "input": "edge"}).status_code == 200
        given = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
        assert http.post("/v2/models/tensors/infer", json={"inputs": [given]}).status_code == 200
    for slot in server.node.pool.ready():
        assert slot.loaded is not None
        assert (slot.ref, slot.loaded.in_flight) == (slot.ref, 0)


def test_requests_made_from_the_description_never_make_it_fail(every: NodeServer, tmp_path: Path) -> None:
    """A part of what the slow test does: two requests of each kind for every operation."""
    said = fuzz(every, tmp_path, "--phases", "fuzzing", "--max-examples", "4", "--seed", "1", "--no-shrink")
    assert not said, said
    assert_well(every)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phases", "examples"), [("examples,coverage", "20"), ("fuzzing", "60"), ("stateful", "60")]
)
def test_no_request_made_from_the_description_makes_it_fail_or_hang(
    every: NodeServer, tmp_path: Path, phases: str, examples: str
) -> None:
    said = fuzz(every, tmp_path, "--phases", phases, "--max-examples", examples)
    assert not said, said
    assert_well(every)
