"""Model files that would crash native code: a node refuses them, lives on and answers."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from onnx import TensorProto, helper

from mecroute.engines.llama.trial import try_gguf
from mecroute.errors import InvalidModelFileError, MecrouteError
from mecroute_registry.digest import sha256_bytes
from mecroute_registry.facts import ModelFacts, ModelFile, ModelFormat
from mecroute_registry.manifest import describe_model
from mecroute_registry.store import Registry
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node
from support.tiny_encoder import write_encoder
from support.tiny_onnx import write_classifier


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
        return self.settled(model.ref)

    def smuggle(
        self, content: bytes, version: str, form: ModelFormat, beside: Mapping[str, bytes] | None = None
    ) -> dict[str, Any]:
        """The same past every check of the registry, as a hostile store would bring it."""
        facts = ModelFacts(name="m", version=version, format=form, deployment_tiers=("mec",))
        layout = self.registry.layout
        files = [("model", content), *(beside or {}).items()]
        digests = []
        with layout.locked():
            for _, data in files:
                digests.append(sha256_bytes(data))
                layout.put_document(digests[-1], data)
            companions = [
                ModelFile(path=path, digest=digest, size_bytes=len(data))
                for (path, data), digest in zip(files[1:], digests[1:], strict=True)
            ]
            artifact = describe_model(facts, digests[0], len(content), companions)
            layout.commit((artifact.entry,), artifact.blobs)
        return self.settled(f"m:{version}")

    def settled(self, ref: str) -> dict[str, Any]:
        """Have the node load a model; its state when that has ended."""
        answer = self.http.post("/admin/models", json={"ref": ref})
        assert answer.status_code == 202, answer.text
        ends_at = time.monotonic() + 120
        while True:
            state = dict(self.http.get(f"/admin/models/{ref}").json())
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


def onnx_model(*nodes: Any, tensors: list[Any] | None = None) -> bytes:
    """A model `x` → `y` of float32 [n]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph(list(nodes), "g", [x], [y], tensors or [])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def external(location: str, **more: str) -> bytes:
    """A model whose one tensor of two floats lies at `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return onnx_model(helper.make_node("Add", ["x", "w"], ["y"]), tensors=[tensor])


def nested(depth: int) -> bytes:
    """Branches within branches, deeper than any parser should follow; protobuf's own would not write them."""

    def field(number: int, data: bytes) -> bytes:
        size, varint = len(data), b""
        while size >= 0x80:
            size, varint = size >> 7, varint + bytes([size & 0x7F | 0x80])
        return bytes([number << 3 | 2]) + varint + bytes([size]) + data

    leaf = helper.make_node("Identity", ["x"], ["y"]).SerializeToString()
    head = field(1, b"c") + field(2, b"y") + field(4, b"If")
    node = leaf
    for _ in range(depth):
        branch = field(1, b"then_branch") + field(6, field(1, node)) + b"\xa0\x01\x05"
        node = head + field(5, branch)
    whole = onnx.load_from_string(onnx_model(helper.make_node("Identity", ["x"], ["y"])))
    whole.graph.ClearField("node")
    graph = whole.graph.SerializeToString() + field(1, node)
    whole.ClearField("graph")
    return bytes(whole.SerializeToString()) + field(7, graph)


