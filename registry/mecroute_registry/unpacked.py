"""Models of several files, laid out as their engine wants to find them: by name, in one folder.

Blobs are called by their digest; an ONNX model looks for its tensors and its tokenizer by name. So the files
of such a model get a second name each, in a folder of that version: a hard link where the file system has
them, else a copy. (ONNX Runtime refuses symbolic links.)
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from mecroute_registry.digest import copy_file, sha256_file
from mecroute_registry.errors import DigestMismatchError
from mecroute_registry.facts import ModelFile, ModelVersion
from mecroute_registry.layout import Layout, disk_errors

_FOLDER = "unpacked"
_UNFINISHED = ".new-"


def unpack(layout: Layout, model: ModelVersion) -> Path:
    """Have a model's files under their names.

    Args:
        layout: holds the blobs, whose digests have been verified.
        model: the model.

    Returns:
        The path of its model file; the others lie beside it.

    Raises:
        ArtifactError: the files cannot be written there.
        DigestMismatchError: a blob was changed meanwhile.
    """
    folder = _folder(layout, model.digest)
    with disk_errors("write", folder):
        if not _is_complete(layout, model, folder):
            with layout.locked():
                if not _is_complete(layout, model, folder):
                    _make(layout, model, folder)
    return folder / model.files[0].path


def discard(layout: Layout, digest: str) -> None:
    """Delete the folder of a model version, if there is one."""
    shutil.rmtree(_folder(layout, digest), ignore_errors=True)


def _folder(layout: Layout, digest: str) -> Path:
    return layout.root / _FOLDER / digest.removeprefix("sha256:")


def _is_complete(layout: Layout, model: ModelVersion, folder: Path) -> bool:
    return all(_is_good(layout, file, folder / file.path) for file in model.files)


def _is_good(layout: Layout, file: ModelFile, path: Path) -> bool:
    try:
        if path.is_symlink():
            return False
        if path.samefile(layout.blob_path(file.digest)):
            return True
        return path.stat().st_size == file.size_bytes and sha256_file(path) == file.digest
    except (FileNotFoundError, NotADirectoryError):
        return False


def _make(layout: Layout, model: ModelVersion, folder: Path) -> None:
    """Lay the files out beside the place and move them there, under the layout's lock."""
    folder.parent.mkdir(exist_ok=True)
    for left in folder.parent.glob(f"{_UNFINISHED}*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    new = folder.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}")
    try:
        for file in model.files:
            path = new / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            _place(layout.blob_path(file.digest), path, file)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _place(blob: Path, path: Path, file: ModelFile) -> None:
    try:
        path.hardlink_to(blob)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links, or with too many of them
        if copy_file(blob, path) != file.digest:
            raise DigestMismatchError(
                f"{blob} is damaged: its bytes do not match its name", hint="pull or register the model again"
            ) from None
        path.chmod(blob.stat().st_mode & 0o444)
