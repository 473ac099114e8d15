"""doctor: what is declared and what it looks at are the same, and broken means broken."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mecroute_cli.doctor import installed
from mecroute_cli.stack.processes import free_port
from support.process import ROOT
from support.tiny_encoder import write_text_classifier


def _declared() -> dict[str, list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras: dict[str, list[str]] = tomllib.load(file)["project"]["optional-dependencies"]
    return extras


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def test_extras_are_those_of_pyproject() -> None:
    declared = {
        extra: tuple(_name(item) for item in requirements if _name(item) != "mecroute")
        for extra, requirements in _declared().items()
        if extra not in ("all", "dev")
    }

    assert declared == installed.EXTRAS


def test_pins_are_those_of_pyproject() -> None:
    pinned = {
        _name(item): item.partition("==")[2]
        for extra in installed.EXTRAS
        for item in _declared()[extra]
        if "==" in item
    }
    del pinned["nanio"]  # a program of its own, used over S3's protocol only

    assert pinned == installed.PINNED


def _by_name(answer: Any) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in answer.json["checks"]}


def test_nothing_optional_missing_is_a_failure(mecroute: Callable[..., Any]) -> None:
    answer = mecroute("doctor", "--json")
    checks = _by_name(answer)

    assert answer.code == 0
    assert answer.json["broken"] == 0
    assert checks["llama.cpp"]["status"] == "ok"
    assert checks["models"]["status"] == "missing"
    assert all(check["fix"] for check in checks.values() if check["status"] != "ok")


def test_a_configured_node_that_is_down_is_broken(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "mecroute.toml"
    config.write_text(f'[[nodes]]\nname = "mec-1"\nurl = "http://127.0.0.1:{port}"\n')
    answer = mecroute("doctor", "--json", "--config", config)

    assert answer.code == 1
    assert _by_name(answer)["mec-1"]["status"] == "broken"
    assert "connection refused" in _by_name(answer)["mec-1"]["detail"]


def test_a_cloud_without_its_key_is_broken(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "mecroute.toml"
    config.write_text(
        f'[[cloud]]\nname = "c"\nbase_url = "http://127.0.0.1:{free_port()}/v1"\n'
        'model = "m"\napi_key_env = "NO_KEY"\n'
    )
    answer = mecroute("doctor", "--json", "--config", config)

    assert answer.code == 1
    assert "NO_KEY" in _by_name(answer)["c"]["detail"]


def test_a_wrong_setting_is_a_check_and_not_the_end(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "mecroute.toml"
    config.write_text("[device]\nthreads = 0\n")
    answer = mecroute("doctor", "--config", config)

    assert answer.code == 1
    assert "device.threads" in answer.out
    assert "python" in answer.out


@pytest.mark.parametrize(
    ("script", "said"),
    [("import os; os.kill(os.getpid(), 4)", "signal 4"), ("raise OSError('no libgomp')", "no libgomp")],
)
def test_a_llama_build_that_cannot_be_imported_is_broken(
    script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "_PROBE", script)
    check = next(check for check in installed.check_installed() if check.name == "llama.cpp")

    assert check.status == "broken"
    assert said in check.detail
    assert "--force-reinstall" in check.fix


def test_a_text_model_is_looked_at(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text(f'[[device.text_models]]\nname = "moods"\npath = "{tmp_path / "moods"}"\n')
    broken = _by_name(mecroute("doctor", "--config", config, "--json"))["moods"]
    assert broken["status"] == "broken"
    assert str(tmp_path / "moods") in broken["detail"]
    write_text_classifier(tmp_path / "moods", ("calm", "angry"))
    sound = _by_name(mecroute("doctor", "--config", config, "--json"))["moods"]
    assert (sound["status"], sound["detail"]) == ("ok", "classify among 2 classes")


def test_a_keys_file_that_lets_nobody_in_is_told(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    config, keys = tmp_path / "own.toml", tmp_path / "keys.json"
    config.write_text(f'[server]\nkeys_file = "{keys}"\n')

    def look() -> dict[str, str]:
        return _by_name(mecroute("doctor", "--config", config, "--json"))["API keys"]

    empty = look()
    assert empty["status"] == "missing"
    assert "admit nobody" in empty["detail"]
    assert str(keys) in empty["fix"]
    mecroute("keys", "create", "--name", "app", "--file", keys)
    assert look()["status"] == "ok"
    keys.chmod(0o644)
    damaged = look()
    assert (damaged["status"], damaged["fix"]) == ("broken", f"chmod 600 {keys}")
