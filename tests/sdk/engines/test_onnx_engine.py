"""The ONNX engine on tiny models: results, batching, bounds and bad files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper

from mecroute.engines.onnx import OnnxEngine
from mecroute.engines.onnx.trial import try_model
from mecroute.errors import (
    InvalidModelFileError,
    InvalidRequestError,
    OverloadedError,
    TierUnreachableError,
)
from mecroute_registry.onnx import read_onnx
from support.process import child_environment
from support.tiny_onnx import (
    FLOAT,
    INT64,
    classify,
    write_classifier,
    write_cumulative,
    write_identity,
    write_onnx,
)

Open = Callable[..., OnnxEngine]


@pytest.fixture
def open_engine() -> Iterator[Open]:
    made: list[OnnxEngine] = []

    def make(path: Path, **options: Any) -> OnnxEngine:
        made.append(OnnxEngine(path, **{"n_threads": 1, **options}))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def held(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make the engine stop in its next run until told to go on: (it has begun, let it go on)."""
    begun, go_on = threading.Event(), threading.Event()
    run = engine._model.run

    def waiting_run(*arguments: Any, **options: Any) -> dict[str, Any]:
        begun.set()
        assert go_on.wait(60)
        return run(*arguments, **options)

    monkeypatch.setattr(engine._model, "run", waiting_run)
    return begun, go_on


