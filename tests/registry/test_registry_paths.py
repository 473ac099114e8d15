"""Folders, digests, and what importing the package costs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import mecroute_registry
from mecroute_registry import UsageError, cache_dir, config_dir, data_dir, sha256_file, state_dir
from mecroute_registry.digest import copy_file
from mecroute_registry.remote import open_remote
from support.process import child_environment


def test_folders_follow_xdg_at_call_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in (
        ("DATA", data_dir),
        ("CONFIG", config_dir),
        ("STATE", state_dir),
        ("CACHE", cache_dir),
    ):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
        assert folder() == tmp_path / name / "mecroute"


def test_folders_fall_back_to_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/is/ignored")
    assert data_dir() == tmp_path / ".local/share/mecroute"
    assert config_dir() == tmp_path / ".config/mecroute"


def test_digest_and_progress(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"abc" * 1_000_000)
    seen: list[tuple[int, int]] = []
    digest = sha256_file(file, lambda done, total: seen.append((done, total)))
    assert digest == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert seen[-1] == (3_000_000, 3_000_000)
    assert len(seen) == 3
    assert copy_file(file, tmp_path / "copy") == digest
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    with pytest.raises(FileExistsError):
        copy_file(file, tmp_path / "copy")


def test_every_public_name_is_there_and_sorted() -> None:
    names = mecroute_registry.__all__
    assert sorted(names) == list(names)
    assert all(hasattr(mecroute_registry, name) for name in names)


def test_importing_loads_nothing_heavy() -> None:
    script = "import sys, mecroute_registry, mecroute_registry.remote; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], env=child_environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"boto3", "botocore", "numpy", "httpx", "gguf", "llama_cpp"} & set(loaded)


@pytest.mark.parametrize("uri", ["", "models", "ftp://host/x", "s3://", "s3://UPPER/x", "s3:/bucket/x"])
def test_what_is_no_store_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError):
        open_remote(uri)
