"""Memory: what a model is expected to take, and who has to leave for whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mecroute.engines.llama.speculation import Speculation
from mecroute_registry.gguf import read_gguf
from mecroute_server.budget import HEAT_HALF_LIFE_S, Candidate, Heat, MemoryBudget
from mecroute_server.footprint import Footprint, estimate_gguf, estimate_onnx, measuring
from mecroute_server.settings import ServerSettings
from support.process import child_environment
from support.tiny_bert_gguf import WORDS, write_tiny_bert_gguf
from support.tiny_encoder import write_encoder
from support.tiny_gguf import HEAD_DIM, KV_HEADS, LAYERS, write_tiny_gguf


def test_demand_counts_half_after_the_half_life() -> None:
    heat = Heat()
    for at in (0.0, 0.0, HEAT_HALF_LIFE_S):
        heat.add(at)
    assert heat.value(HEAT_HALF_LIFE_S) == pytest.approx(2)
    assert heat.value(3 * HEAT_HALF_LIFE_S) == pytest.approx(0.5)
    # A clock that jumps back must not make demand of nothing.
    assert heat.value(0) == pytest.approx(2)


def test_what_is_cheap_to_bring_back_and_large_leaves_first() -> None:
    budget = MemoryBudget(100)
    sizes = {"large": 40, "slow": 40, "small": 20}
    for key, size in sizes.items():
        budget.hold(key, Footprint(size))
    worth = {
        key: budget.worth(heat=1, load_s=10 if key == "slow" else 1, footprint=Footprint(size))
        for key, size in sizes.items()
    }
    candidates = [Candidate(key, worth[key]) for key in sizes]
    assert worth["large"] < worth["small"] < worth["slow"]
    assert [one.key for one in budget.victims(Footprint(10), candidates) or ()] == ["large"]
    assert {one.key for one in budget.victims(Footprint(90), candidates) or ()} == set(sizes)
    assert budget.victims(Footprint(101), candidates) is None
    # The small one comes first in the order, but the slow one, which has to go as well, is enough.
    two = [Candidate("small", 1), Candidate("slow", 2)]
    assert [one.key for one in budget.victims(Footprint(40), two) or ()] == ["slow"]


def test_an_idle_model_leaves_before_a_busy_one() -> None:
    budget = MemoryBudget(100)
    budget.hold("idle", Footprint(50))
    budget.hold("busy", Footprint(50))
    chosen = budget.victims(Footprint(50), [Candidate("busy", 1, busy=True), Candidate("idle", 9)])
    assert chosen is not None
    assert [one.key for one in chosen] == ["idle"]


def test_what_was_hot_once_grows_old() -> None:
    budget = MemoryBudget(100)
    once_hot = budget.worth(heat=50, load_s=1, footprint=Footprint(10))
    cold = budget.worth(heat=1, load_s=1, footprint=Footprint(10))
    assert cold < once_hot
    for _ in range(60):  # each is asked once, and evicted in favour of the next
        budget.evicted(budget.worth(heat=1, load_s=1, footprint=Footprint(10)))
    assert budget.worth(heat=1, load_s=1, footprint=Footprint(10)) > once_hot


def test_gpu_memory_is_counted_apart() -> None:
    budget = MemoryBudget(100, 50)
    budget.hold("a", Footprint(10, 40))
    assert budget.fits(Footprint(90))
    assert not budget.fits(Footprint(10, 20))
    assert budget.fits(Footprint(10, 20), without=["a"])
    budget.release("a")
    assert budget.fits(Footprint(100, 50))
    with budget.reserved(Footprint(60)):
        assert not budget.fits(Footprint(50))
    assert budget.resident == Footprint(0)


def test_the_estimate_counts_weights_and_cache(tiny: Path) -> None:
    settings = ServerSettings(context=4096, parallel=4)
    per_token = LAYERS * KV_HEADS * HEAD_DIM * 2 * 2
    assert read_gguf(tiny).kv_bytes_per_token == per_token
    estimate = estimate_gguf(tiny, settings, has_gpu=False)
    # Trained for 256 tokens: that is the context it gets.
    assert estimate.certain_bytes == tiny.stat().st_size + 256 * 4 * per_token
    assert estimate.ram_bytes > estimate.certain_bytes
    assert estimate.vram_bytes == 0


def test_an_encoder_has_no_cache(tmp_path: Path) -> None:
    path = write_tiny_bert_gguf(tmp_path / "bert.gguf", "MEAN")
    facts = read_gguf(path)
    assert (facts.is_causal, facts.vocabulary_size) == (False, 5 + len(WORDS))
    few, many = (estimate_gguf(path, ServerSettings(parallel=n), has_gpu=False) for n in (1, 64))
    assert few == many
    assert few.certain_bytes == path.stat().st_size


def test_layers_on_a_gpu_count_there(tiny: Path) -> None:
    here = estimate_gguf(tiny, ServerSettings(), has_gpu=False)
    half = estimate_gguf(tiny, ServerSettings(gpu_layers=1), has_gpu=True)
    whole = estimate_gguf(tiny, ServerSettings(gpu_layers=-1), has_gpu=True)
    assert whole.certain_bytes == 0
    assert whole.vram_bytes > here.certain_bytes
    assert half.certain_bytes == pytest.approx(here.certain_bytes * (1 - 1 / (LAYERS + 1)), abs=1)
    assert 0 < half.vram_bytes < whole.vram_bytes


def test_an_onnx_model_counts_with_its_second_file(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "e", external="weights.bin")
    (folder / "model.onnx.bak").write_bytes(bytes(5000))  # nothing of the model's
    sizes = [(folder / name).stat().st_size for name in ("model.onnx", "weights.bin")]
    need = estimate_onnx(folder / "model.onnx")
    assert need.certain_bytes == need.file_bytes == sum(sizes)


def test_what_is_measured_never_falls_below_what_is_certain() -> None:
    block, grown = measuring(lambda: bytearray(b"x" * (64 << 20)))
    assert len(block) <= grown < 2 * len(block)
    estimate = Footprint(100, 7, certain_bytes=60)
    assert estimate.measured(20) == Footprint(60, 7, 60)
    assert estimate.measured(300) == Footprint(300, 7, 60)


#: Loads a model as a node does, and prints the bytes of the buffers that llama.cpp has beside its weights.
BUFFERS = r"""
import ctypes, re, sys
import subprocess
import sys
from pathlib import Path
import llama_cpp
from mecroute.engines.llama import LlamaEngine, native

