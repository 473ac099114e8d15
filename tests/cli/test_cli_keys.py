"""`mecroute keys`: made, listed and revoked, the secret shown once."""

from __future__ import annotations

import json
from pathlib import Path

from mecroute_server.keys import KeyFile, KeyScope, digest_of
from support.process import run_cli


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    made = run_cli(
        "keys", "create", "--name", "app", "--scope", "infer", "--scope", "deploy",
        "--requests-per-minute", "60", "--file", file, "--json",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)["key"]
    assert f"--keys-file {file}" in made.stderr
    [kept] = KeyFile(Path(file)).read()
    assert kept.scopes == {KeyScope.INFER, KeyScope.DEPLOY}
    assert kept.digest == digest_of(key["secret"])
    assert kept.requests_per_minute == 60

    listed = run_cli("keys", "list", "--file", file)
    assert key["id"] in listed.stdout
    assert "deploy, infer" in listed.stdout
    assert key["secret"] not in listed.stdout

    assert run_cli("keys", "revoke", key["id"], "--file", file).returncode == 0
    again = run_cli("keys", "revoke", key["id"], "--file", file)
    assert again.returncode == 2
    assert "mecroute keys list" in again.stderr
    assert json.loads(run_cli("keys", "list", "--file", file, "--json").stdout) == {"keys": []}


def test_an_unknown_scope_is_a_usage_error(tmp_path: Path) -> None:
    refused = run_cli("keys", "create", "--name", "app", "--scope", "all", "--file", str(tmp_path / "k.json"))
    assert refused.returncode == 2
    assert "infer, deploy or admin" in refused.stderr


def test_the_configured_file_is_the_default(empty_dir: Path) -> None:
    (empty_dir / "mecroute.toml").write_text(f'[server]\nkeys_file = "{empty_dir}/mine.json"\n')
    made = run_cli("keys", "create", "--name", "app", cwd=empty_dir)
    assert made.returncode == 0, made.stderr
    assert "--keys-file" not in made.stderr
    assert [key.name for key in KeyFile(empty_dir / "mine.json").read()] == ["app"]
