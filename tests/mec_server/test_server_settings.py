"""Settings refuse what cannot work, and a server open to others without a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mecroute.errors import ConfigError
from mecroute_server.settings import ServerSettings, is_loopback


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("threads", -1),
        ("context", 63),
        ("parallel", 0),
        ("gpu_layers", -2),
        ("max_queue", -1),
        ("max_body_bytes", 0),
        ("speculation", "draft"),
        ("speculation", "always"),
        ("draft_model", Path("small.gguf")),
        ("node", ""),
        ("node", "line\nbreak"),
        ("api_keys", ("",)),
        ("models", ("No Reference",)),
        ("host", "0.0.0.0"),
        ("host", "::"),
        ("host", "edge.example.com"),
        ("model_files", (Path("a/m.gguf"), Path("b/m.gguf"))),
    ],
)
def test_an_impossible_setting_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        ServerSettings(**{field: value})


def test_a_key_opens_the_server_to_others() -> None:
    assert ServerSettings(host="0.0.0.0", api_keys=("secret",)).host == "0.0.0.0"


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(ServerSettings(api_keys=("secret",)))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com", "::", "::ffff:10.0.0.1"],
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
