"""The manners all commands share: help, exit codes, streams, JSON, errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.main import get_command

from mecroute_cli import failures
from mecroute_cli.app import build_app
from mecroute_cli.main import hoist
from support.process import ROOT, child_environment, run_cli


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from _leaves(child, (*path, name))


LEAVES = dict(_leaves(get_command(build_app())))


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_explains_itself_with_examples(
    path: tuple[str, ...], mecroute: Callable[..., Any]
) -> None:
    answer = mecroute(*path, "--help")

    assert answer.code == 0
    assert f"Usage: mecroute {' '.join(path)}" in answer.out
    assert "Examples:" in answer.out
    assert f"mecroute {' '.join(path)}" in answer.out.partition("Examples:")[2]
    assert "--json" in answer.out


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_has_a_help_text(path: tuple[str, ...]) -> None:
    for parameter in LEAVES[path].params:
        assert parameter.help, f"{' '.join(path)} {parameter.name}"


def test_short_helps_are_not_cut_off(mecroute: Callable[..., Any]) -> None:
    assert "..." not in mecroute("--help").out.partition("Options:")[2]


def test_help_loads_no_heavy_module() -> None:
    heavy = (
        "rich",
        "pydantic",
        "httpx",
        "numpy",
        "llama_cpp",
        "fastapi",
        "boto3",
        "mecroute.client",
        "asyncio",
    )
    script = (
        "import sys\n"
        "from mecroute_cli.main import main\n"
        "main(['--help'])\n"
        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=child_environment(), check=True
    )

    assert done.stderr.strip() == "[]"


def test_version_is_that_of_the_package(mecroute: Callable[..., Any]) -> None:
    from mecroute_registry._version import __version__

    assert mecroute("--version").out == f"mecroute {__version__}\n"


def test_no_command_shows_the_help_and_fails_as_usage(mecroute: Callable[..., Any]) -> None:
    answer = mecroute()

    assert answer.code == 2
    assert "Usage: mecroute" in answer.err + answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "list"), "Did you mean 'models'"),
        (("models", "list", "--nope"), "--nope"),
        (("chat",), "PROMPT"),
        (("bench", "m", "--runs", "0"), "--runs"),
        (("chat", "hi", "--privacy", "secret"), "--privacy"),
    ],
)
def test_wrong_use_exits_2_and_names_the_help(
    arguments: tuple[str, ...], message: str, mecroute: Callable[..., Any]
) -> None:
    answer = mecroute(*arguments)

    assert answer.code == 2
    assert answer.out == ""
    assert message in answer.err
    assert "--help" in answer.err


def test_wrong_use_under_json_is_one_document_on_stdout(mecroute: Callable[..., Any]) -> None:
    answer = mecroute("models", "list", "--nope", "--json")

    assert answer.code == 2
    assert set(answer.json["error"]) == {"code", "message", "hint"}
    assert answer.json["error"]["code"] == "usage"


def test_expected_failure_exits_1_with_message_and_hint(mecroute: Callable[..., Any]) -> None:
    answer = mecroute("models", "show", "nothing:v1")

    assert answer.code == 1
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert "nothing:v1" in answer.err
    assert "mecroute models list" in answer.err
    assert "Traceback" not in answer.err


def test_expected_failure_under_json(mecroute: Callable[..., Any]) -> None:
    answer = mecroute("--json", "models", "show", "nothing:v1")

    assert answer.code == 1
    assert answer.json["error"]["code"] == "model_not_found"


def test_traceback_only_under_debug(mecroute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECROUTE_DEBUG", "1")

    assert "Traceback" in mecroute("models", "show", "nothing:v1").err


def test_wrong_configuration_is_named_with_its_source(
    mecroute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECROUTE_DEVICE_THREADS", "many")
    answer = mecroute("config", "show")

    assert answer.code == 2
    assert "MECROUTE_DEVICE_THREADS" in answer.err


def test_global_options_stand_anywhere() -> None:
    assert hoist(["models", "list", "--json"]) == ["--json", "models", "list"]
    assert hoist(["models", "--config", "x.toml", "list"]) == ["--config", "x.toml", "models", "list"]
    assert hoist(["models", "--config=x.toml", "list"]) == ["--config=x.toml", "models", "list"]
    assert hoist(["chat", "--", "--json"]) == ["chat", "--", "--json"]
    assert hoist(["chat", "--config"]) == ["--config", "chat"]


def test_defect_is_told_apart_from_an_expected_failure() -> None:
    failure = failures.explain(ZeroDivisionError("division by zero"))

    assert failure.code == "internal_error"
    assert failure.exit_code == 1
    assert "MECROUTE_DEBUG=1" in (failure.hint or "")


def test_interrupt_exits_130() -> None:
    assert failures.explain(KeyboardInterrupt()).exit_code == 130


def test_full_disk_is_explained() -> None:
    import errno

    failure = failures.explain(OSError(errno.ENOSPC, "No space left on device", "/x/y"))

    assert "/x/y" in failure.message
    assert "MECROUTE_REGISTRY_PATH" in (failure.hint or "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m mecroute_cli config show --json | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )

    assert done.stdout == "{"
    assert done.stderr == ""


def test_runs_from_a_shell() -> None:
    done = run_cli("config", "show", cwd=ROOT)

    assert done.returncode == 0
    assert "device.threads" in done.stdout
    assert done.stderr == ""
