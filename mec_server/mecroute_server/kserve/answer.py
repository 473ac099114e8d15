"""Answers of the protocol: a model's metadata, and the outputs of an inference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.responses import Response

from mecroute.engines.onnx.model import TensorSpec
from mecroute_server.kserve.datatypes import NAMES, to_bytes, to_json
from mecroute_server.kserve.request import InferRequest


def model_metadata(
    name: str, versions: list[str], inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> dict[str, Any]:
    """What `GET /v2/models/{name}` answers; -1 is a dimension of any size."""
    return {
        "name": name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [_describe(spec) for spec in inputs],
        "outputs": [_describe(spec) for spec in outputs],
    }


def encode_answer(
    request: InferRequest,
    outputs: Mapping[str, Any],
    datatypes: Mapping[str, str],
    *,
    model: str,
    version: str,
) -> Response:
    """The whole HTTP answer: JSON, with binary tensors behind it where they were asked for.

    Args:
        request: says which outputs are to be binary.
        outputs: an array per output.
        datatypes: the protocol's datatype of each.
        model: the model's name.
        version: its version.

    Raises:
        InvalidRequestError: an output asked for as JSON has values that JSON cannot carry.
    """
    described: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for name, array in outputs.items():
        entry: dict[str, Any] = {
            "name": name,
            "datatype": datatypes[name],
            "shape": list(array.shape),
        }
        if request.binary.get(name, request.default_binary):
            tensors.append(to_bytes(array, datatypes[name]))
            entry["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            entry["data"] = to_json(name, array)
        described.append(entry)
    head: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        head["id"] = request.id
    text = json.dumps(head, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if not tensors:
        return Response(text, media_type="application/json")
    return Response(
        b"".join([text, *tensors]),
        media_type="application/octet-stream",
        headers={"inference-header-content-length": str(len(text))},
    )


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if dim is None else dim for dim in spec.shape]
    return {"name": spec.name, "datatype": NAMES[spec.dtype], "shape": shape}
