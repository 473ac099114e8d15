from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from mecroute.engines.llama import native, own_memory
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.own_memory import Span, added

needs_huge_pages = pytest.mark.skipif(not own_memory.available(), reason="the system makes no huge pages")


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], [(1, 5)], [(1, 5)]),
        ([(1, 5)], [(1, 5)], []),
        ([(1, 5)], [(1, 9)], [(5, 9)]),
        ([(3, 5)], [(1, 9)], [(1, 3), (5, 9)]),
        ([(2, 3), (5, 6)], [(1, 9)], [(1, 2), (3, 5), (6, 9)]),
        ([(1, 5), (7, 9)], [(2, 4), (7, 8), (20, 30)], [(20, 30)]),
        ([(1, 5)], [(4, 7)], [(5, 7)]),
    ],
)
def test_what_is_new_is_what_was_not_there(before: list[Span], now: list[Span], new: list[Span]) -> None:
    assert added(before, now) == new


@needs_huge_pages
def test_memory_that_llama_cpp_takes_for_a_model_is_to_be_in_huge_pages() -> None:
    lib = native.llama()
    params = lib.llama_model_default_params()
    on_progress = own_memory.prepare(lib, params, 1)
    assert callable(on_progress)
    with _memory() as weights:
        assert on_progress(0.0, None)
        assert _is_advised(weights)
        with _memory() as later:  # somebody else's, while the file is being read
            assert on_progress(0.5, None)
            assert not _is_advised(later)


@needs_huge_pages
@pytest.mark.parametrize("fits", [True, False])
def test_a_file_is_mapped_where_memory_is_short(
    fits: bool, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = random_model.stat().st_size
    monkeypatch.setattr(own_memory, "available_memory_bytes", lambda: 2 * size if fits else 2 * size - 1)
    model = LlamaModel(random_model)
    try:
        assert (str(random_model) in Path("/proc/self/maps").read_text()) is not fits
    finally:
        model.close()


def test_nothing_is_changed_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_memory, "available", lambda: False)
    lib = native.llama()
    params = lib.llama_model_default_params()
    assert own_memory.prepare(lib, params, 1) is None
    assert params.load_mode == lib.LLAMA_LOAD_MODE_AUTO
    assert not params.progress_callback


def _memory() -> mmap.mmap:
    return mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _is_advised(memory: mmap.mmap) -> bool:
    """Whether the kernel was asked for huge pages in the middle of it."""
    first = ctypes.c_char.from_buffer(memory)
    middle, inside = ctypes.addressof(first) + len(memory) // 2, False
    del first
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(edge, 16) for edge in head.split("-"))
            inside = start <= middle < end
        elif inside and head == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("not mapped")
