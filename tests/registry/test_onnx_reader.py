"""The reader of ONNX outlines, on real, damaged and hostile files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mecroute_registry import InvalidModelFileError
from mecroute_registry.onnx import read_onnx
from support.tiny_onnx import write_classifier


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def model_with(tensor: bytes) -> bytes:
    graph = message(5, tensor) + message(12, message(1, b"y"))
    return number(1, 8) + message(7, graph)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InvalidModelFileError) as caught:
        read_onnx(path)
    return caught.value.message


def test_the_outline_of_a_real_file(tmp_path: Path) -> None:
    facts = read_onnx(write_classifier(tmp_path / "m.onnx"))
    assert (facts.ir_version, facts.producer, facts.opset) == (8, "tests", 17)
    assert (facts.nodes, facts.parameters, facts.quantization) == (3, 8, "float32")
    assert facts.external_files == ()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = write_classifier(tmp_path / "m.onnx").read_bytes()
    # The operator set comes last; a file cut between two fields after the graph is still whole protobuf.
    graph_end = whole.index(b"\x42", len(whole) - 6)
    for size in range(graph_end):
        refused(tmp_path / "cut.onnx", whole[:size])


def test_flipped_bytes_never_hang_or_crash(tmp_path: Path) -> None:
    whole = write_classifier(tmp_path / "m.onnx").read_bytes()
    path = tmp_path / "flipped.onnx"
    for at in range(len(whole)):
        for value in (0x00, 0x7F, 0xFF):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            with suppress(InvalidModelFileError):
                assert read_onnx(path).ir_version >= 1


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF\x03\x00\x00\x00", b"not a model at all", b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04" * 20],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path / "m.onnx", content)


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    huge = number(1, 1 << 40) + number(1, 1 << 40) + number(2, 1) + message(9, b"1234")
    assert "impossible shape" in refused(path, model_with(huge))
    negative = number(1, (1 << 64) - 1) + number(2, 1) + message(9, b"1234")
    assert "impossible shape" in refused(path, model_with(negative))
    short = number(1, 100) + number(2, 1) + message(9, b"1234")
    assert "needs 400" in refused(path, model_with(short))
    assert "dimensions" in refused(path, model_with(number(1, 1) * 100 + number(2, 1)))
    assert "truncated" in refused(path, number(1, 8) + varint(7 << 3 | 2) + varint(1 << 60) + b"x")
    assert "without outputs" in refused(path, number(1, 8) + message(7, message(2, b"name")))
    assert "fields" in refused(path, number(1, 8) + message(7, number(3, 0) * ((1 << 20) + 1)))


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../b", "", "missing.bin"])
def test_tensors_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    entry = message(1, b"location") + message(2, location.encode())
    tensor = number(1, 1) + number(2, 1) + message(13, entry) + number(14, 1)
    refused(tmp_path / "m.onnx", model_with(tensor))


def test_tensors_in_a_file_beside_the_model(tmp_path: Path) -> None:
    model = onnx.load(str(write_classifier(tmp_path / "m.onnx")))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.float32), "extra"))
    path = tmp_path / "e.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="e.bin", size_threshold=100)
    facts = read_onnx(path)
    assert (facts.external_files, facts.parameters) == (("e.bin",), 1008)
    data = (tmp_path / "e.bin").read_bytes()
    (tmp_path / "e.bin").write_bytes(data[:-1])
    with pytest.raises(InvalidModelFileError, match="bytes of"):
        read_onnx(path)
    (tmp_path / "e.bin").unlink()
    (tmp_path / "real.bin").write_bytes(data)
    (tmp_path / "e.bin").symlink_to("real.bin")
    with pytest.raises(InvalidModelFileError, match="link"):
        read_onnx(path)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(InvalidModelFileError):
            read_onnx(path)
