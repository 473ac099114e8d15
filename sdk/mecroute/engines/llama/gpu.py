"""Where a model's layers go on a machine with GPUs."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, Literal

from mecroute.engines.llama import native
from mecroute.errors import ConfigError

SplitMode = Literal["none", "layer", "row"]

_SPLIT_MODES: dict[SplitMode, int] = {"none": 0, "layer": 1, "row": 2}
#: ggml_backend_dev_type: a GPU of its own, or one that shares the machine's memory.
_GPU_TYPES = (1, 2)


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How llama.cpp spreads a model over GPUs; without a GPU none of it changes anything but `devices`.

    Attributes:
        main_gpu: >= 0; the GPU that holds the whole model under `split_mode` "none".
        split_mode: "none", "layer" (layers and KV cache over the GPUs) or "row" (parts of each layer); None
            is llama.cpp's own choice.
        tensor_split: the share of each GPU, >= 0, in any unit; empty leaves it to llama.cpp.
        devices: names of the GPUs to use (`CUDA0`…; `gpu_devices` lists them); empty takes all.

    Raises:
        ConfigError: a value is impossible.
    """

    main_gpu: int = 0
    split_mode: SplitMode | None = None
    tensor_split: tuple[float, ...] = ()
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.main_gpu < 0:
            raise ConfigError(f"main_gpu is {self.main_gpu}", hint="it must be at least 0")
        if self.split_mode is not None and self.split_mode not in _SPLIT_MODES:
            raise ConfigError(f"split_mode is '{self.split_mode}'", hint="none, layer or row")
        if any(not math.isfinite(share) or share < 0 for share in self.tensor_split) or (
            self.tensor_split and not any(self.tensor_split)
        ):
            raise ConfigError(
                f"tensor_split is {list(self.tensor_split)}", hint="shares of at least 0, not all of them 0"
            )

    def apply(self, params: Any) -> list[Any]:
        """Write it into llama.cpp's model parameters.

        Returns:
            What must stay alive until the model is loaded.

        Raises:
            ConfigError: there is no GPU of a name, or there are more shares than devices can be.
            MissingExtraError: llama-cpp-python is not installed.
        """
        params.main_gpu = self.main_gpu
        if self.split_mode is not None:
            params.split_mode = _SPLIT_MODES[self.split_mode]
        kept: list[Any] = []
        if self.tensor_split:
            most = int(native.llama().llama_max_devices())
            if len(self.tensor_split) > most:
                raise ConfigError(
                    f"tensor_split has {len(self.tensor_split)} shares, and this llama.cpp takes {most}"
                )
            shares = (ctypes.c_float * most)(*self.tensor_split)
            params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
            kept.append(shares)
        if self.devices:
            found = {device.name: device for device in gpu_devices()}
            unknown = [name for name in self.devices if name not in found]
            if unknown:
                raise ConfigError(
                    f"llama.cpp finds no GPU '{unknown[0]}'",
                    hint=f"it finds: {', '.join(found) or 'none; see `mecroute doctor`'}",
                )
            handles = (ctypes.c_void_p * (len(self.devices) + 1))(
                *(found[name].handle for name in self.devices), None
            )
            params.devices = ctypes.cast(handles, ctypes.c_void_p)
            kept.append(handles)
        return kept


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A GPU that llama.cpp can use.

    Attributes:
        name: as `GpuOptions.devices` takes it.
        description: its maker's name of it.
        memory_total_bytes, memory_free_bytes: its memory, as of the call.
        handle: llama.cpp's own.
    """

    name: str
    description: str
    memory_total_bytes: int
    memory_free_bytes: int
    handle: int


def gpu_devices() -> list[GpuDevice]:
    """The GPUs that this build of llama.cpp finds.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
    """
    ggml = native.ggml()
    found = []
    for index in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(index)
        if ggml.ggml_backend_dev_type(handle) not in _GPU_TYPES:
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        found.append(
            GpuDevice(
                name=ggml.ggml_backend_dev_name(handle).decode("utf-8", "replace"),
                description=ggml.ggml_backend_dev_description(handle).decode("utf-8", "replace"),
                memory_total_bytes=total.value,
                memory_free_bytes=free.value,
                handle=handle,
            )
        )
    return found
