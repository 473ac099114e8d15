"""Brings the peers to this machine, into .bench/: built, or installed into environments of their own.

The C++ ones are built from the llama.cpp sources that llama-cpp-python vendors: the same kernels as ours.

    python benchmarks/peers.py            builds and installs them all (about 8 minutes on 2 cores)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".bench"
BINARIES = ("llama-server",)
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)


def _compiler_options() -> tuple[str, ...]:
    """Those that keep the compiler from breaking AMX code, where it does; see the Makefile."""
    compiler = shutil.which("c++")
    if compiler is None:
        return ()
    asked = subprocess.run([compiler, "-print-file-name=include"], capture_output=True, text=True, check=True)
    header = Path(asked.stdout.strip()) / "amxtileintrin.h"
    if not header.exists() or not re.search(r"ldtilecfg.*void \*\*", header.read_text()):
        return ()
    return "-DCMAKE_C_FLAGS=-mno-amx-int8", "-DCMAKE_CXX_FLAGS=-mno-amx-int8"


def python_server() -> Path:
    """The interpreter that runs llama-cpp-python's packaged server, of the version that we run."""
    wanted = version("llama-cpp-python")
    return environment(f"llama-cpp-python-{wanted}", f"llama-cpp-python[server]=={wanted}")


def litserve() -> Path:
    """The interpreter that runs LitServe, on the onnxruntime that we run."""
    pinned = [f"{name}=={version(name)}" for name in ("onnxruntime", "tokenizers", "numpy")]
    return environment("litserve", "litserve>=0.2.17", *pinned)


def environment(name: str, *requirements: str) -> Path:
    """A virtual environment with these requirements; its interpreter.

    pip finds the wheel of llama-cpp-python that it has compiled before in its cache.
    """
    folder = FOLDER / name
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        done.write_text("\n".join(requirements))
    return python


def binaries() -> dict[str, Path]:
    """Build what is not there yet.

    Returns:
        The path of each binary, by name.
    """
    wanted = version("llama-cpp-python")
    target = FOLDER / f"llama.cpp-{wanted}"
    paths = {name: target / "bin" / name for name in BINARIES}
    if all(path.exists() for path in paths.values()):
        return paths
    cmake = shutil.which("cmake") or sys.exit("cmake is missing: pip install cmake, or your system's package")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        requirement = f"llama-cpp-python=={wanted}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary]
        subprocess.run([*pip, "--no-binary", "llama-cpp-python", requirement], check=True)
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        (source,) = Path(temporary).glob("*/vendor/llama.cpp")
        build_folder = str(target)
        options = (*_OPTIONS, *_compiler_options())
        subprocess.run([cmake, "-S", str(source), "-B", build_folder, *options], check=True)
        subprocess.run(
            [cmake, "--build", build_folder, "--parallel", str(os.cpu_count()), "--target", *BINARIES],
            check=True,
        )
    return paths


if __name__ == "__main__":
    for path in (*binaries().values(), python_server(), litserve()):
        print(path)
