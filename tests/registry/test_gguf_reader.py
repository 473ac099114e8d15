"""The GGUF reader: what it reads, and that no file can mislead, hang or crash it."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from mecroute_registry import InvalidModelFileError, read_gguf
from support.gguf_bytes import (
    ARCHITECTURE,
    ARRAY,
    F32,
    STRING,
    U32,
    U64,
    entry,
    gguf_bytes,
    tensor,
    text,
    write_model,
)
from support.tiny_gguf import write_tiny_gguf


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def _read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    read_gguf(path)


def test_reads_a_file_written_by_the_gguf_package(tmp_path: Path) -> None:
    facts = read_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", context_length=512))
    assert (facts.version, facts.architecture, facts.name) == (3, "llama", "tiny")
    assert (facts.quantization, facts.context_length, facts.embedding_length) == ("F32", 512, 64)
    assert (facts.license, facts.tokenizer_model) == ("apache-2.0", "llama")
    assert facts.has_chat_template
    assert facts.tensor_types == {"F32": facts.tensor_count}
    from gguf import GGUFReader

    tensors = GGUFReader(tmp_path / "tiny.gguf").tensors
    assert facts.tensor_count == len(tensors)
    assert facts.parameters == sum(int(tensor.n_elements) for tensor in tensors)


def test_says_when_there_is_no_chat_template(tmp_path: Path) -> None:
    facts = read_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", chat_template=False))
    assert not facts.has_chat_template


def test_reads_what_the_header_leaves_out_as_unknown(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    path.write_bytes(gguf_bytes())
    facts = read_gguf(path)
    assert (facts.name, facts.context_length, facts.license, facts.tokenizer_model) == (
        None,
        None,
        None,
        None,
    )
    assert (facts.parameters, facts.quantization) == (32, "F32")


def test_names_the_dominant_type_when_no_file_type_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "mixed.gguf"
    tensors = (tensor("norm", [32]), tensor("w", [64, 2], kind=8, offset=128))
    path.write_bytes(gguf_bytes(tensors=tensors, data=bytes(128 + 4 * 34)))
    facts = read_gguf(path)
    assert facts.quantization == "Q8_0"
    assert facts.tensor_types == {"F32": 1, "Q8_0": 1}
    assert facts.parameters == 32 + 128


def test_steps_over_a_vocabulary_larger_than_its_window(tmp_path: Path) -> None:
    # 3 MB of strings cross the reader's 1 MiB window at many offsets.
    rng = random.Random(1)
    words = [rng.randbytes(rng.randrange(40)).hex() for _ in range(40_000)]
    strings = b"".join(text(word) for word in words)
    path = tmp_path / "vocabulary.gguf"
    entries = (
        entry("tokenizer.ggml.tokens", ARRAY, _array(STRING, len(words), strings)),
        entry("tokenizer.ggml.scores", ARRAY, _array(F32, len(words), bytes(4 * len(words)))),
        entry("tokenizer.ggml.merges", ARRAY, _array(STRING, 1, text("x" * 3_000_000))),
        ARCHITECTURE,
        entry("llama.context_length", U32, _u32(77)),
    )
    path.write_bytes(gguf_bytes(entries))
    assert read_gguf(path).context_length == 77


def test_keeps_no_long_license_text(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", license_name="Permission is hereby granted. " * 1000)
    assert read_gguf(path).license is None


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole.gguf", size_bytes=256).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidModelFileError):
            read_gguf(path)


def test_a_truncated_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(InvalidModelFileError, match=r"tiny\.gguf is truncated: tensor '.*fetch it again"):
        read_gguf(path)


def test_damaged_headers_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole.gguf", size_bytes=64).read_bytes()
    rng = random.Random(7)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged) - 64)] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
            )
        path.write_bytes(damaged)
        try:
            read_gguf(path)
        except InvalidModelFileError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not start with 'GGUF'"),
        (b"GG", "does not start with 'GGUF'"),
        (b"PK\x03\x04" + bytes(100), "does not start with 'GGUF'"),
        (b"GGUF", "is truncated"),
        (gguf_bytes(version=1), "GGUF version 1"),
        (gguf_bytes(version=99), "GGUF version 99"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
        (gguf_bytes(tensors=(), data=b""), "holds no tensors"),
        (gguf_bytes(entries=()), r"no general\.architecture"),
        (gguf_bytes(key_count=1 << 60), "metadata keys, more than"),
        (gguf_bytes(tensor_count=1 << 60), "tensors, more than"),
        (gguf_bytes((ARCHITECTURE, ARCHITECTURE)), "twice"),
        (gguf_bytes((struct.pack("<Q", 1 << 63),)), "bytes for a metadata key"),
        (gguf_bytes((entry("k", STRING, struct.pack("<Q", 1 << 62)),)), "bytes for k"),
        (gguf_bytes((entry("k", 99, b""),)), "unknown type 99"),
        (gguf_bytes((entry("k", ARRAY, _array(U64, 1 << 63)),)), "is truncated"),
        (gguf_bytes((entry("k", ARRAY, _array(STRING, 1 << 63)),)), "strings in 'k', more than"),
        (gguf_bytes((entry("k", ARRAY, _array(STRING, 1, struct.pack("<Q", 1 << 62))),)), "a string of"),
        (gguf_bytes((entry("k", ARRAY, _array(STRING, 1 << 20)),)), "is truncated|a string of"),
        (gguf_bytes((entry("k", ARRAY, _array(ARRAY, 1 << 20)),)), "unknown element type 9"),
        (gguf_bytes((ARCHITECTURE, entry("general.alignment", U32, _u32(0)))), "alignment 0"),
        (gguf_bytes((ARCHITECTURE, entry("general.alignment", U32, _u32(48)))), "alignment 48"),
        (gguf_bytes((ARCHITECTURE, entry("llama.context_length", U32, _u32(0)))), "context_length 0"),
        (gguf_bytes((ARCHITECTURE, entry("split.count", 2, struct.pack("<H", 3)))), "one of 3 parts"),
        (gguf_bytes((ARCHITECTURE, entry("split.count", F32, struct.pack("<f", float("nan"))))), None),
        (gguf_bytes(tensors=(tensor("w", [32]), tensor("w", [32], offset=128))), "two tensors named 'w'"),
        (gguf_bytes(tensors=(tensor("w" * 64, [32]),)), "bytes for a tensor name"),
        (gguf_bytes(tensors=(tensor("w", []),)), "0 dimensions"),
        (gguf_bytes(tensors=(tensor("w", [1] * 5),)), "5 dimensions"),
        (gguf_bytes(tensors=(tensor("w", [0]),)), "impossible shape"),
        (gguf_bytes(tensors=(tensor("w", [1 << 63, 1 << 63]),)), "impossible shape"),
        (gguf_bytes(tensors=(tensor("w", [33], kind=8),)), "impossible shape"),
        (gguf_bytes(tensors=(tensor("w", [1 << 40]),)), "is truncated: tensor 'w'"),
        (gguf_bytes(tensors=(tensor("w", [32], kind=77),)), "unknown type 77"),
        (gguf_bytes(tensors=(tensor("w", [32], offset=32),)), "at 32, expected 0"),
        (gguf_bytes(tensors=(tensor("w", [33]),)), "is truncated: tensor 'w'"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path: Path, data: bytes, message: str | None) -> None:
    if message is None:  # strange, but harmless: it can be read
        _read(tmp_path, data)
        return
    with pytest.raises(InvalidModelFileError, match=message) as caught:
        _read(tmp_path, data)
    assert str(tmp_path / "model.gguf") in caught.value.message
    assert caught.value.hint


def test_a_huge_sparse_header_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    # A terabyte-long array that the file does contain, as a hole, and more metadata behind it.
    array = entry("k", ARRAY, _array(0, 1 << 40))
    path.write_bytes(gguf_bytes((array, ARCHITECTURE)))
    os.truncate(path, (1 << 40) + 4096)
    with pytest.raises(InvalidModelFileError, match="more than 256 MiB"):
        read_gguf(path)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFileError, match="does not exist"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(InvalidModelFileError, match="is not a file"):
        read_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidModelFileError, match="is not a file"):
        read_gguf(tmp_path / "pipe")
