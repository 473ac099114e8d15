"""A learned predictor: how likely each of some models is to answer a text rightly, from the text alone."""

from __future__ import annotations

import json
import math
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from operator import mul, sub
from pathlib import Path
from typing import Any

from mecroute.errors import ConfigError
from mecroute.predict.shape import SHAPE_NAMES, shape
from mecroute.predict.surface import MAX_DIM, STEPS, QuadraticSurface, SurfaceWeights
from mecroute.predict.token_vectors import TokenVectors, read_words, shipped_vectors

_MAGIC = b"MRQP"
_VERSION = 1
_HEADER = struct.Struct("<4sHI")  # magic, version, bytes of the description
_MAX_BYTES = 32_000_000
_MAX_DESCRIPTION = 1_000_000
_MAX_HEADS = 16
_MAKE_ONE = "`mecroute bench routing --train FILE --eval FILE --save FILE` makes one"


@dataclass(frozen=True)
class Weights:
    """What is learned, as it lies in the file.

    Each head is bias + f(v) + g(s): v is the direction of the text, s its standardised shape, and f and g are
    quadratic.

    Args:
        heads: what each output predicts, as `weak` and `strong`.
        bias: [heads].
        text: f, over the first dimensions of the word vectors.
        shape: g, over `SHAPE_NAMES`.
        shape_mean, shape_scale: [shapes]; s = (shape - mean) / scale within -1..1.
        about: what it was trained on, when and how; free JSON.
    """

    heads: tuple[str, ...]
    bias: Sequence[float]
    text: SurfaceWeights
    shape: SurfaceWeights
    shape_mean: Sequence[float]
    shape_scale: Sequence[float]
    about: Mapping[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The file: magic, version, a JSON description, int8 directions, float32 numbers."""
        description = json.dumps(
            {
                "heads": self.heads,
                "dim": len(self.text.linear[0]),
                "ranks": [len(self.text.curvature[0]), len(self.shape.curvature[0])],
                "shape": SHAPE_NAMES,
                "about": dict(self.about),
            }
        ).encode()
        numbers = [*self.bias, *self.shape_mean, *self.shape_scale]
        for part in (self.text, self.shape):
            numbers += [weight for row in (*part.curvature, *part.linear) for weight in row]
        packed = array("f", numbers)
        if sys.byteorder == "big":
            packed.byteswap()
        header = _HEADER.pack(_MAGIC, _VERSION, len(description))
        return header + description + self.text.directions + self.shape.directions + packed.tobytes()

    @classmethod
    def unpack(cls, data: bytes, name: str) -> Weights:
        """Read a file of `pack`.

        Args:
            name: what an error calls it.

        Raises:
            ConfigError: it is not a predictor this version reads, or it is damaged.
        """
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise ConfigError(f"{name} is not a quality predictor", hint=_MAKE_ONE)
        _, version, size = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise ConfigError(f"{name} has version {version}, this program reads version {_VERSION}")
        begin = _HEADER.size + size
        if size > _MAX_DESCRIPTION or begin > len(data):
            raise ConfigError(f"{name} is damaged: its description is cut off")
        try:
            description = json.loads(data[_HEADER.size : begin])
            heads = tuple(description["heads"])
            sizes = [description["dim"], *description["ranks"]]
            about = description["about"]
            known = tuple(description["shape"]) == SHAPE_NAMES and isinstance(about, dict)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{name} is damaged: its description cannot be read") from error
        if not known:
            raise ConfigError(f"{name} was trained for other features than this version's", hint=_MAKE_ONE)
        good = 0 < len(heads) <= _MAX_HEADS and all(isinstance(head, str) for head in heads)
        good = good and all(isinstance(size, int) and 0 < size <= MAX_DIM for size in sizes)
        if not good or len(sizes) != 3:
            raise ConfigError(f"{name} is damaged: its description makes no sense")
        return cls._numbers(data[begin:], name, heads, sizes, about)

    @classmethod
    def _numbers(
        cls, data: bytes, name: str, heads: tuple[str, ...], sizes: list[int], about: Any
    ) -> Weights:
        count, shapes = len(heads), len(SHAPE_NAMES)
        dim, text_rank, shape_rank = sizes
        texts = count * text_rank * dim
        matrices = texts + count * shape_rank * shapes
        wanted = matrices + 4 * (count + 2 * shapes + count * (text_rank + dim + shape_rank + shapes))
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

        def surface(stored: bytes, rank: int, size: int) -> SurfaceWeights:
            return SurfaceWeights(stored, [take(rank) for _ in heads], [take(size) for _ in heads])

        bias, mean, scale = take(count), take(shapes), take(shapes)
        if min(scale) <= 0:
            raise ConfigError(f"{name} is damaged: it holds a scale that is not positive")
        return cls(
            heads=heads,
            bias=bias,
            text=surface(data[:texts], text_rank, dim),
            shape=surface(data[texts:matrices], shape_rank, shapes),
            shape_mean=mean,
            shape_scale=scale,
            about=about,
        )


class QualityModel:
    """Evaluates learned weights. Pure Python, thread-safe; the bench prints what one text costs.

    Args:
        vectors: the table of word vectors that the weights were trained on.

    Raises:
        ConfigError: the weights do not fit the table.
    """

    def __init__(self, weights: Weights, vectors: TokenVectors) -> None:
        dim = len(weights.text.linear[0])
        if dim > vectors.dim:
            raise ConfigError(f"the predictor is for {dim} dimensions, the word vectors have {vectors.dim}")
        self._dims = dim
        self.heads = weights.heads
        self.about = weights.about
        self._vectors = vectors
        self._bias = weights.bias
        self._text = QuadraticSurface(weights.text)
        self._shape = QuadraticSurface(weights.shape)
        self._mean = list(weights.shape_mean)
        self._scale = [STEPS / scale for scale in weights.shape_scale]

    def predict(self, text: str) -> list[float]:
        """For each head, about how likely it is to answer rightly; not bounded to 0..1."""
        words = read_words(text)
        standard = map(mul, map(sub, shape(text, words), self._mean), self._scale)
        form = [STEPS if value > STEPS else -STEPS if value < -STEPS else int(value) for value in standard]
        parts = (
            self._bias,
            self._text.at(self._vectors.steps(words, STEPS, self._dims)),
            self._shape.at(form),
        )
        return [sum(part) for part in zip(*parts, strict=True)]


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


@lru_cache(maxsize=1)
def shipped_quality_model() -> QualityModel:
    """The predictor that comes with the package, read on first use; see docs/quality.md."""
    data = files("mecroute.predict").joinpath("data", "quality.mrqp").read_bytes()
    return QualityModel(Weights.unpack(data, "the shipped quality predictor"), shipped_vectors())
