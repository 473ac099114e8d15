"""One loaded ONNX model: its inputs and outputs, and a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mecroute.engines.onnx.bfloat16 import run_bfloat16
from mecroute.engines.onnx.native import open_session
from mecroute.errors import InvalidRequestError

#: ONNX's names of the element types that numpy has too; text is an array of `str` objects.
_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bfloat16)": "bfloat16",
    "tensor(string)": "object",
}


class UnsupportedModelError(ValueError):
    """A model has an input or output that is not a tensor of a type that numpy has."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: its name in the graph.
        dtype: numpy's name of its element type; `object` for text, and `bfloat16`, which numpy does not have.
        shape: each dimension's size; None where the model leaves it open.
        symbols: the name the model gives each open dimension; None for the others and where it gives none.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    symbols: tuple[str | None, ...]

    @property
    def array_dtype(self) -> str:
        """The type of the arrays it is given and gives: values of `bfloat16` are held as float32."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    @property
    def is_text(self) -> bool:
        """Whether its elements are texts."""
        return self.dtype == "object"


class OnnxModel:
    """A model in memory.

    Args:
        path: the model file; check it first with `read_onnx` and `try_model`.
        providers: execution providers in order.
        n_threads: ≥ 1; CPU threads of one run.
        lanes: ≥ 1; runs that may be side by side. Each of several has one thread to itself; they share a
            second copy of the weights.

    Raises:
        UnsupportedModelError: an input or output is not a tensor that numpy could hold.

    What onnxruntime raises goes through as it is. `run` may be called from several threads.
    """

    def __init__(self, path: Path, *, providers: Sequence[str], n_threads: int, lanes: int = 1) -> None:
        self._session: Any = open_session(str(path), providers=list(providers), n_threads=n_threads)
        self._narrow: Any = self._session
        if lanes > 1:
            self._narrow = open_session(str(path), providers=list(providers), n_threads=1)
        self.inputs = tuple(_spec(arg) for arg in self._session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in self._session.get_outputs())
        #: The providers that are really in use.
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._by_name = {spec.name: spec for spec in self.inputs}
        self._bfloat16 = frozenset(
            spec.name for spec in (*self.inputs, *self.outputs) if spec.dtype == "bfloat16"
        )

    @property
    def has_row_axis(self) -> bool:
        """Whether the first axis of every input and output is open, and the same one by name."""
        specs = (*self.inputs, *self.outputs)
        if not self.inputs or any(not spec.shape or spec.shape[0] is not None for spec in specs):
            return False
        return len({spec.symbols[0] for spec in specs if spec.symbols[0] is not None}) <= 1

    def check(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None) -> None:
        """Make sure that a request fits the model.

        Args:
            inputs: an array per input.
            outputs: names of the outputs wanted; None for all.

        Raises:
            InvalidRequestError: a name, a type or a shape is not what the model takes.
        """
        for missing in self._by_name.keys() - inputs.keys():
            raise InvalidRequestError(f"input '{missing}' is missing", hint=self._signature())
        for name, array in inputs.items():
            spec = self._by_name.get(name)
            if spec is None:
                raise InvalidRequestError(f"the model has no input '{name}'", hint=self._signature())
            if array.dtype != spec.array_dtype:
                raise InvalidRequestError(
                    f"input '{name}' is {_type_name(str(array.dtype))}, not {_type_name(spec.dtype)}",
                    hint=self._signature(),
                )
            if len(array.shape) != len(spec.shape) or any(
                want is not None and have != want for have, want in zip(array.shape, spec.shape, strict=True)
            ):
                raise InvalidRequestError(
                    f"input '{name}' has shape {list(array.shape)}, not {_shape_text(spec)}",
                    hint=self._signature(),
                )
        known = {spec.name for spec in self.outputs}
        for name in outputs or ():
            if name not in known:
                raise InvalidRequestError(
                    f"the model has no output '{name}'", hint=f"its outputs: {', '.join(sorted(known))}"
                )

    def run(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None, *, narrow: bool = False
    ) -> dict[str, Any]:
        """Compute outputs; what onnxruntime raises goes through as it is.

        Args:
            inputs: an array per input.
            outputs: names of the outputs wanted; None for all.
            narrow: on one thread, beside other runs; not with one lane.
        """
        names = list(outputs) if outputs else [spec.name for spec in self.outputs]
        session = self._narrow if narrow else self._session
        if self._bfloat16:
            return run_bfloat16(session, names, inputs, self._bfloat16)
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def _signature(self) -> str:
        return "its inputs: " + ", ".join(
            f"{spec.name} {_type_name(spec.dtype)} {_shape_text(spec)}" for spec in self.inputs
        )


def _spec(arg: Any) -> TensorSpec:
    dtype = _DTYPES.get(arg.type)
    if dtype is None:
        raise UnsupportedModelError(
            f"'{arg.name}' is {arg.type}, which cannot be sent or answered as an array"
        )
    dims = arg.shape or []
    return TensorSpec(
        name=str(arg.name),
        dtype=dtype,
        shape=tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in dims),
        symbols=tuple(dim if isinstance(dim, str) else None for dim in dims),
    )


def _type_name(dtype: str) -> str:
    return "text" if dtype == "object" else dtype


def _shape_text(spec: TensorSpec) -> str:
    return "[" + ", ".join("any" if dim is None else str(dim) for dim in spec.shape) + "]"
