"""Builds the C++ peers from the llama.cpp sources that llama-cpp-python vendors: the same kernels as ours.

python benchmarks/peers.py            builds into .bench/ (about 8 minutes on 2 cores), prints the paths
"""

from __future__ import annotations

import os
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


def build() -> dict[str, Path]:
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
        subprocess.run([cmake, "-S", str(source), "-B", build_folder, *_OPTIONS], check=True)
        subprocess.run(
            [cmake, "--build", build_folder, "--parallel", str(os.cpu_count()), "--target", *BINARIES],
            check=True,
        )
    return paths


if __name__ == "__main__":
    for path in build().values():
        print(path)
