"""quantize, bench and serve with a real, tiny model."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.process import started_cli
from support.tiny_gguf import write_tiny_gguf

Run = Callable[..., Any]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf", context_length=2048)


def test_quantize_makes_one_variant_per_tier_and_compares_with_the_source(mecroute: Run, tiny: Path) -> None:
    first = mecroute("quantize", tiny, "--name", "tiny", "--json").json["variants"]
    again = mecroute("quantize", tiny, "--name", "tiny")
    listed = mecroute("models", "list", "--json").json["models"]

    assert [(row["tier"], row["state"]) for row in first] == [(None, ""), ("device", "new"), ("mec", "new")]
    assert all(row["perplexity"] > 1 and row["decode_tokens_per_s"] > 0 for row in first)
    assert again.code == 0
    assert again.out.count("made earlier") == 2
    assert [model["deployment_tiers"] for model in listed] == [["device"], ["mec"]]
    assert all(model["parent_digest"] == first[0]["digest"] for model in listed)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("-q", "Q8_0"), 2, "exactly one --tier"),
        (("-q", "Q99", "--tier", "mec"), 2, "Q99"),
        (("--tier", "cloud"), 2, "no variant is made for the cloud"),
    ],
)
def test_quantize_explains_what_cannot_be(
    mecroute: Run, tiny: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    answer = mecroute("quantize", tiny, "--name", "tiny", *options)

    assert answer.code == code
    assert said in answer.err
    assert mecroute("models", "list", "--json").json == {"models": []}


def test_bench_keeps_the_profile_with_the_model(mecroute: Run, tiny: Path) -> None:
    mecroute("models", "register", tiny, "--name", "tiny", "--version", "v1", "--tier", "device")
    answer = mecroute(
        *(
            "bench",
            "tiny:v1",
            "--runs",
            "2",
            "--prompt-tokens",
            "16",
            "--output-tokens",
            "8",
            "--threads",
            "1",
        ),
        "--json",
    )
    kept = mecroute("models", "show", "tiny:v1", "--json").json["profiles"]

    assert answer.code == 0, answer.err
    assert kept == [answer.json["profile"]]
    assert (kept[0]["threads"], kept[0]["runs"], kept[0]["tier"]) == (1, 2, "device")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tier", "cloud"), "device and MEC"),
        (("--tier", "mec"), "0 nodes are configured"),
        (("--tier", "device", "--node", "x"), "--node belongs to"),
        (("--node", "x", "--threads", "2"), "its own threads"),
    ],
)
def test_bench_explains_what_cannot_be(
    mecroute: Run, tiny: Path, options: tuple[str, ...], said: str
) -> None:
    mecroute("models", "register", tiny, "--name", "tiny", "--version", "v1", "--tier", "device")
    answer = mecroute("bench", "tiny:v1", *options)

    assert answer.code == 2
    assert said in answer.err


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_serve_needs_no_registry_and_stops_in_order(tiny: Path, how: signal.Signals, code: int) -> None:
    with started_cli("serve", "--model", str(tiny), "--port", "0", "--ctx", "256", "--json") as running:
        assert running.process.stdout is not None
        text = ""
        for line in running.process.stdout:
            text += line
            if line == "}\n":
                break
        ready = json.loads(text)["ready"]
        models = httpx.get(f"{ready['url']}/v1/models", trust_env=False).json()
        running.process.send_signal(how)
        ended, _, err = running.wait()

    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert ended == code, err
    assert "Traceback" not in err


def test_serve_on_a_taken_port_says_so(mecroute: Run, tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = mecroute("serve", "--model", tiny, "--port", port)

    assert answer.code == 2
    assert f"port {port}" in answer.err
    assert "--port" in answer.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "without an API key"),
        (("--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
        (("--node", "No Such Name"), "server.node"),
    ],
)
def test_serve_refuses_settings_that_cannot_be(mecroute: Run, options: tuple[str, ...], said: str) -> None:
    answer = mecroute("serve", *options)

    assert answer.code == 2
    assert said in answer.err


def test_serve_refuses_a_damaged_model_before_it_listens(mecroute: Run, tiny: Path) -> None:
    tiny.write_bytes(b"GGUF but no more")
    answer = mecroute("serve", "--model", tiny, "--port", "0", "--json")

    assert answer.code == 1
    assert answer.json["error"]["code"] == "invalid_model_file"