def hostile_onnx() -> dict[str, tuple[bytes, dict[str, bytes]]]:
    """Files that are no models, by what is wrong with them, and what lies beside each."""
    identity = onnx_model(helper.make_node("Identity", ["x"], ["y"]))
    huge = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 40], raw_data=b"1234")
    negative = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-1], raw_data=b"1234")
    bomb = [
        helper.make_node("Constant", [], ["s"], value_ints=[1 << 36]),
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("Concat", ["x", "big"], ["y"], axis=0),
    ]
    cycle = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]
    add = helper.make_node("Add", ["x", "w"], ["y"])
    return {
        "cut": (identity[: len(identity) // 2], {}),
        "cut-by-one": (identity[:-1], {}),
        "zeros": (bytes(4096), {}),
        "gguf": (b"GGUF" + identity, {}),
        "text": (b"{}", {}),
        "endless-varint": (b"\x3a" + b"\xff" * 64, {}),
        "huge-length": (b"\x3a\xff\xff\xff\xff\xff\xff\xff\x7f" + identity, {}),
        "huge-tensor": (onnx_model(add, tensors=[huge]), {}),
        "negative-tensor": (onnx_model(add, tensors=[negative]), {}),
        "memory-bomb": (onnx_model(*bomb), {}),
        "cycle": (onnx_model(*cycle, helper.make_node("Identity", ["b"], ["y"])), {}),
        "missing-input": (onnx_model(helper.make_node("Add", ["x", "nowhere"], ["y"])), {}),
        "unknown-operator": (onnx_model(helper.make_node("Explode", ["x"], ["y"])), {}),
        "other-domain": (onnx_model(helper.make_node("Run", ["x"], ["y"], domain="evil.example")), {}),
        "escape-up": (external("../../../../../../etc/passwd"), {}),
        "escape-root": (external("/etc/passwd"), {}),
        "escape-device": (external("/dev/zero"), {}),
        "escape-inside": (external("w/../../secret"), {"w": b"12345678"}),
        "not-beside": (external("w"), {}),
        "too-short": (external("w"), {"w": b"1234"}),
        "offset-beyond": (external("w", offset="1000000"), {"w": b"12345678"}),
        "offset-huge": (external("w", offset=str(1 << 63)), {"w": b"12345678"}),
        "offset-negative": (external("w", offset="-8"), {"w": b"12345678"}),
        "length-huge": (external("w", length=str(1 << 62)), {"w": b"12345678"}),
        "nested": (nested(1000), {}),
    }


def hostile_gguf(whole: bytes) -> dict[str, bytes]:
    """The same of the other format."""
    return {
        "empty": b"\0",
        "magic": b"GGML" + whole[4:],
        "version": whole[:4] + struct.pack("<I", 99) + whole[8:],
        "header-only": whole[:24],
        "cut": whole[: len(whole) // 2],
        "cut-by-one": whole[:-1],
        "many-tensors": whole[:8] + struct.pack("<Q", 1 << 60) + whole[16:],
        "many-values": whole[:16] + struct.pack("<Q", 1 << 60) + whole[24:],
        "long-key": whole[:24] + struct.pack("<Q", 1 << 62) + whole[32:],
        "onnx": b"\x08\x08" + whole,
    }


def test_hostile_files_are_refused_and_the_node_lives_on(victim: Victim, tiny: Path) -> None:
    """What never reaches native code is refused in milliseconds; the rest costs a child process."""
    for name, content in hostile_gguf(tiny.read_bytes()).items():
        state = victim.smuggle(content, f"gguf-{name}", "gguf")
        assert (name, state["state"], state["error"]["code"]) == (name, "failed", "invalid_model_file")
    for name, (content, beside) in hostile_onnx().items():
        state = victim.smuggle(content, f"onnx-{name}", "onnx", beside)
        assert (name, state["state"], state["error"]["code"]) == (name, "failed", "invalid_model_file"), state
    victim.assert_well()
    # The same checks let what is sound through.
    state = victim.smuggle(external("w"), "onnx-sound", "onnx", {"w": struct.pack("<2f", 1, 2)})
    assert state["state"] == "ready", state
    ask = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 1]}]}
    answer = victim.http.post("/v2/models/m/versions/onnx-sound/infer", json=ask)
    assert answer.json()["outputs"][0]["data"] == [2, 3]


def flipped_onnx(content: bytes, seed: int) -> bytes:
    """The file with 1 to 4 bits flipped, a piece cut out, or one put in."""
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                del data[at : at + rng.randint(1, 16)]
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 16))
            case _:
                data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(6), id="some"),
        *(
            pytest.param(range(first, first + 50), id=f"from {first}", marks=pytest.mark.slow)
            for first in (0, 50, 100)
        ),
    ],
)
def test_damaged_onnx_files_never_end_the_node(victim: Victim, seeds: range) -> None:
    encoder = write_encoder(victim.folder / "enc", external="w")
    beside = {name: (encoder / name).read_bytes() for name in ("tokenizer.json", "w")}
    kinds = [
        (write_classifier(victim.folder / "c.onnx").read_bytes(), {}),
        ((encoder / "model.onnx").read_bytes(), beside),
    ]
    assert all(onnx.load_from_string(content) for content, _ in kinds)
    for seed in seeds:
        content, files = kinds[seed % 2]
        if seed % 6 == 5:  # sometimes it is the tokenizer that is damaged
            files = {**files, "tokenizer.json": flipped_onnx(beside["tokenizer.json"], seed)}
        else:
            content = flipped_onnx(content, seed)
        state = victim.smuggle(content, f"v{seed}", "onnx", files)
        if state["state"] == "ready":
            # It may compute anything, or refuse, as long as the node survives it.
            for path, ask in (
                (
                    f"/v2/models/m/versions/v{seed}/infer",
                    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]},
                ),
                ("/v1/embeddings", {"model": state["ref"], "input": ["edge", "fast slow"]}),
            ):
                assert victim.http.post(path, json=ask).status_code in (200, 400), state
            assert victim.http.post(f"/admin/models/{state['ref']}/unload").status_code == 200
        else:
            assert state["error"]["code"] == "invalid_model_file", state
    victim.assert_well()