def test_results_and_facts(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx"))
    x = np.array([[1, 2, 3], [0, 0, 1]], np.float32)
    answer = engine.infer({"x": x})
    np.testing.assert_allclose(answer["logits"], classify(x), rtol=1e-6)
    assert answer["label"].tolist() == classify(x).argmax(1).tolist()
    assert list(engine.infer({"x": x}, ["label"])) == ["label"]
    assert engine.batches
    assert engine.providers == ("CPUExecutionProvider",)
    assert [(spec.name, spec.dtype, spec.shape) for spec in engine.inputs] == [("x", "float32", (None, 3))]
    engine.warm_up()


def test_waiting_requests_are_run_together(
    tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx"), max_batch=8, max_delay_ms=0)
    begun, go_on = held(engine, monkeypatch)
    first = engine.submit({"x": np.ones((1, 3), np.float32)})
    assert begun.wait(60)
    inputs = [np.random.default_rng(n).random((1 + n % 3, 3), np.float32) for n in range(6)]  # 12 rows
    futures = [engine.submit({"x": x}) for x in inputs]
    assert engine.stats().queued == 6
    go_on.set()
    for x, future in zip(inputs, futures, strict=True):
        np.testing.assert_allclose(future.result(60)["logits"], classify(x), rtol=1e-5)
    first.result(60)
    engine.close()
    # The first alone, then 1+2+3+1 rows (2 more would not fit into 8), then the rest.
    assert engine.stats().batches_total == 3
    assert engine.stats().rows_total == 13


def test_lanes_compute_side_by_side(
    tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx"), n_threads=2, max_delay_ms=0)
    assert engine.lanes == 2
    run, narrow = engine._model.run, []
    begun, go_on = threading.Event(), threading.Event()

    def hold_the_first(*arguments: Any, **options: Any) -> dict[str, Any]:
        narrow.append(options["narrow"])
        if len(narrow) == 1:
            begun.set()
            assert go_on.wait(60)
        return run(*arguments, **options)

    monkeypatch.setattr(engine._model, "run", hold_the_first)
    first = engine.submit({"x": np.ones((1, 3), np.float32)})
    assert begun.wait(60)
    inputs = [np.random.default_rng(n).random((1 + n % 3, 3), np.float32) for n in range(6)]
    for x in inputs:  # while the first is being computed, and each in turn, with nothing else waiting
        np.testing.assert_allclose(engine.infer({"x": x})["logits"], classify(x), rtol=1e-5)
    assert not first.done()
    go_on.set()
    np.testing.assert_allclose(first.result(60)["logits"], classify(np.ones((1, 3))), rtol=1e-5)
    # The first had the engine to itself, and with it all threads.
    assert narrow == [False] + [True] * 6


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_are_bounded(tmp_path: Path, open_engine: Open, n_threads: int) -> None:
    open_engine(write_classifier(tmp_path / "first.onnx"))  # what onnxruntime starts once for the process
    before = psutil.Process().num_threads()
    engine = open_engine(write_classifier(tmp_path / "c.onnx"), n_threads=n_threads)
    futures = [engine.submit({"x": np.ones((1, 3), np.float32)}) for _ in range(50)]
    for future in futures:
        future.result(60)
    # A thread for each batch that is computed at a time, and those that share a run beside the first.
    assert psutil.Process().num_threads() - before <= engine.lanes + n_threads - 1
    engine.close()
    deadline = time.monotonic() + 10  # a joined thread may be counted for a moment longer
    while psutil.Process().num_threads() - before > n_threads - 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lone_request_does_not_wait_for_ever(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx"), max_delay_ms=50)
    assert engine.submit({"x": np.ones((1, 3), np.float32)}).result(60)["label"].shape == (1,)


def test_only_what_fits_together_is_joined(
    tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(write_identity(tmp_path / "i.onnx", FLOAT, ["batch", "width"]))
    begun, go_on = held(engine, monkeypatch)
    engine.submit({"x": np.zeros((1, 1), np.float32)})
    assert begun.wait(60)
    inputs = [np.full((1, 2 + n % 2), n, np.float32) for n in range(6)]
    futures = [engine.submit({"x": x}) for x in inputs]
    go_on.set()
    for x, future in zip(inputs, futures, strict=True):
        np.testing.assert_array_equal(future.result(60)["y"], x)
    engine.close()
    assert engine.stats().batches_total == 3


def test_models_whose_rows_depend_on_each_other_are_run_one_by_one(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(write_cumulative(tmp_path / "s.onnx"))
    assert not engine.batches
    futures = [engine.submit({"x": np.ones(4, np.float32)}) for _ in range(4)]
    assert all(future.result(60)["y"].tolist() == [1, 2, 3, 4] for future in futures)


def test_a_softmax_over_the_rows_is_noticed(tmp_path: Path, open_engine: Open) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    path = write_onnx(tmp_path / "s.onnx", [node], [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])])
    assert not open_engine(path).batches


def test_a_fixed_first_axis_is_run_one_by_one(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx", rows=1))
    assert not engine.batches
    x = np.ones((1, 3), np.float32)
    futures = [engine.submit({"x": x}) for _ in range(3)]
    for future in futures:
        np.testing.assert_allclose(future.result(60)["logits"], classify(x))
    with pytest.raises(InvalidRequestError, match=r"shape \[2, 3\], not \[1, 3\]"):
        engine.infer({"x": np.ones((2, 3), np.float32)})


def test_one_bad_request_does_not_fail_the_others(
    tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_onnx(
        tmp_path / "lookup.onnx",
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", INT64, ["batch"])],
        [("y", FLOAT, ["batch"])],
        {"table": np.array([10, 11, 12, 13], np.float32)},
    )
    engine = open_engine(path)
    assert engine.batches
    begun, go_on = held(engine, monkeypatch)
    futures = [engine.submit({"x": np.array([n])}) for n in (0, 1, 99, 3)]
    assert begun.wait(60)
    go_on.set()
    assert [futures[n].result(60)["y"].tolist() for n in (0, 1, 3)] == [[10], [11], [13]]
    with pytest.raises(InvalidRequestError, match="lookup could not compute"):
        futures[2].result(60)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.ones((1, 3), np.float32), "z": np.ones(1)}, "no input 'z'"),
        ({"x": np.ones((1, 3))}, "is float64, not float32"),
        ({"x": np.ones((1, 4), np.float32)}, r"shape \[1, 4\], not \[any, 3\]"),
        ({"x": np.ones(3, np.float32)}, r"shape \[3\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    tmp_path: Path, open_engine: Open, inputs: dict[str, Any], says: str
) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx"))
    with pytest.raises(InvalidRequestError, match=says):
        engine.infer(inputs)
    with pytest.raises(InvalidRequestError, match="no output 'q'"):
        engine.infer({"x": np.ones((1, 3), np.float32)}, ["q"])


def test_no_rows(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx"))
    assert engine.infer({"x": np.ones((0, 3), np.float32)}, ["logits"])["logits"].shape == (0, 2)


def test_text(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(write_identity(tmp_path / "t.onnx", TensorProto.STRING, ["batch"]))
    texts = np.array(["ein", "Füllhörnchen", ""], object)
    assert engine.infer({"x": texts})["y"].tolist() == texts.tolist()


def test_the_queue_is_bounded(tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx", rows=1), max_queue=2)
    begun, go_on = held(engine, monkeypatch)
    x = {"x": np.ones((1, 3), np.float32)}
    futures = [engine.submit(x)]
    assert begun.wait(60)
    futures += [engine.submit(x), engine.submit(x)]
    with pytest.raises(OverloadedError) as caught:
        engine.submit(x)
    assert caught.value.retry_after_s > 0
    assert engine.stats().retry_after_s > 0
    assert futures[1].cancel()
    go_on.set()
    assert futures[2].result(60)["label"].shape == (1,)
    engine.close()
    assert engine.stats().requests_total == 2


def test_closing_fails_what_waits(tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(write_classifier(tmp_path / "c.onnx", rows=1))
    begun, go_on = held(engine, monkeypatch)
    x = {"x": np.ones((1, 3), np.float32)}
    running = engine.submit(x)
    assert begun.wait(60)
    waiting = engine.submit(x)
    threading.Timer(0.1, go_on.set).start()
    engine.close()
    assert running.result(60)["label"].shape == (1,)
    with pytest.raises(TierUnreachableError):
        waiting.result(60)
    with pytest.raises(TierUnreachableError):
        engine.submit(x)
    engine.close()


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    whole = write_classifier(tmp_path / "c.onnx").read_bytes()
    bad = tmp_path / "bad.onnx"
    for content in (b"", b"GGUF\x03\x00", whole[: len(whole) // 2], b"\x08\x08" + whole[:40]):
        bad.write_bytes(content)
        with pytest.raises(InvalidModelFileError):
            OnnxEngine(bad)


def test_a_cyclic_graph_is_refused(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "cycle.onnx",
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["x", "a"], ["b"])],
        [("x", FLOAT, [1])],
        [("b", FLOAT, [1])],
    )
    with pytest.raises(InvalidModelFileError, match="cannot be used"):
        OnnxEngine(path)


def test_a_model_that_wants_all_memory_is_refused(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "bomb.onnx",
        [
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        [("x", FLOAT, [1])],
        [("y", FLOAT, [1])],
        {"shape": np.array([1 << 36], np.int64)},
    )
    with pytest.raises(InvalidModelFileError):
        OnnxEngine(path)


def test_a_model_that_takes_too_long_to_try_is_refused(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "c.onnx")
    with pytest.raises(InvalidModelFileError, match="within"):
        try_model(path, read_onnx(path), timeout_s=0.001)


def test_telemetry_is_off_before_onnxruntime_is_imported(tmp_path: Path) -> None:
    # An import hook of the child sees the environment at the moment of the import.
    (tmp_path / "onnxruntime.py").write_text(
        "import os\n"
        "print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "def set_default_logger_severity(level): pass\n"
        "def get_available_providers(): return ['CPUExecutionProvider', 'CUDAExecutionProvider', 'Other']\n"
    )
    environment = child_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    environment["ORT_DISABLE_TELEMETRY"] = "0"
    program = "from mecroute.engines.onnx import choose_providers; print(choose_providers())"
    out = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines() == ["1", "['CUDAExecutionProvider', 'CPUExecutionProvider']"]
