"""Several processes on one registry, and processes that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from mecroute_registry import ModelFacts, Registry
from support.gguf_bytes import write_model
from support.process import child_environment

_REGISTER = """
import sys
from pathlib import Path
from mecroute_registry import ModelFacts, Registry
root, file, *versions = sys.argv[1:]
registry = Registry(Path(root))
for version in versions:
    registry.register(Path(file), ModelFacts(name="tiny", version=version, deployment_tiers=("device",)))
"""

_FOREVER = """
import sys, time
from pathlib import Path
from mecroute_registry import ModelFacts, Registry
root, file = sys.argv[1:]
def report(done, total):
    if done < total:
        print("copying", flush=True)
        time.sleep(60)
facts = ModelFacts(name="tiny", version="v1", deployment_tiers=("device",))
Registry(Path(root)).register(Path(file), facts, progress=report)
"""


def _start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_register_at_the_same_time_and_none_is_lost(registry: Registry, tmp_path: Path) -> None:
    files = [write_model(tmp_path / f"{number}.gguf", seed=number) for number in range(4)]
    # Each process registers versions of its own from its own file, and all register "same" from one file.
    same = write_model(tmp_path / "same.gguf", seed=99)
    children = [
        _start(_REGISTER, str(registry.root), str(file), *(f"p{number}-{i}" for i in range(6)))
        for number, file in enumerate(files)
    ]
    children += [_start(_REGISTER, str(registry.root), str(same), "same") for _ in range(2)]
    for child in children:
        _, stderr = child.communicate(timeout=60)
        assert child.returncode == 0, stderr
    expected = {f"p{number}-{i}" for number in range(4) for i in range(6)} | {"same"}
    models = registry.list()
    assert {model.version for model in models} == expected
    for model in models:
        registry.verify(model)


def test_a_killed_register_leaves_no_trace_in_the_registry(
    registry: Registry, tmp_path: Path, facts: ModelFacts
) -> None:
    file = write_model(tmp_path / "large.gguf", size_bytes=3 << 20)
    child = _start(_FOREVER, str(registry.root), str(file))
    assert child.stdout is not None
    assert child.stdout.readline() == "copying\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert registry.list() == []
    model = registry.register(file, facts)
    assert registry.path(model).stat().st_size == file.stat().st_size


def test_a_lock_held_by_a_killed_process_is_free(
    registry: Registry, model_file: Path, facts: ModelFacts
) -> None:
    script = """
import sys, time
from pathlib import Path
from mecroute_registry.layout import Layout
with Layout(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(600)
"""
    child = _start(script, str(registry.root))
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    child.kill()
    child.communicate(timeout=30)
    assert registry.register(model_file, facts) == registry.get("tiny")
