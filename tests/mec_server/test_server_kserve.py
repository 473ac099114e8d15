"""The Open Inference Protocol as Triton's own, unmodified client and plain HTTP see it."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from mecroute.nodes.report import NodeReport
from mecroute_registry.facts import ModelFacts
from mecroute_registry.store import Registry
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node
from support.tiny_onnx import FLOAT, classify, write_classifier, write_identity, write_onnx

#: The protocol's datatype, ONNX's, and values of it.
TYPES: list[tuple[str, int, Any]] = [
    ("BOOL", TensorProto.BOOL, np.array([True, False, True])),
    ("UINT8", TensorProto.UINT8, np.array([0, 1, 255], np.uint8)),
    ("UINT16", TensorProto.UINT16, np.array([0, 1, 65535], np.uint16)),
    ("UINT32", TensorProto.UINT32, np.array([0, 1, 2**32 - 1], np.uint32)),
    ("UINT64", TensorProto.UINT64, np.array([0, 1, 2**64 - 1], np.uint64)),
    ("INT8", TensorProto.INT8, np.array([-128, 0, 127], np.int8)),
    ("INT16", TensorProto.INT16, np.array([-32768, 0, 32767], np.int16)),
    ("INT32", TensorProto.INT32, np.array([-(2**31), 0, 2**31 - 1], np.int32)),
    ("INT64", TensorProto.INT64, np.array([-(2**63), 0, 2**63 - 1], np.int64)),
    ("FP16", TensorProto.FLOAT16, np.array([-1.5, 0, 65504], np.float16)),
    ("FP32", TensorProto.FLOAT, np.array([-1.5, 0, 3e38], np.float32)),
    ("FP64", TensorProto.DOUBLE, np.array([-1.5, 0, 1e308], np.float64)),
    ("BF16", TensorProto.BFLOAT16, np.array([-1.5, 0, 3.3895314e38], ml_dtypes.bfloat16)),
    ("BYTES", TensorProto.STRING, np.array(["", "Füllhörnchen", "a\nb"], object)),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[NodeServer]:
    """A node with a GGUF model, a classifier from a file and from the registry, and one model per type."""
    folder = tmp_path_factory.mktemp("onnx")
    registry = Registry(tmp_path_factory.mktemp("registry"))
    for version in ("1.0", "2.0"):
        facts = ModelFacts(
            name="team/registered",
            version=version,
            format="onnx",
            deployment_tiers=("mec",),
            tasks=("infer",),
            license=version,  # the same bytes with other facts are another version
        )
        registry.register(write_classifier(folder / "c.onnx"), facts)
    files = [write_identity(folder / f"{name.lower()}.onnx", kind, ["n"]) for name, kind, _ in TYPES]
    log = helper.make_node("Log", ["x"], ["y"])
    files.append(write_onnx(folder / "log.onnx", [log], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])]))
    settings = ServerSettings(
        port=0,
        registry_root=registry.root,
        model_files=(tiny, folder / "c.onnx", *files),
        models=("team/registered:1.0", "team/registered:2.0"),
        threads=1,
        parallel=1,
        max_body_bytes=2_000_000,
    )
    with running_node(settings) as node:
        yield node


@pytest.fixture
def http(server: NodeServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def client(server: NodeServer) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


TOP_2 = {"classification": 2}


def x_input(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3], **changes}


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("c")
    assert client.is_model_ready("c", "1")
    assert client.is_model_ready("tiny")
    assert not client.is_model_ready("nothing")
    assert not client.is_model_ready("c", "2")
    extensions = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
    assert client.get_server_metadata()["extensions"] == extensions
    assert client.get_model_metadata("c") == {
        "name": "c",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize(
    ("datatype", "values", "binary"),
    [
        (name, values, binary)
        for name, _, values in TYPES
        for binary in (True, False)
        if binary or name not in ("FP16", "BF16")  # Triton's client sends these as binary data only
    ],
)
def test_every_datatype_both_ways(client: Any, datatype: str, values: Any, binary: bool) -> None:
    given = triton.InferInput("x", [3], datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    wanted = triton.InferRequestedOutput("y", binary_data=binary)
    answer = client.infer(datatype.lower(), [given], outputs=[wanted], request_id="mine")
    got = answer.as_numpy("y")
    if datatype == "BYTES":
        got = np.array([v.decode() if isinstance(v, bytes) else v for v in got], object)
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)
    output = answer.get_output("y")
    assert output["datatype"] == datatype
    assert ("data" in output) is not binary
    assert answer.get_response()["id"] == "mine"


def test_fp16_as_json(http: httpx.Client) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP16", "shape": [2], "data": [0.5, -2]}]}
    assert http.post("/v2/models/fp16/infer", json=body).json()["outputs"][0]["data"] == [0.5, -2]


def test_bfloat16_is_rounded_to_the_nearest(http: httpx.Client) -> None:
    data = [1.00390625, 1.01171875, -1.005, 1e-40]  # two ties: to the even neighbour, down and up
    body = {"inputs": [{"name": "x", "datatype": "BF16", "shape": [4], "data": data}]}
    output = http.post("/v2/models/bf16/infer", json=body).json()["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BF16", [4])
    bits = [struct.unpack("<I", struct.pack("<f", value))[0] for value in output["data"]]
    assert [bit & 0xFFFF for bit in bits] == [0, 0, 0, 0]
    assert output["data"][:3] == [1.0, 1.015625, -1.0078125]
    wrong = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    assert "is FP32, and the model takes BF16" in http.post("/v2/models/bf16/infer", json=wrong).text


def test_all_outputs_binary_by_default(client: Any) -> None:
    x = np.random.default_rng(0).random((5, 3), np.float32)
    given = triton.InferInput("x", [5, 3], "FP32")
    given.set_data_from_numpy(x)
    answer = client.infer("c", [given])
    np.testing.assert_allclose(answer.as_numpy("logits"), classify(x), rtol=1e-5)
    assert answer.as_numpy("label").tolist() == classify(x).argmax(1).tolist()
    assert answer.get_response()["model_version"] == "1"


def test_async_clients_together(client: Any) -> None:
    xs = [np.random.default_rng(n).random((1, 3), np.float32) for n in range(20)]
    calls = []
    for x in xs:
        given = triton.InferInput("x", [1, 3], "FP32")
        given.set_data_from_numpy(x)
        calls.append(client.async_infer("c", [given]))
    for x, call in zip(xs, calls, strict=True):
        np.testing.assert_allclose(call.get_result().as_numpy("logits"), classify(x), rtol=1e-5)


def test_the_configuration_says_what_may_be_batched(client: Any) -> None:
    config = client.get_model_config("c")
    assert config["max_batch_size"] == 32
    assert config["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 2000}
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3], "optional": False}]
    assert config["output"] == [
        {"name": "logits", "data_type": "TYPE_FP32", "dims": [2]},
        {"name": "label", "data_type": "TYPE_INT64", "dims": []},
    ]
    assert client.get_model_config("team/registered", "1.0")["name"] == "team/registered"
    assert client.get_model_config("bytes")["input"][0]["data_type"] == "TYPE_STRING"
    with pytest.raises(InferenceServerException, match="no model 'nothing'"):
        client.get_model_config("nothing")
    with pytest.raises(InferenceServerException, match="takes no tensors"):
        client.get_model_config("tiny")


def test_statistics_count_what_was_computed(client: Any) -> None:
    def stats() -> dict[str, Any]:
        (found,) = client.get_inference_statistics("log")["model_stats"]
        return dict(found)

    before = stats()
    for rows in (1, 3):
        given = triton.InferInput("x", [rows], "FP32")
        given.set_data_from_numpy(np.ones(rows, np.float32))
        client.infer("log", [given])
    after = stats()
    assert (after["name"], after["version"]) == ("log", "1")
    assert after["inference_count"] - before["inference_count"] == 4
    assert after["execution_count"] - before["execution_count"] == 2
    for kind in ("success", "queue", "compute_infer"):
        assert after["inference_stats"][kind]["count"] - before["inference_stats"][kind]["count"] == 2
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert after["inference_stats"]["fail"] == {"count": 0, "ns": 0}
    assert after["last_inference"] / 1000 == pytest.approx(time.time(), abs=60)
    every = client.get_inference_statistics()["model_stats"]
    assert {(one["name"], one["version"]) for one in every} >= {("c", "1"), ("team/registered", "2.0")}
    assert all(one["name"] != "tiny" for one in every)
    with pytest.raises(InferenceServerException, match="computes no tensors"):
        client.get_inference_statistics("tiny")


def test_the_repository_is_listed_loaded_and_unloaded(client: Any, http: httpx.Client) -> None:
    index = {(one["name"], one["version"]): one for one in client.get_model_repository_index()}
    assert {("c", "1"), ("tiny", "1"), ("team/registered", "1.0"), ("int16", "1")} <= set(index)
    assert index["c", "1"] == {"name": "c", "version": "1", "state": "READY", "reason": ""}
    client.unload_model("int16")
    assert not client.is_model_ready("int16")
    states = {one["name"]: one["state"] for one in client.get_model_repository_index()}
    assert states["int16"] == "UNAVAILABLE"
    ready = http.post("/v2/repository/index", json={"ready": True}).json()
    assert "int16" not in {one["name"] for one in ready}
    client.load_model("int16")
    assert client.is_model_ready("int16")
    client.load_model("int16")  # there already
    client.unload_model("team/registered:2.0")
    assert not client.is_model_ready("team/registered", "2.0")
    client.load_model("team/registered:2.0")
    assert client.is_model_ready("team/registered", "2.0")
    for call, said in (
        (lambda: client.load_model("nothing"), "no model 'nothing'"),
        (lambda: client.unload_model("nothing"), "has no model 'nothing'"),
        (lambda: client.load_model("c", config="{}"), "not supported"),
    ):
        with pytest.raises(InferenceServerException, match=said):
            call()
    assert http.post("/v2/repository/index", json={"ready": 1}).status_code == 400


def test_versions_of_a_registered_model(client: Any, http: httpx.Client) -> None:
    assert client.is_model_ready("team/registered", "2.0")
    assert client.get_model_metadata("team/registered", "1.0")["versions"] == ["1.0", "2.0"]
    given = triton.InferInput("x", [1, 3], "FP32")
    given.set_data_from_numpy(np.ones((1, 3), np.float32))
    response = client.infer("team/registered", [given], "2.0").get_response()
    assert (response["model_name"], response["model_version"]) == ("team/registered", "2.0")
    both = http.post("/v2/models/team/registered/infer", json={"inputs": [x_input()]})
    assert both.status_code == 400
    assert "2 versions" in both.json()["error"]
    assert http.post("/v2/models/team%2Fregistered:1.0/infer", json={"inputs": [x_input()]}).is_success


def test_json_as_plain_http_sends_it(http: httpx.Client) -> None:
    body = {
        "id": "7",
        "inputs": [x_input(shape=[2, 3], data=[[1, 2, 3], [0, 0, 1]])],
        "outputs": [{"name": "logits"}],
    }
    answer = http.post("/v2/models/c/infer", json=body).json()
    assert answer == {
        "id": "7",
        "model_name": "c",
        "model_version": "1",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": [5.5, 7.5, 0.5, 2.5]}],
    }


def test_errors_reach_tritons_client(client: Any) -> None:
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.ones((1, 4), np.float32))
    with pytest.raises(InferenceServerException, match=r"shape \[1, 4\], not \[any, 3\]"):
        client.infer("c", [given])
    with pytest.raises(InferenceServerException, match="has no model 'nothing'"):
        client.get_model_metadata("nothing")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "'inputs' is missing"),
        ({"inputs": 3}, "list of objects"),
        ({"inputs": [3]}, "list of objects"),
        ({"inputs": [{}]}, "has no 'name'"),
        ({"inputs": [x_input(), x_input()]}, "twice"),
        ({"inputs": [x_input(datatype="BF16")]}, "is BF16, and the model takes FP32"),
        ({"inputs": [x_input(datatype="BF16", data=[1, 2, 3.4e38])]}, "out of the range of BF16"),
        ({"inputs": [x_input(datatype="FP8")]}, "datatype 'FP8'"),
        ({"inputs": [x_input(datatype=["FP32"])]}, "datatype"),
        ({"inputs": [x_input(shape=[1, -3])]}, "none negative"),
        ({"inputs": [x_input(shape=[True, 3])]}, "none negative"),
        ({"inputs": [x_input(shape=[1] * 33)]}, "shape"),
        ({"inputs": [x_input(shape=[1 << 39, 1 << 39])]}, "has 3 values"),
        ({"inputs": [x_input(shape=[1 << 39, 1 << 39, 0], data=[])]}, "impossible shape"),
        ({"inputs": [x_input(data=[1, 2])]}, "has 2 values"),
        ({"inputs": [x_input(data="abc")]}, "no 'data'"),
        ({"inputs": [x_input(data=[1, 2, "3"])]}, "which is not FP32"),
        ({"inputs": [x_input(data=[1, 2, None])]}, "which is not FP32"),
        ({"inputs": [x_input(data=[1, 2, 1e39])]}, "out of the range"),
        ({"inputs": [x_input(data=[1, 2, 10**400])]}, "out of the range"),
        ({"inputs": [x_input(datatype="INT64", data=[1, 2, 1.5])]}, "which is not INT64"),
        ({"inputs": [x_input(datatype="UINT8", data=[1, 2, 256])]}, "out of the range"),
        ({"inputs": [x_input(datatype="INT64")]}, "is int64, not float32"),
        ({"inputs": [x_input(name="z")]}, "'x' is missing"),
        ({"inputs": [x_input()], "outputs": [{"name": "q"}]}, "no output 'q'"),
        ({"inputs": [x_input(parameters={"binary_data_size": 12})]}, "both"),
        ({"inputs": [x_input(data=None, parameters={"binary_data_size": 12})]}, "0 are left"),
        ({"inputs": [x_input(parameters={"shared_memory_region": "r"})]}, "shared_memory_region"),
        ({"inputs": [x_input(parameters=[])]}, "must be an object"),
        ({"inputs": [x_input()], "outputs": [{"name": "label", "parameters": TOP_2}]}, "classification"),
        ({"inputs": [x_input()], "parameters": {"binary_data_output": 1}}, "true or false"),
        ({"inputs": [x_input()], "id": 3}, "'id'"),
    ],
)
def test_a_wrong_request_is_refused(http: httpx.Client, body: dict[str, Any], says: str) -> None:
    answer = http.post("/v2/models/c/infer", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "says"),
    [
        ("FP32", [1, 3], b"x" * 13, "no whole FP32s"),
        ("FP32", [1, 3], b"x" * 8, "has 2 values"),
        ("BOOL", [3], b"\x00\x01\x02", "not BOOL"),
        ("BF16", [1, 3], b"x" * 5, "no whole BF16s"),
        ("BF16", [1, 3], b"x" * 4, "has 2 values"),
        ("BYTES", [1], b"\x05\x00\x00\x00abc", "cut off"),
        ("BYTES", [1], b"\x05\x00", "cut off"),
        ("BYTES", [1], struct.pack("<I", 2) + b"\xff\xfe", "not UTF-8"),
    ],
)
def test_wrong_binary_tensors_are_refused(
    http: httpx.Client, datatype: str, shape: list[int], data: bytes, says: str
) -> None:
    entry = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [entry]}).encode()
    answer = http.post(
        "/v2/models/c/infer", content=head + data, headers={"inference-header-content-length": str(len(head))}
    )
    assert answer.status_code == 400
    assert says in answer.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "99999", "9" * 30, "3"])
def test_wrong_header_lengths_are_refused(http: httpx.Client, length: str) -> None:
    content = json.dumps({"inputs": [x_input()]}).encode()
    answer = http.post(
        "/v2/models/c/infer", content=content, headers={"inference-header-content-length": length}
    )
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


def test_bytes_that_nobody_asked_for_are_refused(http: httpx.Client) -> None:
    head = json.dumps({"inputs": [x_input()]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = http.post("/v2/models/c/infer", content=head + b"more", headers=headers)
    assert "4 bytes follow" in answer.json()["error"]


def test_infinite_outputs_need_binary_data(http: httpx.Client) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}]}
    answer = http.post("/v2/models/log/infer", json=body)
    assert (answer.status_code, "binary" in answer.json()["error"]) == (400, True)
    answer = http.post("/v2/models/log/infer", json={**body, "parameters": {"binary_data_output": True}})
    assert answer.content.endswith(struct.pack("<f", float("-inf")))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_bodies(client: Any, http: httpx.Client, algorithm: str) -> None:
    x = np.ones((4, 3), np.float32)
    given = triton.InferInput("x", [4, 3], "FP32")
    given.set_data_from_numpy(x)
    answer = client.infer(
        "c", [given], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    np.testing.assert_allclose(answer.as_numpy("logits"), classify(x), rtol=1e-5)
    compress = {"gzip": gzip.compress, "deflate": zlib.compress}[algorithm]
    whole = compress(json.dumps({"inputs": [x_input()]}).encode())
    headers = {"content-encoding": algorithm}
    for content, status, said in (
        (whole, 200, "logits"),
        (whole[:-4], 400, "not one whole"),
        (whole + b"more", 400, "not one whole"),
        (b"x" * 40, 400, f"is not {algorithm}"),
        (compress(b" " * 50_000_000), 413, "2,000,000"),
    ):
        answer = http.post("/v2/models/c/infer", content=content, headers=headers)
        assert (answer.status_code, said in answer.text) == (status, True), answer.text


def test_other_encodings_and_large_bodies_are_refused(http: httpx.Client) -> None:
    answer = http.post("/v2/models/c/infer", content=b"x", headers={"content-encoding": "br"})
    assert (answer.status_code, "'br'" in answer.text) == (400, True)
    assert http.post("/v2/models/c/infer", content=b"x" * 2_000_001).status_code == 413


def test_a_large_tensor_passes(client: Any) -> None:
    x = np.arange(300_000, dtype=np.float32)
    given = triton.InferInput("x", [len(x)], "FP32")
    given.set_data_from_numpy(x)
    np.testing.assert_array_equal(client.infer("fp32", [given]).as_numpy("y"), x)


def test_each_kind_of_model_says_where_it_is_asked(http: httpx.Client) -> None:
    answer = http.post("/v2/models/tiny/infer", json={"inputs": [x_input()]})
    assert (answer.status_code, "/v1/chat/completions" in answer.json()["error"]) == (400, True)
    answer = http.post(
        "/v1/chat/completions", json={"model": "c", "messages": [{"role": "user", "content": "hi"}]}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["hint"] == "ask it with POST /v2/models/c/infer"


def test_the_node_reports_onnx_models(http: httpx.Client) -> None:
    assert http.get("/v1/models/c").json()["mecroute"]["parameters"] == 8
    report = NodeReport.model_validate_json(http.get("/admin/node").content)
    (model,) = [model for model in report.models if model.ref == "c"]
    assert (model.state, model.tasks, model.quantization) == ("ready", ("infer",), "float32")
    assert (model.parallel, model.context_length) == (32, None)
    assert model.providers == ("CPUExecutionProvider",)
    lines = http.get("/metrics").text.splitlines()
    assert any(line.startswith('mecroute_queued_requests{model="c"}') for line in lines)


def test_loading_and_unloading(http: httpx.Client, client: Any) -> None:
    assert http.post("/admin/models/int8/unload").json()["state"] == "unloaded"
    assert not client.is_model_ready("int8")
    counted = 'mecroute_refused_requests_total{reason="node_not_ready"} '
    before = [line for line in http.get("/metrics").text.splitlines() if line.startswith(counted)]
    assert http.get("/v2/models/int8").status_code == 503
    after = [line for line in http.get("/metrics").text.splitlines() if line.startswith(counted)]
    assert len(after) == 1
    assert after != before
    assert http.post("/admin/models/int8/load").status_code == 202
    body = {"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [5]}]}
    assert http.post("/v2/models/int8/infer", json=body).json()["outputs"][0]["data"] == [5]


def test_asyncio_requests_in_a_burst(server: NodeServer) -> None:
    async def ask() -> list[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            bodies = [{"inputs": [x_input(data=[n, 0, 0])]} for n in range(30)]
            answers = await asyncio.gather(*(client.post("/v2/models/c/infer", json=b) for b in bodies))
        return [round(answer.json()["outputs"][0]["data"][0] - 0.5) for answer in answers]

    assert asyncio.run(ask()) == list(range(30))


def test_health_is_open_and_the_rest_needs_the_key(tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0,
        api_keys=("secret",),
        registry_root=tmp_path / "registry",
        model_files=(write_classifier(tmp_path / "c.onnx"),),
        threads=1,
    )
    with running_node(settings) as node, httpx.Client(base_url=node.url, timeout=30) as http:
        assert http.get("/v2/health/live").json() == {"live": True}
        assert http.get("/v2/health/ready").json() == {"ready": True}
        assert http.get("/v2/models/c").status_code == 401
        assert http.post("/v2/models/c/infer", json={}).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert http.get("/v2/models/c/ready", headers=headers).json() == {"name": "c", "ready": True}


def test_a_damaged_file_is_refused_before_anything_listens(tmp_path: Path) -> None:
    from mecroute.errors import InvalidModelFileError

    path = write_classifier(tmp_path / "c.onnx")
    path.write_bytes(path.read_bytes()[:-30])
    settings = ServerSettings(port=0, registry_root=tmp_path / "registry", model_files=(path,))
    with pytest.raises(InvalidModelFileError), running_node(settings):
        pass
