"""An inference request of the protocol, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mecroute.errors import InvalidRequestError
from mecroute_server.body import parse_json_object
from mecroute_server.kserve.datatypes import DTYPES, NAMES, from_bytes, from_json

if TYPE_CHECKING:
    from mecroute.engines.onnx.model import TensorSpec

_MAX_DIMENSIONS = 32
#: What would change the answer and is not done here: refused by name rather than ignored.
_UNSUPPORTED = (
    "classification",
    "shared_memory_region",
    "shared_memory_offset",
    "shared_memory_byte_size",
    "sequence_id",
    "sequence_start",
    "sequence_end",
)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What is asked.

    Attributes:
        id: the caller's own id of the request, sent back.
        inputs: an array per input.
        datatypes: the datatype that was stated for each.
        outputs: names of the outputs wanted; None for all.
        binary: whether each output is wanted as binary data, by name; `default_binary` for the others.
    """

    id: str | None
    inputs: dict[str, Any]
    datatypes: dict[str, str]
    outputs: tuple[str, ...] | None
    binary: Mapping[str, bool]
    default_binary: bool


def parse_infer(body: bytes, header_length: str | None) -> InferRequest:
    """Read a request's body.

    Args:
        body: JSON, followed by binary tensors where there are any.
        header_length: the header `Inference-Header-Content-Length`: bytes of that JSON; None if all is JSON.

    Raises:
        InvalidRequestError: it is not a request of the protocol.
    """
    json_bytes = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 18:
            raise InvalidRequestError("Inference-Header-Content-Length is not a number of bytes")
        json_bytes = int(header_length)
        if json_bytes > len(body):
            raise InvalidRequestError(
                f"Inference-Header-Content-Length is {json_bytes}, and the body has {len(body)} bytes"
            )
    head = parse_json_object(body[:json_bytes])
    rest = memoryview(body)[json_bytes:]
    given_id = head.get("id")
    if given_id is not None and not isinstance(given_id, str):
        raise InvalidRequestError("'id' must be a string")
    inputs: dict[str, Any] = {}
    datatypes: dict[str, str] = {}
    for entry in _objects(head, "inputs"):
        name = _name(entry, "input")
        if name in inputs:
            raise InvalidRequestError(f"input '{name}' is there twice")
        inputs[name], rest = _read_input(name, entry, rest)
        datatypes[name] = entry["datatype"]
    if not inputs:
        raise InvalidRequestError("'inputs' is missing: which tensors are given?")
    if len(rest):
        raise InvalidRequestError(f"{len(rest)} bytes follow the last binary tensor")
    binary: dict[str, bool] = {}
    default_binary = _flag(_parameters(head, "the request"), "binary_data_output") or False
    for entry in _objects(head, "outputs"):
        name = _name(entry, "output")
        wanted = _flag(_parameters(entry, f"output '{name}'"), "binary_data")
        binary[name] = default_binary if wanted is None else wanted
    return InferRequest(given_id, inputs, datatypes, tuple(binary) or None, binary, default_binary)


def check_datatypes(asked: InferRequest, specs: Sequence[TensorSpec]) -> None:
    """Tell BF16 and FP32 apart, whose arrays are of the same type.

    Raises:
        InvalidRequestError: the model takes the other one.
    """
    for spec in specs:
        given, wanted = asked.datatypes.get(spec.name), NAMES[spec.dtype]
        if {given, wanted} == {"BF16", "FP32"}:
            raise InvalidRequestError(
                f"input '{spec.name}' is {given}, and the model takes {wanted}", hint=f"send it as {wanted}"
            )


def _read_input(name: str, entry: dict[str, Any], rest: memoryview) -> tuple[Any, memoryview]:
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise InvalidRequestError(
            f"input '{name}' has the datatype {str(datatype)[:50]!r}",
            hint=f"one of {', '.join(DTYPES)}",
        )
    shape = entry.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(dim) is int and 0 <= dim < 1 << 40 for dim in shape)
    ):
        raise InvalidRequestError(f"input '{name}' needs a 'shape': a list of sizes, none negative")
    size = _parameters(entry, f"input '{name}'").get("binary_data_size")
    data = entry.get("data")
    if size is None:
        if not isinstance(data, list):
            raise InvalidRequestError(f"input '{name}' has no 'data' (a list) and no 'binary_data_size'")
        return from_json(name, datatype, tuple(shape), data), rest
    if data is not None:
        raise InvalidRequestError(f"input '{name}' has both 'data' and 'binary_data_size'")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise InvalidRequestError(
            f"input '{name}' names {str(size)[:50]} bytes of binary data, and {len(rest)} are left",
            hint="send Inference-Header-Content-Length, and the tensors in the order of the inputs",
        )
    return from_bytes(name, datatype, tuple(shape), rest[:size]), rest[size:]


def _objects(head: dict[str, Any], field: str) -> list[dict[str, Any]]:
    entries = head.get(field)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequestError(f"'{field}' must be a list of objects")
    return entries


def _name(entry: dict[str, Any], kind: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(f"an {kind} has no 'name'")
    return name


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError(f"the 'parameters' of {where} must be an object")
    for name in _UNSUPPORTED:
        if parameters.get(name):
            raise InvalidRequestError(f"'{name}' is not supported by this server", hint="leave it out")
    return parameters


def _flag(parameters: dict[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(f"'{name}' must be true or false")
    return value
