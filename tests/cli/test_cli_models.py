"""models, registry, push and pull against a real registry and a real S3 server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.process import run_in_terminal
from support.s3 import s3_server
from support.tiny_encoder import write_encoder
from support.tiny_gguf import write_tiny_gguf

Run = Callable[..., Any]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def registered(mecroute: Run, tiny: Path) -> str:
    answer = mecroute(
        *(
            "models",
            "register",
            tiny,
            "--name",
            "tiny",
            "--version",
            "v1",
            "--tier",
            "device",
            "--tier",
            "mec",
        ),
        *("--use-case", "tests", "--accuracy", "0.5", "--latency-ms", "12"),
    )
    assert answer.code == 0, answer.err
    return "tiny:v1"


def test_register_list_and_show(mecroute: Run, registered: str) -> None:
    table = mecroute("models", "list")
    listed = mecroute("models", "list", "--json").json["models"]
    shown = mecroute("models", "show", registered, "--json").json

    assert table.out.splitlines()[1].split()[0] == registered
    assert [model["ref"] for model in listed] == [registered]
    assert listed[0]["deployment_tiers"] == ["device", "mec"]
    assert shown["model"] == listed[0]
    assert shown["evaluations"] == shown["profiles"] == []
    assert "accuracy" in mecroute("models", "show", registered).out


def test_an_onnx_folder_is_registered_whole(mecroute: Run, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "enc", external="weights.bin")
    facts = ("--name", "enc", "--version", "v1", "--tier", "mec")
    answer = mecroute("models", "register", folder, *facts, "--json")
    assert answer.code == 0, answer.err
    model = answer.json["model"]
    assert (model["format"], model["tasks"]) == ("onnx", ["embed", "infer"])
    assert [file["path"] for file in model["companions"]] == ["weights.bin", "tokenizer.json"]
    assert "weights.bin, tokenizer.json" in mecroute("models", "show", "enc:v1").out
    verified = mecroute("models", "verify", "enc:v1")
    assert verified.code == 0
    (folder / "weights.bin").unlink()
    refused = mecroute("models", "register", folder / "model.onnx", *facts[:3], "v2", *facts[4:])
    assert (refused.code, "'weights.bin', which is not beside it" in refused.err) == (1, True)


def test_an_empty_registry_says_what_to_do(mecroute: Run) -> None:
    answer = mecroute("models", "list")

    assert answer.code == 0
    assert answer.out == ""
    assert "mecroute quantize" in answer.err
    assert mecroute("models", "list", "--json").json == {"models": []}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--name", "Upper Case", "--name"),
        ("--version", "a/b", "--version"),
        ("--accuracy", "2", "--accuracy"),
    ],
)
def test_wrong_facts_name_the_option(mecroute: Run, tiny: Path, option: str, value: str, said: str) -> None:
    options = {"--name": "tiny", "--version": "v1", "--tier": "device", option: value}
    answer = mecroute("models", "register", tiny, *(part for pair in options.items() for part in pair))

    assert answer.code == 2
    assert said in answer.err


def test_a_damaged_file_is_refused(mecroute: Run, tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes()[:-1000])
    answer = mecroute("models", "register", tiny, "--name", "t", "--version", "v", "--tier", "mec", "--json")

    assert answer.code == 1
    assert answer.json["error"]["code"] == "invalid_model_file"
    assert mecroute("models", "list", "--json").json == {"models": []}


def test_remove_asks_first(mecroute: Run, registered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    refused = mecroute("models", "remove", registered)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    nobody = mecroute("models", "remove", registered)

    assert (refused.code, nobody.code) == (1, 1)
    assert "nothing was changed" in refused.err
    assert mecroute("models", "remove", registered, "--yes").code == 0
    assert mecroute("models", "show", registered).code == 1


def test_verify_finds_a_changed_byte(mecroute: Run, registered: str) -> None:
    assert mecroute("models", "verify", registered).code == 0

    from mecroute_registry import Registry

    registry = Registry()
    path = registry.path(registry.get(registered))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    answer = mecroute("models", "verify", registered, "--json")

    assert answer.code == 1
    assert answer.json["error"]["code"] == "digest_mismatch"


def test_export_writes_the_index_older_tools_read(mecroute: Run, registered: str, tmp_path: Path) -> None:
    printed = json.loads(mecroute("registry", "export").out)
    written = mecroute("registry", "export", "--output", tmp_path / "models.json")

    assert written.code == 0
    assert json.loads((tmp_path / "models.json").read_text()) == printed
    assert printed["models"][registered]["accuracy"] == 0.5
    assert printed["models"][registered]["deployment_tiers"] == ["device", "mec"]


def test_push_without_a_store_says_how_to_name_one(mecroute: Run, registered: str) -> None:
    answer = mecroute("push", registered)

    assert answer.code == 2
    assert "--to" in answer.err


def test_push_and_pull_through_s3(
    mecroute: Run, registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path / "s3") as (endpoint, access_key, secret_key):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
        where = ("--endpoint-url", endpoint, "--region", "us-east-1")
        pushed = mecroute("push", registered, "--to", "s3://bucket/models", *where, "--json").json["pushed"]
        monkeypatch.setenv("MECROUTE_REGISTRY_PATH", str(tmp_path / "other"))
        pulled = mecroute("pull", registered, "--from", "s3://bucket/models", *where, "--json").json["pulled"]
        absent = mecroute("pull", "nothing:v1", "--from", "s3://bucket/models", *where)

    assert pulled["digest"] == pushed["digest"]
    assert mecroute("models", "verify", registered).code == 0
    assert absent.code == 1
    assert "nothing:v1" in absent.err


def test_a_terminal_gets_a_bar_and_a_table(tiny: Path) -> None:
    code, drawn = run_in_terminal(
        "models", "register", str(tiny), "--name", "tiny", "--version", "v1", "--tier", "mec"
    )
    assert code == 0
    assert "━" in drawn
    assert "100%" in drawn

    code, drawn = run_in_terminal("models", "list")
    assert code == 0
    assert "tiny:v1" in drawn
