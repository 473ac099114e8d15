"""The options for GPUs, as far as a machine without one can tell."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from mecroute.engines.llama import native
from mecroute.engines.llama.engine import LlamaEngine
from mecroute.engines.llama.gpu import GpuOptions, gpu_devices
from mecroute.errors import ConfigError
from support.tiny_gguf import write_tiny_gguf


@pytest.mark.parametrize(
    "wrong",
    [
        {"main_gpu": -1},
        {"split_mode": "diagonal"},
        {"tensor_split": (0.5, -1)},
        {"tensor_split": (float("nan"),)},
        {"tensor_split": (0.0, 0.0)},
    ],
)
def test_impossible_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GpuOptions(**wrong)


def test_they_reach_llama_cpp() -> None:
    params = native.llama().llama_model_default_params()
    kept = GpuOptions(main_gpu=3, split_mode="row", tensor_split=(3, 1)).apply(params)
    assert (params.main_gpu, params.split_mode) == (3, 2)
    assert params.tensor_split[:2] == [3.0, 1.0]
    assert isinstance(kept[0], ctypes.Array)


def test_a_gpu_that_is_not_there_is_named() -> None:
    params = native.llama().llama_model_default_params()
    there = [device.name for device in gpu_devices()]
    with pytest.raises(ConfigError, match="no GPU 'CUDA99'") as caught:
        GpuOptions(devices=("CUDA99",)).apply(params)
    assert all(name in str(caught.value.hint) for name in there)
    with pytest.raises(ConfigError, match="shares"):
        GpuOptions(tensor_split=(1.0,) * 4096).apply(params)


def test_a_model_runs_with_them_on_whatever_there_is(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", says="HELO")
    options = GpuOptions(split_mode="layer", tensor_split=(1.0,))
    with LlamaEngine(path, n_ctx=128, n_threads=1, n_gpu_layers=-1, gpu=options) as engine:
        engine.warm_up()
        assert engine.stats().tokens_total > 0
    with pytest.raises(ConfigError):
        LlamaEngine(path, n_ctx=128, gpu=GpuOptions(devices=("nothing",)))
