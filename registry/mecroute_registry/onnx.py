"""Read the outline of an ONNX model file, without trusting any number in it."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

from mecroute_registry.errors import InvalidModelFileError

# Far above any published model, low enough that a hostile file costs about a second.
_MAX_FIELDS = 1 << 20
_MAX_TEXT_BYTES = 1 << 16
_MAX_DIMENSIONS = 64
_MAX_ELEMENTS = 1 << 48
#: The format's newest version is 13; a number far above it is not a version.
_MAX_IR_VERSION = 100

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of onnx.proto3.
_IR_VERSION, _PRODUCER, _GRAPH, _OPSET = 1, 2, 7, 8
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_VALUE_NAME = 1
_DIMS, _DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 9, 13, 14

#: TensorProto.DataType → (name, bits of one element).
_TYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
}


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What the outline of an ONNX file says.

    Attributes:
        ir_version: version of the format.
        producer: what wrote the file, e.g. `pytorch`.
        opset: version of the standard operators.
        nodes: operators of the graph.
        parameters: elements of all stored tensors together.
        quantization: type that holds most of them, e.g. `float32` or `int8`; None without any.
        external_files: names of the files beside it that hold tensors.
        inputs, outputs: names of the graph's.
    """

    ir_version: int
    producer: str | None
    opset: int | None
    nodes: int
    parameters: int
    quantization: str | None
    external_files: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: Path) -> OnnxFacts:
    """Read the outline of an ONNX file, and check that every stored tensor has the bytes its shape needs.

    Operators and subgraphs are stepped over. The time is bounded by limits of this module, not by what the
    file declares. Tensor data is not read.

    Args:
        path: the file.

    Raises:
        InvalidModelFileError: the file is missing, not ONNX, truncated, declares impossible sizes, or keeps
            tensors in files that are missing, links, or outside its own folder.

    Safe to call from several threads at once.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelFileError(f"{path} is not a file", hint="give the path of an .onnx file")
        with path.open("rb") as file:
            return _Outline(path, file, status.st_size).read()
    except FileNotFoundError as error:
        raise InvalidModelFileError(f"{path} does not exist", hint="check the path") from error
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise InvalidModelFileError(message, hint="check its permissions") from error


@dataclass(frozen=True, slots=True)
class _Field:
    """One protobuf field: its number, its number value, or where its bytes lie."""

    number: int
    wire: int
    value: int
    start: int
    end: int


class _Outline:
    """Walks the messages of one file. Only lengths are believed, and only within their message."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._fields_left = _MAX_FIELDS
        self._elements: Counter[str] = Counter()
        self._external: dict[str, int] = {}
        self._nodes = 0
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    def read(self) -> OnnxFacts:
        """Walk the whole file."""
        ir_version, producer, opset, graph = 0, None, None, None
        for field in self._fields(0, self._size):
            if field.number == _IR_VERSION and field.wire == _VARINT:
                ir_version = field.value
            elif field.number == _PRODUCER and field.wire == _BYTES:
                producer = self._text(field)
            elif field.number == _OPSET and field.wire == _BYTES:
                opset = self._opset(field) or opset
            elif field.number == _GRAPH and field.wire == _BYTES:
                graph = field
        if graph is None or not 1 <= ir_version <= _MAX_IR_VERSION:
            self._refuse("is not an ONNX model: it has no version and graph")
        self._read_graph(graph)
        if not self._outputs:
            self._refuse("has a graph without outputs")
        for name, size in self._external.items():
            self._check_external(name, size)
        most = self._elements.most_common(1)
        return OnnxFacts(
            ir_version=ir_version,
            producer=producer or None,
            opset=opset,
            nodes=self._nodes,
            parameters=self._elements.total(),
            quantization=most[0][0] if most else None,
            external_files=tuple(sorted(self._external)),
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
        )

    def _read_graph(self, graph: _Field) -> None:
        for field in self._fields(graph.start, graph.end):
            if field.number == _NODE:
                self._nodes += 1
            elif field.number == _INPUT and field.wire == _BYTES:
                self._inputs.append(self._value_name(field))
            elif field.number == _OUTPUT and field.wire == _BYTES:
                self._outputs.append(self._value_name(field))
            elif field.number == _INITIALIZER and field.wire == _BYTES:
                self._read_tensor(field)

    def _value_name(self, value: _Field) -> str:
        for part in self._fields(value.start, value.end):
            if part.number == _VALUE_NAME and part.wire == _BYTES:
                return self._text(part)
        return ""

    def _opset(self, field: _Field) -> int | None:
        domain, version = "", None
        for part in self._fields(field.start, field.end):
            if part.number == 1 and part.wire == _BYTES:
                domain = self._text(part)
            elif part.number == 2 and part.wire == _VARINT:
                version = part.value
        return version if domain in ("", "ai.onnx") else None

    def _read_tensor(self, tensor: _Field) -> None:
        dims: list[int] = []
        data_type, raw_bytes, is_external = 0, None, False
        entries: dict[str, str] = {}
        for field in self._fields(tensor.start, tensor.end):
            if field.number == _DIMS:
                dims += [field.value] if field.wire == _VARINT else self._packed(field)
                if len(dims) > _MAX_DIMENSIONS:
                    self._refuse(f"has a tensor of more than {_MAX_DIMENSIONS} dimensions")
            elif field.number == _DATA_TYPE:
                data_type = field.value
            elif field.number == _RAW_DATA and field.wire == _BYTES:
                raw_bytes = field.end - field.start
            elif field.number == _DATA_LOCATION:
                is_external = field.value == 1
            elif field.number == _EXTERNAL_DATA and field.wire == _BYTES:
                key, value = self._entry(field)
                entries[key] = value
        elements = 1
        for dim in dims:
            elements *= dim  # a negative one is a number above 2**63 on the wire
            if elements > _MAX_ELEMENTS:
                self._refuse(f"declares a tensor with the impossible shape {dims}")
        name, bits = _TYPES.get(data_type, (f"type {data_type}", 0))
        needed = (elements * bits + 7) // 8
        if is_external:
            self._add_external(entries, needed)
        elif bits and raw_bytes is not None and raw_bytes != needed:
            self._refuse(f"holds {raw_bytes:,} bytes for a tensor of shape {dims} that needs {needed:,}")
        self._elements[name] += elements

    def _add_external(self, entries: dict[str, str], needed: int) -> None:
        location = entries.get("location", "")
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(needed)))
        except ValueError:
            self._refuse("has a tensor in another file at a place that is not a number")
        parts = PurePosixPath(location).parts
        if not parts or location.startswith("/") or ".." in parts or "\\" in location or "\0" in location:
            self._refuse(f"keeps a tensor in '{location[:200]}', which is not in its own folder")
        if offset < 0 or length < 0 or offset + max(length, needed) > _MAX_ELEMENTS:
            self._refuse(f"keeps a tensor at an impossible place of '{location[:200]}'")
        self._external[location] = max(self._external.get(location, 0), offset + max(length, needed))

    def _check_external(self, name: str, size: int) -> None:
        path = self._path.parent / name
        # ONNX Runtime rejects links; they could also lead out of the folder.
        if os.path.realpath(path) != os.path.join(os.path.realpath(path.parent), path.name):  # noqa: PTH118
            self._refuse(f"keeps tensors in '{name}', which is a link")
        try:
            has = path.stat().st_size
        except OSError:
            self._refuse(f"keeps tensors in '{name}', which is not beside it")
        if has < size:
            self._refuse(f"keeps tensors in '{name}', which has {has:,} bytes of {size:,}")

    def _entry(self, field: _Field) -> tuple[str, str]:
        texts = {
            part.number: self._text(part)
            for part in self._fields(field.start, field.end)
            if part.wire == _BYTES
        }
        return texts.get(1, ""), texts.get(2, "")

    def _packed(self, field: _Field) -> list[int]:
        values: list[int] = []
        self._file.seek(field.start)
        at = field.start
        while at < field.end and len(values) <= _MAX_DIMENSIONS:
            value, at = self._varint(at, field.end)
            values.append(value)
        return values

    def _text(self, field: _Field) -> str:
        if field.end - field.start > _MAX_TEXT_BYTES:
            self._refuse("has a name that is longer than any name")
        self._file.seek(field.start)
        text = self._file.read(field.end - field.start)
        return text.decode("utf-8", "replace")

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        at = start
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                self._refuse(f"has more than {_MAX_FIELDS:,} fields")
            self._file.seek(at)
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            value = 0
            if number == 0:
                self._refuse("is not protobuf")
            if wire == _VARINT:
                value, data = self._varint(at, end)
                at, stop = data, data
            elif wire == _BYTES:
                length, data = self._varint(at, end)
                at, stop = data, data + length
            elif wire in (_FIXED64, _FIXED32):
                stop = at + (8 if wire == _FIXED64 else 4)
            else:
                self._refuse("is not protobuf")
            if stop > end:
                self._refuse("is truncated, or not an ONNX model")
            yield _Field(number, wire, value, at, stop)
            at = stop

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at the file's position `at`, and the position after it."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._file.read(1)
            if at >= end or not byte:
                self._refuse("is truncated, or not an ONNX model")
            at += 1
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value, at
        raise self._refusal("is not protobuf")

    def _refuse(self, why: str) -> NoReturn:
        raise self._refusal(why)

    def _refusal(self, why: str) -> InvalidModelFileError:
        return InvalidModelFileError(f"{self._path} {why}", hint="export or copy the model again")
