"""Read the header of a GGUF model file, without trusting any number in it."""

from __future__ import annotations

import math
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from mecroute_registry._gguf_tables import (
    ARRAY,
    FILE_TYPE_GUESSED,
    FILE_TYPES,
    SCALARS,
    STRING,
    TENSOR_TYPES,
)
from mecroute_registry.errors import InvalidModelFileError

# Far above any published model (a 262k-token vocabulary with its merges is under 32 MiB and 1 M strings), low
# enough that a hostile header costs well under a second.
_MAX_HEADER_BYTES = 256 << 20
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_ARRAY_STRINGS = 1 << 22
_MAX_KEY_BYTES = 1 << 16
_MAX_STRING_BYTES = 16 << 20
_MAX_TENSOR_NAME_BYTES = 63
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 1 << 62
_MAX_CONTEXT = 1 << 31
_ALIGNMENTS = frozenset(1 << bit for bit in range(21))
_WINDOW_BYTES = 1 << 20

#: The only strings that are kept, where they are short; all others are stepped over. (Some files hold the
#: whole text of their license in `general.license`.)
_MAX_TEXT_BYTES = 1 << 10
_TEXT_KEYS = frozenset(
    {"general.architecture", "general.name", "general.license", "general.type", "tokenizer.ggml.model"}
)

#: What an adapter says of itself, and the types it must have.
_ADAPTER_KEYS = {"general.type": STRING, "adapter.type": STRING, "adapter.lora.alpha": 6}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What the header of a GGUF file says.

    Attributes:
        version: version of the GGUF format (2 or 3).
        architecture: `general.architecture`, e.g. `llama`.
        name: `general.name`.
        parameters: elements of all tensors together.
        quantization: llama.cpp's name for `general.file_type`, e.g. `Q4_1`; the type that holds most
            elements when the file states none.
        context_length: tokens the model was trained for.
        embedding_length: width of the residual stream.
        tensor_count: number of tensors.
        tensor_types: how many tensors have each ggml type, e.g. `{"F32": 61, "Q4_1": 211}`.
        has_chat_template: whether `tokenizer.chat_template` is present.
        license: `general.license`.
        tokenizer_model: `tokenizer.ggml.model`, e.g. `gpt2` or `llama`.
        layers: blocks, as the header counts them.
        feed_forward_length: width of a block's feed-forward part, where it is one number for all blocks.
        kind: `general.type`: `model`, `adapter` and others.
        kv_bytes_per_token: what one token takes in a KV cache of 16-bit numbers. An upper bound where layers
            differ, or where some attend to a window only; None where the header does not say enough.
        is_causal: whether no token looks at those after it; False for most encoders.
        vocabulary_size: tokens; None where the file has no vocabulary.
    """

    version: int
    architecture: str
    name: str | None
    parameters: int
    quantization: str
    context_length: int | None
    embedding_length: int | None
    tensor_count: int
    tensor_types: Mapping[str, int]
    has_chat_template: bool
    license: str | None
    tokenizer_model: str | None
    layers: int | None = None
    feed_forward_length: int | None = None
    kv_bytes_per_token: int | None = None
    kind: str | None = None
    is_causal: bool = True
    vocabulary_size: int | None = None


def read_gguf(path: Path) -> GgufFacts:
    """Read and check the header of a GGUF file, and that the data of every tensor lies inside the file.

    The time is bounded by limits of this module, not by what the file declares: a damaged or hostile file is
    refused in milliseconds. Tensor data is not read.

    Args:
        path: the file.

    Raises:
        InvalidModelFileError: the file is missing, not GGUF, truncated, or declares impossible sizes.

    Safe to call from several threads at once.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelFileError(f"{path} is not a file", hint="give the path of a .gguf file")
        with path.open("rb", buffering=0) as file:
            header = _Header(path, file, status.st_size)
            return header.read()
    except FileNotFoundError as error:
        raise InvalidModelFileError(f"{path} does not exist", hint="check the path") from error
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise InvalidModelFileError(message, hint="check its permissions") from error


