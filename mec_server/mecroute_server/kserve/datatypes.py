"""The protocol's datatypes, and how tensors of each are written as JSON and as bytes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from mecroute.engines.onnx.bfloat16 import from_bfloat16, to_bfloat16
from mecroute.errors import InvalidRequestError

#: The protocol's name → the model's; BYTES holds text, which ONNX calls string. Arrays have the same types,
#: but for BF16, which numpy does not have: its values are held as float32, which has them all.
DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    "BYTES": "object",
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")
#: numpy's kind of a datatype → the Python types of its values in JSON; the other kinds are whole numbers.
_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> Any:
    """An array from JSON values, flat or nested, in row-major order.

    Raises:
        InvalidRequestError: a value is not of that type or out of its range, or there are too few or many.
    """
    values = _flatten(data)
    _check_count(name, shape, len(values))
    dtype = _array_dtype(datatype)
    allowed = _JSON_TYPES.get(dtype.kind, frozenset({int}))
    if not set(map(type, values)) <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        raise InvalidRequestError(f"input '{name}' has {str(wrong)[:50]!r}, which is not {datatype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
            if datatype == "BF16":
                array = from_bfloat16(to_bfloat16(array))
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise OverflowError
        return array.reshape(shape)
    except OverflowError as error:
        raise InvalidRequestError(f"input '{name}' has a value out of the range of {datatype}") from error
    except ValueError as error:
        raise InvalidRequestError(f"input '{name}' has the impossible shape {list(shape)}") from error


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Any:
    """An array from the binary tensor extension's bytes: little-endian, row-major.

    Raises:
        InvalidRequestError: the bytes are not such a tensor.
    """
    if datatype == "BYTES":
        texts = _read_texts(name, data)
        _check_count(name, shape, len(texts))
        flat: Any = np.array(texts, dtype=object)
    elif datatype == "BF16":
        if len(data) % 2:
            raise InvalidRequestError(f"input '{name}' has {len(data)} bytes, which are no whole BF16s")
        _check_count(name, shape, len(data) // 2)
        flat = from_bfloat16(np.frombuffer(data, "<u2"))
    else:
        dtype = np.dtype(DTYPES[datatype]).newbyteorder("<")
        if len(data) % dtype.itemsize:
            raise InvalidRequestError(f"input '{name}' has {len(data)} bytes, which are no whole {datatype}s")
        _check_count(name, shape, len(data) // dtype.itemsize)
        if datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
            raise InvalidRequestError(f"input '{name}' has a byte that is not BOOL: neither 0 nor 1")
        # Copied where the bytes before it leave it unaligned, which native code need not expect.
        flat = np.require(np.frombuffer(data, dtype), np.dtype(DTYPES[datatype]), ["A"])
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise InvalidRequestError(f"input '{name}' has the impossible shape {list(shape)}") from error


def to_bytes(array: Any, datatype: str) -> bytes:
    """The binary tensor extension's bytes."""
    if datatype == "BF16":
        return bytes(to_bfloat16(array).astype("<u2").tobytes())
    if array.dtype.kind in "OU":
        encoded = [str(text).encode() for text in array.ravel()]
        return b"".join(_LENGTH.pack(len(text)) + text for text in encoded)
    little: Any = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return bytes(little.tobytes())


def to_json(name: str, array: Any) -> list[Any]:
    """JSON values, flat and in row-major order.

    Raises:
        InvalidRequestError: there is a NaN or an infinity, which JSON cannot carry.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidRequestError(
            f"output '{name}' has NaN or infinite values, which JSON cannot carry",
            hint="ask for it as binary data: 'binary_data': true in the output's parameters",
        )
    values: list[Any] = array.ravel().tolist()
    return values


def _array_dtype(datatype: str) -> Any:
    return np.dtype("float32" if datatype == "BF16" else DTYPES[datatype])


def _flatten(data: list[Any]) -> list[Any]:
    while any(type(value) is list for value in data):
        data = [part for value in data for part in (value if type(value) is list else (value,))]
    return data


def _check_count(name: str, shape: tuple[int, ...], count: int) -> None:
    needed = 1
    for dim in shape:
        needed *= dim
    if needed != count:
        raise InvalidRequestError(
            f"input '{name}' has {count} values, and its shape {list(shape)} needs {needed}"
        )


def _read_texts(name: str, data: memoryview) -> list[str]:
    texts: list[str] = []
    at = 0
    while at < len(data):
        end = at + _LENGTH.size
        if end <= len(data):
            at, end = end, end + _LENGTH.unpack_from(data, at)[0]
        if end > len(data):
            raise InvalidRequestError(f"input '{name}': its last element is cut off")
        try:
            texts.append(str(data[at:end], "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"input '{name}' has an element that is not UTF-8",
                hint="ONNX models take text, not raw bytes",
            ) from error
        at = end
    return texts
