"""Checks of this machine and this Python: versions, extras, compiler, llama.cpp."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from mecroute_cli.doctor.check import Check

#: What each extra brings, as in pyproject.toml; a test compares the two.
EXTRAS: dict[str, tuple[str, ...]] = {
    "device": ("llama-cpp-python", "onnxruntime", "tokenizers", "jinja2", "numpy", "psutil"),
    "server": ("fastapi", "uvicorn", "prometheus-client", "httptools", "uvloop"),
    "quantize": ("optimum", "optimum-onnx", "torch", "transformers"),
    "aws": ("boto3",),
    "hub": ("huggingface-hub",),
    "discovery": ("dnspython", "zeroconf"),
    "otel": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    "cli": ("typer", "rich"),
    "demo": ("nanio",),
}
#: Versions that must match exactly: their binary or private interfaces are used.
PINNED = {"llama-cpp-python": "0.3.36", "optimum": "2.1.0", "optimum-onnx": "0.1.0"}

_OLDEST_PYTHON = (3, 11)
# In a child process: a library built for another CPU ends the process with SIGILL on import.
_PROBE = (
    "import llama_cpp as l;"
    "print('CPU and GPU' if l.llama_supports_gpu_offload() else 'CPU', end='; ');"
    "print(l.llama_print_system_info().decode().strip(' |'))"
)
_PROBE_TIMEOUT_S = 60


def check_installed() -> Iterator[Check]:
    """Look at everything that needs no configuration."""
    yield _python()
    for extra, packages in EXTRAS.items():
        yield _extra(extra, packages)
    yield _compiler()
    yield _llama()


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return Check("python", "version", "broken", found, "mecroute needs Python 3.11 or newer")
    return Check("python", "version", "ok", f"{found} on {platform.system()} {platform.machine()}")


def _extra(extra: str, packages: tuple[str, ...]) -> Check:
    found: list[str] = []
    absent: list[str] = []
    wrong: list[str] = []
    for package in packages:
        try:
            installed = version(package)
        except PackageNotFoundError:
            absent.append(package)
            continue
        found.append(f"{package} {installed}")
        if package in PINNED and installed != PINNED[package]:
            wrong.append(f"{package} {installed} where {PINNED[package]} is needed")
    install = f"pip install 'mecroute[{extra}]'"
    if wrong:
        return Check("extras", extra, "broken", "; ".join(wrong), install)
    if absent:
        lacking = "not installed" if not found else f"without {', '.join(absent)}"
        return Check("extras", extra, "missing", lacking, install)
    return Check("extras", extra, "ok", ", ".join(found))


def _compiler() -> Check:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        fix = "only needed to build llama-cpp-python: apt install build-essential, or xcode-select --install"
        return Check("build", "C compiler", "missing", "none found", fix)
    return Check("build", "C compiler", "ok", compiler)


def _llama() -> Check:
    try:
        installed = version("llama-cpp-python")
    except PackageNotFoundError:
        return Check("build", "llama.cpp", "missing", "not installed", "pip install 'mecroute[device]'")
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("build", "llama.cpp", "broken", f"importing it took over {_PROBE_TIMEOUT_S} s", _REBUILD)
    if probe.returncode < 0:
        return Check(
            "build", "llama.cpp", "broken", f"importing it died of signal {-probe.returncode}", _REBUILD
        )
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check("build", "llama.cpp", "broken", reason, _REBUILD)
    features = re.findall(r"(\w+) = 1", probe.stdout)
    backend = probe.stdout.partition(";")[0]
    return Check("build", "llama.cpp", "ok", f"{installed} for {backend}: {' '.join(features)}")


_REBUILD = f"pip install --force-reinstall --no-cache-dir llama-cpp-python=={PINNED['llama-cpp-python']}"
