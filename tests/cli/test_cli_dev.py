"""dev and demo as a user runs them: real processes on loopback, and nothing left behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.process import RunningCli, started_cli, wait_until_gone
from support.tiny_gguf import write_tiny_gguf

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that loads in milliseconds, with room for the longest prompt here."""
    return write_tiny_gguf(tmp_path_factory.mktemp("source") / "tiny.gguf", context_length=4096)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for one stack after the other, as for a user: the variants are made once."""
    return tmp_path_factory.mktemp("stack") / "dev"


def _document(running: RunningCli) -> Any:
    """The JSON document that a command prints while it goes on running."""
    assert running.process.stdout is not None
    text = ""
    for line in running.process.stdout:
        text += line
        if line == "}\n":
            return json.loads(text)
    raise AssertionError(running.wait())


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


@pytest.fixture
def dev(source: Path, workdir: Path) -> Iterator[tuple[RunningCli, dict[str, Any]]]:
    with started_cli(
        "dev", "--port", "0", "--source", str(source), "--workdir", str(workdir), "--json"
    ) as running:
        yield running, _document(running)["ready"]


def _exports(ready: dict[str, Any]) -> dict[str, str]:
    lines = Path(ready["environment"]).read_text().splitlines()
    pairs = (line.removeprefix("export ").partition("=") for line in lines)
    return {name: value.strip("'") for name, _, value in pairs}


def test_dev_serves_one_endpoint_and_other_commands_can_use_its_stack(
    dev: tuple[RunningCli, dict[str, Any]], mecroute: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ready = dev
    answer = httpx.post(
        f"{ready['url']}/chat/completions",
        json={"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8},
        timeout=60,
        trust_env=False,
    )
    for name, value in _exports(ready).items():
        monkeypatch.setenv(name, value)
    nodes = mecroute("nodes", "list", "--json").json["nodes"]
    listed = mecroute("models", "list", "--json").json["models"]
    checks = {check["name"]: check for check in mecroute("doctor", "--json").json["checks"]}
    decided = mecroute("route", "Hi", "--privacy", "device", "--json").json
    explained = mecroute("route", "Hi", "--explain", "--policy", "latency-first")
    chat = mecroute("chat", "Hi", "--privacy", "edge", "--max-tokens", "8", "--temperature", "0")
    benched = mecroute(
        *("bench", "tiny:q8_0", "--node", "mec-1", "--runs", "2", "--prompt-tokens", "16"),
        *("--output-tokens", "4", "--json"),
    )
    missing = mecroute("deploy", "nothing:v1", "--to", "mec-1", "--timeout", "20")

    assert answer.status_code == 200
    assert answer.json()["mecroute"]["tier"] in ("device", "mec", "cloud")
    assert [(node["node"], node["state"]) for node in nodes] == [("mec-1", "ready")]
    assert sorted(model["ref"] for model in listed) == sorted(ready["models"])
    assert {checks[name]["status"] for name in ("mec-1", "s3://mecroute/models", "stand-in", "models")} == {
        "ok"
    }
    assert decided["target"].startswith("device/tiny:")
    assert "policy latency-first: score = 0.70 latency" in explained.out
    assert "prefill" in explained.out
    assert "speed from" in explained.out
    assert "chosen " in explained.out
    assert chat.code == 0
    assert chat.err.startswith(("[device/", "[mec/"))
    assert benched.code == 0, benched.err
    assert benched.json["profile"]["tier"] == "mec"
    assert benched.json["profile"]["peak_memory_bytes"] > 1_000_000
    assert missing.code == 1
    assert "nothing:v1" in missing.err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_dev_leaves_no_process_behind(dev: tuple[RunningCli, dict[str, Any]], how: signal.Signals) -> None:
    running, ready = dev
    children = _children(running.process.pid)
    assert len(children) >= 3

    running.process.send_signal(how)
    code, _, err = running.wait()

    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how], err
    assert all(wait_until_gone(child) for child in children)
    with pytest.raises(httpx.ConnectError):
        httpx.get(ready["node"], trust_env=False)


def test_dev_on_a_taken_port_starts_nothing(source: Path, tmp_path: Path, mecroute: Run) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = mecroute("dev", "--port", port, "--source", source, "--workdir", tmp_path / "dev")

    assert answer.code == 2
    assert str(port) in answer.err
    assert not (tmp_path / "dev").exists()


def test_keys_of_a_stack_are_readable_by_the_owner_alone(dev: tuple[RunningCli, dict[str, Any]]) -> None:
    _, ready = dev
    for name in ("config", "environment"):
        assert Path(ready[name]).stat().st_mode & 0o077 == 0
