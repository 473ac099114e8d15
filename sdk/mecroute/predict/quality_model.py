"""A learned predictor: how likely each of some models is to answer a text rightly, from the text alone."""

from __future__ import annotations

import json
import math
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import mul
from pathlib import Path
from typing import Any

from mecroute.errors import ConfigError
from mecroute.predict.shape import SHAPE_NAMES, shape
from mecroute.predict.surface import QuadraticSurface
from mecroute.predict.token_vectors import TokenVectors, read_words, shipped_vectors

_MAGIC = b"MRQP"
_VERSION = 1
_HEADER = struct.Struct("<4sHI")  # magic, version, bytes of the description
_MAX_BYTES = 32_000_000
_MAX_DESCRIPTION = 1_000_000
_MAX_HEADS = 16
_MAX_DIM = 1024
_SHAPE_LIMIT = 4.0  # standard deviations beyond which a count tells no more


@dataclass(frozen=True)
class Weights:
    """What is learned, as it lies in the file.

    For each head, p = bias + linear · v + vᵀ A v + shape_weights · s, where v is the direction of the text and
    s its standardised shape.

    Args:
        heads: what each output predicts, as `weak` and `strong`.
        matrices: int8 [heads, dim, dim], symmetric.
        scales, bias: [heads].
        linear: [heads][dim].
        shape_mean, shape_scale: [shapes].
        shape_weights: [heads][shapes].
        about: what it was trained on, when and how; free JSON.
    """

    heads: tuple[str, ...]
    matrices: bytes
    scales: Sequence[float]
    bias: Sequence[float]
    linear: Sequence[Sequence[float]]
    shape_mean: Sequence[float]
    shape_scale: Sequence[float]
    shape_weights: Sequence[Sequence[float]]
    about: Mapping[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The file: magic, version, a JSON description, int8 matrices, float32 numbers."""
        description = json.dumps(
            {
                "heads": self.heads,
                "dim": len(self.linear[0]),
                "shape": SHAPE_NAMES,
                "about": dict(self.about),
            }
        ).encode()
        numbers = [*self.scales, *self.bias, *(w for row in self.linear for w in row)]
        numbers += [*self.shape_mean, *self.shape_scale, *(w for row in self.shape_weights for w in row)]
        packed = array("f", numbers)
        if sys.byteorder == "big":
            packed.byteswap()
        return (
            _HEADER.pack(_MAGIC, _VERSION, len(description)) + description + self.matrices + packed.tobytes()
        )

    @classmethod
    def unpack(cls, data: bytes, name: str) -> Weights:
        """Read a file of `pack`.

        Args:
            name: what an error calls it.

        Raises:
            ConfigError: it is not a predictor this version reads, or it is damaged.
        """
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise ConfigError(f"{name} is not a quality predictor", hint="`mecroute train` makes one")
        _, version, size = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise ConfigError(f"{name} has version {version}, this program reads version {_VERSION}")
        begin = _HEADER.size + size
        if size > _MAX_DESCRIPTION or begin > len(data):
            raise ConfigError(f"{name} is damaged: its description is cut off")
        try:
            description = json.loads(data[_HEADER.size : begin])
            heads = tuple(description["heads"])
            dim = description["dim"]
            about = description["about"]
            known = tuple(description["shape"]) == SHAPE_NAMES and isinstance(about, dict)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{name} is damaged: its description cannot be read") from error
        if not known:
            raise ConfigError(f"{name} was trained for other features than this version's; train it anew")
        good = 0 < len(heads) <= _MAX_HEADS and all(isinstance(head, str) for head in heads)
        if not good or not isinstance(dim, int) or not 0 < dim <= _MAX_DIM:
            raise ConfigError(f"{name} is damaged: its description makes no sense")
        return cls._numbers(data[begin:], name, heads, dim, about)

    @classmethod
    def _numbers(cls, data: bytes, name: str, heads: tuple[str, ...], dim: int, about: Any) -> Weights:
        count, shapes = len(heads), len(SHAPE_NAMES)
        matrices = count * dim * dim
        wanted = matrices + 4 * (2 * count + count * dim + 2 * shapes + count * shapes)
        if len(data) != wanted:
            raise ConfigError(f"{name} is damaged: {len(data)} bytes of numbers where {wanted} are declared")
        numbers = array("f", data[matrices:])
        if sys.byteorder == "big":
            numbers.byteswap()
        values = numbers.tolist()
        if not all(map(math.isfinite, values)):
            raise ConfigError(f"{name} is damaged: it holds numbers that are not finite")
        rest = iter(values)

        def take(n: int) -> list[float]:
            return [next(rest) for _ in range(n)]

        return cls(
            heads=heads,
            matrices=data[:matrices],
            scales=take(count),
            bias=take(count),
            linear=[take(dim) for _ in heads],
            shape_mean=take(shapes),
            shape_scale=take(shapes),
            shape_weights=[take(shapes) for _ in heads],
            about=about,
        )


class QualityModel:
    """Evaluates learned weights. Pure Python, thread-safe; one text takes about 100 µs.

    Args:
        vectors: the table of word vectors that the weights were trained on.

    Raises:
        ConfigError: the weights do not fit the table.
    """

    def __init__(self, weights: Weights, vectors: TokenVectors) -> None:
        if len(weights.linear[0]) != vectors.dim:
            raise ConfigError(
                f"the predictor is for {len(weights.linear[0])} dimensions, the word vectors have {vectors.dim}"
            )
        self.heads = weights.heads
        self.about = weights.about
        self._vectors = vectors
        self._surface = QuadraticSurface(weights.matrices, weights.scales, weights.linear, weights.bias)
        self._mean = list(weights.shape_mean)
        self._scale = [1 / scale for scale in weights.shape_scale]
        self._shape_weights = weights.shape_weights

    def predict(self, text: str) -> list[float]:
        """For each head, about how likely it is to answer rightly; not bounded to 0..1."""
        words = read_words(text)
        found = [
            min(_SHAPE_LIMIT, max(-_SHAPE_LIMIT, (value - mean) * scale))
            for value, mean, scale in zip(shape(text, words), self._mean, self._scale, strict=True)
        ]
        return [
            value + sum(map(mul, row, found))
            for value, row in zip(
                self._surface.at(self._vectors.vector(words)), self._shape_weights, strict=True
            )
        ]


def read_quality_model(path: Path) -> QualityModel:
    """A predictor from a file, on the shipped word vectors.

    Raises:
        ConfigError: the file cannot be read, or is no predictor.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} is too large to be a quality predictor")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the quality predictor {path} cannot be read: {error.strerror}") from error
    return QualityModel(Weights.unpack(data, str(path)), shipped_vectors())
