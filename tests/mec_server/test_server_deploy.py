"""Deploying from a real S3 store: verified, resumable, and never at the expense of what serves."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from mecroute_registry.facts import ModelFacts, ModelVersion
from mecroute_registry.remote import open_remote
from mecroute_registry.store import Registry
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.s3 import S3Server, s3_server
from support.server import SAYS, running_node, server_process
from support.tcp_proxy import FaultyProxy
from support.tiny_encoder import WORDS, embedding, word_logits, write_encoder, write_text_classifier
from support.tiny_gguf import write_tiny_gguf

STORE = "s3://models/edge"


@dataclass
class Setup:
    """A store with two versions of one model, and a node that has neither."""

    s3: S3Server
    node: NodeServer
    http: httpx.Client
    v1: ModelVersion
    v2: ModelVersion
    stock: Path
    folder: Path

    def deploy(self, ref: str, digest: str | None = None) -> dict[str, Any]:
        """Ask for a deployment and wait for its end; the model's last state."""
        answer = self.http.post("/admin/models", json={"ref": ref, "digest": digest})
        assert answer.status_code == 202, answer.text
        return self.settled(answer.json()["ref"])

    def settled(self, ref: str) -> dict[str, Any]:
        """Wait until nothing goes on with a model; its state."""
        slot = self.node.node.pool.slot(ref)
        assert slot is not None
        deadline = time.monotonic() + 60
        while not slot.settled.is_set():
            assert time.monotonic() < deadline, f"{ref} did not settle: {self.state(ref)}"
            time.sleep(0.02)
        return self.state(ref)

    def state(self, ref: str) -> dict[str, Any]:
        """A model's state now."""
        return dict(self.http.get(f"/admin/models/{ref}").json())

    def chat(self, model: str) -> httpx.Response:
        """Ask a model to say its text."""
        messages = [{"role": "user", "content": "hi"}]
        ask = {"model": model, "messages": messages, "temperature": 0, "max_tokens": len(SAYS)}
        return self.http.post("/v1/chat/completions", json=ask)

    def says(self, model: str) -> str:
        """What a model says."""
        return str(self.chat(model).json()["choices"][0]["message"]["content"])


def settings_of(registry_root: Path, endpoint_url: str | None, **fields: Any) -> ServerSettings:
    return ServerSettings(
        port=0,
        node="edge-1",
        registry_root=registry_root,
        store_uri=STORE if endpoint_url else None,
        store_endpoint_url=endpoint_url,
        parallel=2,
        threads=1,
        **fields,
    )


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Path, list[ModelVersion]]]:
    """A store with two versions of one model, and the folder of the registry they were pushed from."""
    folder = tmp_path_factory.mktemp("stocked")
    with s3_server(folder) as s3, pytest.MonkeyPatch.context() as environment:
        for name, value in s3.environment().items():
            environment.setenv(name, value)
        workshop = Registry(folder / "workshop")
        store = open_remote(STORE, endpoint_url=s3.endpoint_url)
        models = []
        for seed in (1, 2):
            file = write_tiny_gguf(folder / f"v{seed}.gguf", seed=seed, says=SAYS)
            facts = ModelFacts(name="m", version=f"v{seed}", deployment_tiers=("mec",))
            models.append(workshop.register(file, facts))
            store.push(workshop, models[-1])
        yield s3, folder, models