class _Header:
    """A cursor over the header, through a window that is read ahead."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._window = b""
        self._start = 0  # file offset of the window
        self._at = 0  # position in the window
        self._strings_left = _MAX_ARRAY_STRINGS
        self._scalars: dict[str, int | float | bool] = {}
        self._vocabulary_size: int | None = None
        self._texts: dict[str, str] = {}
        self._has_chat_template = False
        self._elements: Counter[str] = Counter()
        self._types: Counter[str] = Counter()

    def read(self) -> GgufFacts:
        version, tensor_count = self._read_preamble()
        self._read_tensors(tensor_count)
        architecture = self._texts.get("general.architecture")
        if not architecture:
            self._refuse("states no general.architecture")
        return GgufFacts(
            version=version,
            architecture=architecture,
            name=self._texts.get("general.name") or None,
            parameters=self._elements.total(),
            quantization=self._quantization(),
            context_length=self._positive(f"{architecture}.context_length"),
            embedding_length=self._positive(f"{architecture}.embedding_length"),
            tensor_count=tensor_count,
            tensor_types=dict(sorted(self._types.items())),
            has_chat_template=self._has_chat_template,
            license=self._texts.get("general.license") or None,
            tokenizer_model=self._texts.get("tokenizer.ggml.model") or None,
            layers=self._positive(f"{architecture}.block_count"),
            feed_forward_length=self._positive(f"{architecture}.feed_forward_length"),
            kind=self._texts.get("general.type") or None,
            kv_bytes_per_token=self._kv_bytes_per_token(architecture),
            is_causal=self._scalars.get(f"{architecture}.attention.causal") is not False,
            vocabulary_size=self._vocabulary_size,
        )

    # --- sections of the file -----------------------------------------------------------------------------

    def _read_preamble(self) -> tuple[int, int]:
        """Magic, version and counts, then the metadata; returns version and tensor count."""
        if self._size < 4 or self._take(4, "the magic") != b"GGUF":
            self._refuse("is not a GGUF file: it does not start with 'GGUF'", "give a model in GGUF format")
        version = self._u32("the version")
        if version & 0xFFFF == 0:
            self._refuse("is a big-endian GGUF file", "convert it to little-endian GGUF")
        if version not in (2, 3):
            self._refuse(f"has GGUF version {version}; versions 2 and 3 are known", "convert it again")
        tensor_count = self._u64("the number of tensors")
        key_count = self._u64("the number of metadata keys")
        if key_count > _MAX_KEYS:
            self._refuse(f"declares {key_count} metadata keys, more than any model has")
        if tensor_count > _MAX_TENSORS:
            self._refuse(f"declares {tensor_count} tensors, more than any model has")
        if tensor_count == 0:
            self._refuse("holds no tensors", "give the file with the weights, not one with only a vocabulary")
        seen: set[str] = set()
        for _ in range(key_count):
            key = self._text("a metadata key", _MAX_KEY_BYTES)
            if key in seen:
                self._refuse(f"states the metadata key {key[:80]!r} twice")
            seen.add(key)
            self._read_value(key)
        parts = self._scalars.get("split.count", 1)
        if parts > 1:
            self._refuse(
                f"is one of {parts} parts of a split model",
                "join the parts with `llama-gguf-split --merge` first",
            )
        return version, tensor_count

    def _read_value(self, key: str) -> None:
        kind = self._u32(f"the type of {key!r}")
        if kind != _ADAPTER_KEYS.get(key, kind):
            # llama.cpp ends the process over these.
            self._refuse(f"gives {key!r} the type {kind}, not {_ADAPTER_KEYS[key]}", "convert it again")
        if kind == STRING:
            length = self._length(key, _MAX_STRING_BYTES)
            if key in _TEXT_KEYS and length <= _MAX_TEXT_BYTES:
                self._texts[key] = self._take(length, key).decode("utf-8", errors="replace")
            else:
                self._skip(length, key)
                self._has_chat_template |= key == "tokenizer.chat_template"
        elif kind == ARRAY:
            self._skip_array(key)
        elif kind in SCALARS:
            code = SCALARS[kind]
            self._scalars[key] = struct.unpack(code, self._take(struct.calcsize(code), key))[0]
        else:
            self._refuse(f"gives {key[:80]!r} the unknown type {kind}")

    def _skip_array(self, key: str) -> None:
        kind = self._u32(f"the element type of {key!r}")
        count = self._u64(f"the length of {key!r}")
        if kind in SCALARS:
            self._skip(count * struct.calcsize(SCALARS[kind]), key)
        elif kind == STRING:
            if count > self._strings_left:
                self._refuse(f"declares {count} strings in {key[:80]!r}, more than any vocabulary has")
            self._strings_left -= count
            if key == "tokenizer.ggml.tokens":
                self._vocabulary_size = count
            self._skip_strings(count, key)
        else:
            # Arrays of arrays are in the specification, but llama.cpp reads none.
            self._refuse(f"has an array {key[:80]!r} of the unknown element type {kind}")

    def _skip_strings(self, count: int, key: str) -> None:
        # The hot loop: half a million strings for a large vocabulary. It stays inside the window.
        unpack = _U64.unpack_from
        while count:
            self._fill(8, key)
            window, at, last = self._window, self._at, len(self._window) - 8
            length = 0
            while count and at <= last:
                (length,) = unpack(window, at)
                at += 8 + length
                count -= 1
            if length > _MAX_STRING_BYTES:
                self._refuse(f"declares a string of {length} bytes in {key[:80]!r}")
            # The last string may end beyond the window; the ones before it cannot.
            self._at = min(at, len(window))
            self._skip(at - self._at, key)

    def _read_tensors(self, count: int) -> None:
        alignment = self._scalars.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in _ALIGNMENTS:
            self._refuse(f"states the impossible alignment {alignment}")
        names: set[str] = set()
        expected = 0
        name, end = "", 0
        for _ in range(count):
            name = self._text("a tensor name", _MAX_TENSOR_NAME_BYTES)
            if name in names:
                self._refuse(f"has two tensors named {name!r}")
            names.add(name)
            size = self._read_tensor_shape(name)
            offset = self._u64(f"the offset of {name!r}")
            # llama.cpp refuses a gap or an overlap as well; it also bounds the sum of all sizes by the file.
            if offset != expected:
                self._refuse(f"places tensor {name!r} at {offset}, expected {expected}")
            end = offset + size
            expected = -(-end // alignment) * alignment
            if end > self._size:
                self._refuse_truncated(f"tensor {name!r} ends at byte {end} of the data")
        data_start = -(-(self._start + self._at) // alignment) * alignment
        if data_start + end > self._size:
            self._refuse_truncated(f"tensor {name!r} ends at byte {data_start + end}")

    def _read_tensor_shape(self, name: str) -> int:
        """Dimensions and type of a tensor; returns its size in bytes."""
        rank = self._u32(f"the rank of {name!r}")
        if not 1 <= rank <= _MAX_DIMENSIONS:
            self._refuse(f"gives tensor {name!r} {rank} dimensions")
        shape: tuple[int, ...] = struct.unpack(f"<{rank}Q", self._take(8 * rank, name))
        elements = math.prod(shape)
        kind = self._u32(f"the type of {name!r}")
        if kind not in TENSOR_TYPES:
            self._refuse(f"gives tensor {name!r} the unknown type {kind}", "quantize the model again")
        label, block, block_bytes = TENSOR_TYPES[kind]
        if not 0 < elements <= _MAX_ELEMENTS or shape[0] % block:
            self._refuse(f"gives tensor {name!r} the impossible shape {list(shape)} for type {label}")
        self._elements[label] += elements
        self._types[label] += 1
        return elements // block * block_bytes

    # --- facts --------------------------------------------------------------------------------------------

    def _quantization(self) -> str:
        stated = self._scalars.get("general.file_type")
        if isinstance(stated, int) and (label := FILE_TYPES.get(stated & ~FILE_TYPE_GUESSED)):
            return label
        return self._elements.most_common(1)[0][0]

    def _kv_bytes_per_token(self, architecture: str) -> int | None:
        layers, width = (
            self._positive(f"{architecture}.{key}") for key in ("block_count", "embedding_length")
        )
        attention = f"{architecture}.attention"
        heads = self._positive(f"{attention}.head_count")
        if layers is None or width is None or heads is None:
            return None
        # An array, one number a layer, is not kept: then as many as there are heads, which is the most.
        kv_heads = self._positive(f"{attention}.head_count_kv") or heads
        key, value = (
            self._positive(f"{attention}.{part}_length") or width // heads for part in ("key", "value")
        )
        return layers * kv_heads * (key + value) * 2

    def _positive(self, key: str) -> int | None:
        value = self._scalars.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or not 0 < value <= _MAX_CONTEXT:
            self._refuse(f"states the impossible {key} {value}")
        return value

    # --- bytes --------------------------------------------------------------------------------------------

    def _fill(self, count: int, what: str) -> None:
        """Make `count` bytes available at the cursor; `count` is at most `_MAX_STRING_BYTES`."""
        if len(self._window) - self._at >= count:
            return
        start = self._start + self._at
        if start + count > self._size:
            self._refuse_truncated(f"{what[:80]} ends at byte {start + count}")
        if start + count > _MAX_HEADER_BYTES:
            self._refuse(f"has a header of more than {_MAX_HEADER_BYTES >> 20} MiB")
        self._file.seek(start)
        parts, wanted = [], max(count, _WINDOW_BYTES)
        while wanted > 0 and (part := self._file.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        self._window, self._start, self._at = b"".join(parts), start, 0
        if len(self._window) < count:  # it shrank while we read
            self._refuse_truncated(f"{what[:80]} ends at byte {start + count}")

    def _take(self, count: int, what: str) -> bytes:
        self._fill(count, what)
        self._at += count
        return self._window[self._at - count : self._at]

    def _skip(self, count: int, what: str) -> None:
        end = self._start + self._at + count
        if end > self._size:
            self._refuse_truncated(f"{what[:80]!r} ends at byte {end}")
        if end <= self._start + len(self._window):
            self._at += count
        else:
            self._window, self._start, self._at = b"", end, 0

    def _u32(self, what: str) -> int:
        return int(_U32.unpack(self._take(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(_U64.unpack(self._take(8, what))[0])

    def _length(self, what: str, limit: int) -> int:
        length = self._u64(f"the length of {what}")
        if length > limit:
            self._refuse(f"declares {length} bytes for {what[:80]}")
        return length

    def _text(self, what: str, limit: int) -> str:
        return self._take(self._length(what, limit), what).decode("utf-8", errors="replace")

    def _refuse(self, what: str, hint: str = "the file is damaged: fetch it again") -> NoReturn:
        raise InvalidModelFileError(f"{self._path} {what}", hint=hint)

    def _refuse_truncated(self, what: str) -> NoReturn:
        raise InvalidModelFileError(
            f"{self._path} is truncated: {what}, but the file has {self._size} bytes",
            hint="the file is incomplete: fetch it again",
        )