said = []
native.llama()
keep = llama_cpp.llama_log_callback(lambda level, text, _: said.append(text.decode(errors="replace")))
llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
path, (parallel, context), speculation = Path(sys.argv[1]), map(int, sys.argv[2:4]), sys.argv[4]
engine = LlamaEngine(path, n_ctx=context, n_parallel=parallel, n_threads=1, speculation=speculation)
sizes = re.findall(r"(?:KV|compute|output) +buffer size = +([\d.]+) MiB", "".join(said))
print(round(sum(map(float, sizes)) * (1 << 20)))
engine.close()
"""


@pytest.mark.parametrize("speculation", ["off", "prompt-lookup"])
@pytest.mark.parametrize("parallel", [1, 8])
def test_the_estimate_is_what_llama_cpp_takes(
    tmp_path: Path, speculation: Speculation, parallel: int
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=8192)
    settings = ServerSettings(context=8192, parallel=parallel, speculation=speculation)
    estimate = estimate_gguf(path, settings, has_gpu=False)
    ran = subprocess.run(
        [sys.executable, "-c", BUFFERS, path, str(parallel), "8192", speculation],
        capture_output=True, text=True, check=True, env=child_environment(),
    )  # fmt: skip
    slack = 8 << 20
    assert estimate.ram_bytes - slack - path.stat().st_size == pytest.approx(int(ran.stdout), rel=0.1)
