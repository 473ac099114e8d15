"""quantize_gguf: what it makes, and what it leaves behind when it cannot."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mecroute.engines.llama import GREEDY, GenerationRequest, LlamaEngine
from mecroute.errors import ArtifactError, InvalidModelFileError, UsageError
from mecroute_quantize import QUANTIZATIONS, parse_quantization, quantize_gguf
from mecroute_registry.gguf import read_gguf
from support.process import child_environment, wait_until_gone
from support.tiny_gguf import write_tiny_gguf


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_tiny_gguf(tmp_path / "in" / "tiny.gguf")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def _quantizer() -> psutil.Process:
    """The child process of this one that quantizes."""
    for child in psutil.Process().children():
        if "mecroute_quantize._gguf_child" in child.cmdline():
            return child
    raise AssertionError("no quantizer is running")


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "F16"])
def test_tensors_get_the_type_asked_for(source: Path, out: Path, quantization: str) -> None:
    target = out / "q.gguf"
    steps: list[float] = []
    made = quantize_gguf(source, target, quantization.lower(), threads=1, progress=steps.append)

    assert made.quantization == quantization
    assert made.tensor_types[quantization] >= 14, "two layers of seven matrices"
    assert made.tensor_types == read_gguf(target).tensor_types
    assert made.size_bytes == target.stat().st_size < made.source_bytes == source.stat().st_size
    assert steps[0] == 0.0
    assert steps[-1] == 1.0
    assert steps == sorted(steps)
    assert list(out.iterdir()) == [target]


def test_the_result_generates(source: Path, out: Path) -> None:
    said = write_tiny_gguf(source, says="XYZW")
    quantize_gguf(said, out / "q.gguf", "Q4_0", threads=1)
    with LlamaEngine(out / "q.gguf", n_ctx=64, n_threads=1) as engine:
        prompt = engine.tokenize("X")
        events = list(engine.submit(GenerationRequest(prompt, max_tokens=6, sampling=GREEDY)))
    assert "".join(event.text for event in events) == "YZWXYZ"


def test_types_that_rows_do_not_fit_are_told(source: Path, out: Path) -> None:
    # Rows of 64 and 128 do not fill the 256-blocks of a K quant.
    made = quantize_gguf(source, out / "q.gguf", "Q4_K_M", threads=1)
    assert made.fallback_tensors >= 14
    assert "Q4_K" not in made.tensor_types


@pytest.mark.slow
def test_every_name_is_accepted_by_the_quantizer(source: Path, out: Path) -> None:
    for name in QUANTIZATIONS:
        quantize_gguf(source, out / f"{name}.gguf", name, threads=1)
    assert len(list(out.iterdir())) == len(QUANTIZATIONS)


def test_names_are_read_in_any_case() -> None:
    assert parse_quantization(" q4-k-m ") == "Q4_K_M"


def test_an_unknown_name_lists_those_known(source: Path, out: Path) -> None:
    with pytest.raises(UsageError, match="'Q9_9'") as caught:
        quantize_gguf(source, out / "q.gguf", "Q9_9")
    assert caught.value.hint is not None
    assert "Q4_0" in caught.value.hint
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 3, 100, 5000, -1])
def test_a_truncated_source_is_refused(source: Path, out: Path, kept: int) -> None:
    source.write_bytes(source.read_bytes()[:kept])
    with pytest.raises(InvalidModelFileError, match="tiny.gguf"):
        quantize_gguf(source, out / "q.gguf", "Q8_0", threads=1)
    assert list(out.iterdir()) == []


def test_a_missing_source_is_named(tmp_path: Path, out: Path) -> None:
    with pytest.raises((InvalidModelFileError, ArtifactError), match="nowhere.gguf"):
        quantize_gguf(tmp_path / "nowhere.gguf", out / "q.gguf", "Q8_0")


def test_the_source_is_never_overwritten(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(UsageError, match="same file"):
        quantize_gguf(source, source, "Q8_0")
    assert source.read_bytes() == before


def test_a_missing_folder_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing"):
        quantize_gguf(source, tmp_path / "missing" / "q.gguf", "Q8_0")


def test_threads_must_be_positive(source: Path, out: Path) -> None:
    with pytest.raises(UsageError, match="threads"):
        quantize_gguf(source, out / "q.gguf", "Q8_0", threads=0)


@pytest.mark.parametrize(
    ("how", "words"), [(signal.SIGKILL, "was killed"), (signal.SIGABRT, "aborted with SIGABRT")]
)
def test_a_quantizer_that_dies_leaves_the_old_target(
    source: Path, out: Path, how: signal.Signals, words: str
) -> None:
    target = out / "q.gguf"
    target.write_bytes(b"the old one")
    with pytest.raises(ArtifactError, match=words):
        quantize_gguf(source, target, "Q8_0", progress=lambda _: _quantizer().send_signal(how))
    assert target.read_bytes() == b"the old one"
    assert list(out.iterdir()) == [target]


@pytest.mark.parametrize("at", [0.0, 0.5])
def test_a_caller_that_gives_up_ends_the_quantizer(source: Path, out: Path, at: float) -> None:
    pids: set[int] = set()

    def give_up(done: float) -> None:
        pids.update(child.pid for child in psutil.Process().children())
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_gguf(source, out / "q.gguf", "Q8_0", progress=give_up)
    assert pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert list(out.iterdir()) == []


def test_a_caller_that_is_killed_takes_the_quantizer_along(source: Path, out: Path) -> None:
    script = (
        "import os, psutil, signal, sys\n"
        "from pathlib import Path\n"
        "from mecroute_quantize import quantize_gguf\n"
        "def die(done):\n"
        "    print(psutil.Process().children()[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "quantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'Q8_0', progress=die)\n"
    )
    died = subprocess.run(
        [sys.executable, "-c", script, str(source), str(out / "q.gguf")],
        stdout=subprocess.PIPE,
        env=child_environment(),
        timeout=60,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert wait_until_gone(int(died.stdout))
    assert list(out.iterdir()) == []


@contextmanager
def _small_files_only() -> Iterator[None]:
    """Writing past 64 KiB of a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_and_leaves_nothing(source: Path, out: Path) -> None:
    with _small_files_only(), pytest.raises(ArtifactError, match="to Q8_0 failed") as caught:
        quantize_gguf(source, out / "q.gguf", "Q8_0", threads=1)
    assert caught.value.hint is not None
    assert "disk" in caught.value.hint
    assert list(out.iterdir()) == []


def test_the_current_folder_provides_no_modules(
    source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('a module from the current folder was loaded')")
    monkeypatch.chdir(tmp_path)
    quantize_gguf(source, Path(os.path.relpath(out)) / "q.gguf", "Q8_0", threads=1)
    assert (out / "q.gguf").exists()