@pytest.fixture
def setup(
    stocked: tuple[S3Server, Path, list[ModelVersion]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setup]:
    s3, stock, (v1, v2) = stocked
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    with (
        running_node(settings_of(tmp_path / "node", s3.endpoint_url)) as node,
        httpx.Client(base_url=node.url, timeout=60) as http,
    ):
        yield Setup(s3, node, http, v1, v2, stock, tmp_path)


def test_a_deployment_ends_in_service(setup: Setup) -> None:
    assert setup.http.get("/readyz").status_code == 503
    first = setup.http.post("/admin/models", json={"ref": "m:v1", "digest": setup.v1.digest}).json()
    assert first["ref"] == "m:v1"
    assert first["state"] in ("pulling", "verifying", "loading", "ready")
    state = setup.settled("m:v1")
    assert state["state"] == "ready"
    assert state["digest"] == setup.v1.digest
    assert state["file_digest"] == setup.v1.file_digest
    assert state["size_bytes"] == setup.v1.size_bytes
    assert state["error"] is None
    assert state["decode_tokens_per_s"] > 0
    assert setup.says("m:v1") == SAYS
    assert setup.says("m") == SAYS
    assert setup.http.get("/readyz").json()["models"] == ["m:v1"]
    assert Registry(setup.folder / "node").get("m:v1").digest == setup.v1.digest
    (described,) = setup.http.get("/admin/node").json()["models"]
    assert described["ref"] == "m:v1"


def test_onnx_models_come_with_what_lies_beside_them(setup: Setup) -> None:
    """An encoder with external tensors and a classifier: both answer texts on a node that had neither."""
    made = {
        "enc": write_encoder(setup.folder / "enc", external="weights.bin"),
        "moods": write_text_classifier(setup.folder / "moods", ("good", "bad")),
    }
    workshop = Registry(setup.folder / "workshop")
    for name, folder in made.items():
        facts = ModelFacts(name=name, version="v1", format="onnx", deployment_tiers=("mec",))
        model = workshop.register(folder, facts)
        open_remote(STORE, endpoint_url=setup.s3.endpoint_url).push(workshop, model)
        state = setup.deploy(model.ref, model.digest)
        assert (state["state"], state["size_bytes"]) == ("ready", model.size_bytes)
        assert state["tasks"] == list(model.tasks)
    ask = {"model": "enc", "input": ["edge cloud", "fast model"]}
    answer = setup.http.post("/v1/embeddings", json=ask)
    assert answer.status_code == 200, answer.text
    for row, text in zip(answer.json()["data"], ask["input"], strict=True):
        np.testing.assert_allclose(row["embedding"], embedding(text), rtol=1e-5)
    answer = setup.http.post("/v1/classify", json={"model": "moods:v1", "input": "fast edge"})
    assert answer.status_code == 200, answer.text
    logits = word_logits(2)[[WORDS.index("fast"), WORDS.index("edge")]].sum(0)
    assert answer.json()["data"][0]["probs"] == pytest.approx(np.exp(logits) / np.exp(logits).sum())
    # Gone with all of its files.
    assert setup.http.delete("/admin/models/enc:v1").status_code == 200
    assert [path.name for path in (setup.folder / "node/unpacked").iterdir()] == [
        workshop.get("moods:v1").digest.removeprefix("sha256:")
    ]


def test_the_same_deployment_again_changes_nothing(setup: Setup) -> None:
    setup.deploy("m:v1")
    slot = setup.node.node.pool.find("m:v1")
    before = slot.loaded
    assert setup.deploy("m:v1", setup.v1.digest)["state"] == "ready"
    assert slot.loaded is before


def test_a_name_alone_is_the_newest_version_of_the_store(setup: Setup) -> None:
    assert setup.deploy("m")["ref"] == "m:v2"
    assert setup.deploy(f"m@{setup.v1.digest}")["ref"] == "m:v1"


def test_a_name_is_ambiguous_while_two_versions_are_loaded(setup: Setup) -> None:
    setup.deploy("m:v1")
    setup.deploy("m:v2")
    answer = setup.chat("m")
    assert answer.status_code == 400
    assert "m:v1, m:v2" in answer.json()["error"]["message"]
    unloaded = setup.http.post("/admin/models/m:v1/unload").json()
    assert unloaded["state"] == "unloaded"
    assert setup.says("m") == SAYS
    gone = setup.chat("m:v1")
    assert gone.status_code == 503
    assert gone.json()["error"]["hint"] == "POST /admin/models/m:v1/load"
    assert setup.http.post("/admin/models/m:v1/load").status_code == 202
    assert setup.settled("m:v1")["state"] == "ready"


def test_another_digest_than_the_one_asked_for_is_not_served(setup: Setup) -> None:
    state = setup.deploy("m:v1", setup.v2.digest)
    assert state["state"] == "failed"
    assert state["error"]["code"] == "digest_mismatch"
    assert setup.chat("m:v1").status_code == 503
    assert Registry(setup.folder / "node").list() == []


def test_a_failed_deployment_leaves_the_model_that_serves(setup: Setup) -> None:
    setup.deploy("m:v1")
    state = setup.deploy("m:v1", setup.v2.digest)
    assert state["state"] == "ready"
    assert state["digest"] == setup.v1.digest
    assert "still serving" in state["detail"]
    assert state["error"]["code"] in ("digest_mismatch", "artifact_exists")
    assert setup.says("m:v1") == SAYS


def test_damaged_bytes_in_the_store_are_never_served(setup: Setup) -> None:
    (blob,) = setup.stock.joinpath("s3").rglob(setup.v1.file_digest.removeprefix("sha256:"))
    parts = [blob] if blob.is_file() else [path for path in blob.rglob("*") if path.is_file()]
    file = max(parts, key=lambda path: path.stat().st_size)
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        state = setup.deploy("m:v1")
    finally:
        file.write_bytes(sound)
    assert state["state"] == "failed"
    assert state["error"]["code"] == "digest_mismatch"
    assert Registry(setup.folder / "node").list() == []
    assert setup.deploy("m:v1")["state"] == "ready"


def test_a_model_the_store_does_not_have(setup: Setup) -> None:
    state = setup.deploy("m:v9")
    assert state["state"] == "failed"
    assert state["error"]["code"] == "model_not_found"
    answer = setup.http.post("/admin/models", json={"ref": "other"})
    assert answer.status_code == 404
    assert "other" not in {model["ref"] for model in setup.http.get("/admin/models").json()["models"]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ref": 3},
        {"ref": "M:V"},
        {"ref": "m:v1", "digest": "abc"},
        {"ref": "m:v1", "digest": 1},
        {"ref": "m:v1", "force": True},
        {"ref": "m@sha256:" + "0" * 64, "digest": "sha256:" + "1" * 64},
    ],
)
def test_a_wrong_deployment_request(setup: Setup, body: dict[str, object]) -> None:
    answer = setup.http.post("/admin/models", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert setup.http.get("/admin/models").json() == {"models": []}


def test_a_model_the_node_does_not_have(setup: Setup) -> None:
    assert setup.http.post("/admin/models/other:v1/unload").status_code == 404
    assert setup.http.get("/admin/models/other:v1").status_code == 404


def test_a_store_out_of_reach_takes_nothing_from_service(setup: Setup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    file = setup.stock / "v1.gguf"
    settings = settings_of(setup.folder / "node-2", f"http://127.0.0.1:{port}", model_files=(file,))
    with running_node(settings) as node, httpx.Client(base_url=node.url, timeout=60) as http:
        other = Setup(setup.s3, node, http, setup.v1, setup.v2, setup.stock, setup.folder)
        state = other.deploy("m:v1")
        assert state["state"] == "failed"
        assert state["error"]["code"] == "remote_store_error"
        assert other.http.post("/admin/models", json={"ref": "m"}).status_code == 502
        assert other.says("v1") == SAYS
        refused = other.http.post("/admin/models", json={"ref": "v1"})
        assert refused.status_code in (400, 502)


def test_without_a_store_what_is_on_the_node_can_be_deployed(setup: Setup) -> None:
    settings = settings_of(setup.stock / "workshop", None)
    with running_node(settings) as node, httpx.Client(base_url=node.url, timeout=60) as http:
        other = Setup(setup.s3, node, http, setup.v1, setup.v2, setup.stock, setup.folder)
        assert other.deploy("m")["ref"] == "m:v2"
        assert other.says("m") == SAYS
        for body in ({"ref": "m:v3"}, {"ref": "m:v1", "digest": setup.v2.digest}):
            answer = http.post("/admin/models", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "config_error"
        assert [model["ref"] for model in http.get("/admin/models").json()["models"]] == ["m:v2"]


def test_a_cancelled_pull_resumes(setup: Setup) -> None:
    with Gate(setup.s3.endpoint_url) as gate:
        settings = settings_of(setup.folder / "node-3", gate.url)
        with running_node(settings) as node, httpx.Client(base_url=node.url, timeout=60) as http:
            other = Setup(setup.s3, node, http, setup.v1, setup.v2, setup.stock, setup.folder)
            gate.close_after(100_000)
            assert http.post("/admin/models", json={"ref": "m:v1"}).json()["state"] == "pulling"
            assert gate.reached.wait(30)
            waiting = other.chat("m:v1")
            assert waiting.status_code == 503
            assert "pulling" in waiting.json()["error"]["message"]
            assert waiting.headers["retry-after"]
            twice = http.post("/admin/models", json={"ref": "m:v1", "digest": setup.v1.digest})
            assert twice.status_code == 400  # the one under way accepts any digest
            answers: list[dict[str, Any]] = []
            unload = threading.Thread(
                target=lambda: answers.append(
                    httpx.post(f"{node.url}/admin/models/m:v1/unload", timeout=60).json()
                )
            )
            unload.start()
            slot = node.node.pool.slot("m:v1")
            assert slot is not None
            while not slot.cancelled:
                time.sleep(0.01)
            gate.open()
            unload.join(60)
            assert answers[0]["state"] == "unloaded"
            assert "cancelled" in answers[0]["detail"]
            assert other.deploy("m:v1", setup.v1.digest)["state"] == "ready"
            assert other.says("m") == SAYS


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param((0.05, 0.5, 1.0), id="some"),
        pytest.param(tuple(n / 8 for n in range(1, 17)), id="many", marks=pytest.mark.slow),
    ],
)
def test_kill_9_within_a_deployment_loses_nothing(
    stocked: tuple[S3Server, Path, list[ModelVersion]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moments: tuple[float, ...],
) -> None:
    """Whenever it is killed, while pulling, verifying, registering, writing down or loading: the registry is
    whole, the model is in it or it is not, and the next deployment brings it."""
    s3, _, (v1, _) = stocked
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "node"
    with closing(FaultyProxy(urlsplit(s3.endpoint_url).port or 0)) as proxy:
        proxy.slow_down(v1.size_bytes / 0.6)
        store = {"store_uri": STORE, "store_endpoint_url": proxy.url, "parallel": 2}
        for moment in moments:
            with server_process(root, **store) as (process, url):
                httpx.post(f"{url}/admin/models", json={"ref": "m:v1"}, timeout=30).raise_for_status()
                time.sleep(moment)
                process.kill()
                process.wait(30)
            there = Registry(root).list()
            assert [model.ref for model in there] in ([], ["m:v1"])
            for model in there:
                Registry(root).verify(model)
        proxy.heal()
        with server_process(root, **store) as (_, url), httpx.Client(base_url=url, timeout=60) as http:
            http.post("/admin/models", json={"ref": "m:v1", "digest": v1.digest}).raise_for_status()
            deadline = time.monotonic() + 60
            while http.get("/admin/models/m:v1").json()["state"] != "ready":
                assert time.monotonic() < deadline, http.get("/admin/models/m:v1").json()
                time.sleep(0.05)
            ask = {"model": "m", "prompt": "x", "temperature": 0, "max_tokens": len(SAYS)}
            assert http.post("/v1/completions", json=ask).json()["choices"][0]["text"] == SAYS
    # What was begun and given up is gone; what was put down beside its place for a moment is named so.
    left = {path.name for path in (root / "blobs" / "sha256").iterdir() if path.name.startswith(".partial-")}
    assert left == set()


class Gate:
    """A TCP proxy that stops passing answers on after so many bytes, until it is opened."""

    def __init__(self, upstream: str) -> None:
        url = urlsplit(upstream)
        self._upstream = (url.hostname, url.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._open = threading.Event()
        self._open.set()
        self._left = 0
        self.reached = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Gate:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.set()
        self._server.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which `close` does not
        self._server.close()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def close_after(self, size: int) -> None:
        """Let `size` more bytes of answers through."""
        self._left = size
        self._open.clear()

    def open(self) -> None:
        """Let everything through."""
        self._open.set()

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            upstream = socket.create_connection(self._upstream)
            self._sockets += [client, upstream]
            self._start(self._pass_on, client, upstream, False)
            self._start(self._pass_on, upstream, client, True)

    def _pass_on(self, source: socket.socket, sink: socket.socket, gated: bool) -> None:
        with suppress(OSError):
            while data := source.recv(16384):
                if gated and not self._open.is_set():
                    self._left -= len(data)
                    if self._left < 0:
                        self.reached.set()
                        self._open.wait(60)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        sink.close()
