"""Configuration: layers, sources, secrets, and mistakes that are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mecroute.config import (
    BudgetConfig,
    CloudConfig,
    Config,
    DeviceConfig,
    NodeConfig,
    RouterConfig,
    ServerConfig,
    load_config,
)
from mecroute.errors import ConfigError
from mecroute_registry.paths import config_dir


def settings(loaded) -> dict[str, tuple[object, str]]:
    return {name: (value, source) for name, value, source in loaded.settings()}


def test_the_default_needs_no_file(empty_dir: Path) -> None:
    loaded = load_config()
    assert loaded.config.nodes == ()
    assert {source for _, source in settings(loaded).values()} == {"default"}


def test_each_layer_wins_over_the_one_below(empty_dir: Path, monkeypatch) -> None:
    user = config_dir() / "mecroute.toml"
    user.parent.mkdir(parents=True)
    user.write_text("[device]\nthreads = 1\ncontext = 100\n[server]\nport = 1000\nparallel = 2\n")
    (empty_dir / "mecroute.toml").write_text("[device]\nthreads = 2\n[server]\nport = 2000\n")
    monkeypatch.setenv("MECROUTE_SERVER_PORT", "3000")
    monkeypatch.setenv("MECROUTE_DEVICE_THREADS", "3")
    told = settings(load_config(overrides={"device.threads": 4, "device.context": None}))
    assert told["device.threads"] == (4, "flag")
    assert told["server.port"] == (3000, "MECROUTE_SERVER_PORT")
    assert told["device.context"] == (100, str(user))
    assert told["server.parallel"] == (2, str(user))
    assert told["server.context"] == (4096, "default")


def test_a_project_file_is_found_from_below(empty_dir: Path, monkeypatch) -> None:
    (empty_dir / "mecroute.toml").write_text("[device]\nthreads = 7\n")
    (empty_dir / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(empty_dir / "a" / "b")
    assert load_config().config.device.threads == 7


def test_nodes_come_from_a_file_or_a_variable(empty_dir: Path, monkeypatch) -> None:
    (empty_dir / "mecroute.toml").write_text('[[nodes]]\nname = "a"\nurl = "http://127.0.0.1:1"\n')
    assert [n.name for n in load_config().config.nodes] == ["a"]
    monkeypatch.setenv("MECROUTE_NODES", '[{"name": "b", "url": "http://127.0.0.1:2"}]')
    assert [n.name for n in load_config().config.nodes] == ["b"]


def test_secrets_are_never_shown(empty_dir: Path) -> None:
    (empty_dir / "mecroute.toml").write_text(
        '[server]\napi_key = "hidden"\n[[nodes]]\nname = "a"\nurl = "http://h"\napi_key = "hidden"\n'
    )
    loaded = load_config()
    assert "hidden" not in str(list(loaded.settings())) + repr(loaded)
    assert loaded.config.nodes[0].key() == "hidden"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[device]\nthreads = 0\n", "device.threads.*greater than or equal to 1"),
        ("[device]\nthraeds = 1\n", "device.thraeds: there is no such setting"),
        ("[devise]\nthreads = 1\n", r"unknown table \[devise\]; did you mean device"),
        ("device = 5\n", r"'device' must be written as \[device\]"),
        ("[nodes]\nname = 'a'\n", r"must be written as \[\[nodes\]\]"),
        ("[device\n", "not valid TOML"),
        ("[[nodes]]\nname = 'a'\nurl = 'ftp://x'\n", "nodes.0.url"),
        ("[[nodes]]\nname = 'a'\nurl = 'http://x'\n" * 2, "the name 'a' is used twice"),
        ("[router.policies.own]\nlatency = 0.9\n", "weights must sum to 1"),
        ("[router.policies.cheap]\nlatency = 1\n", "'cheap' is built in"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(empty_dir: Path, text: str, named: str) -> None:
    (empty_dir / "mecroute.toml").write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        load_config()
    assert "mecroute.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("MECROUTE_DEVICE_THREADS", "many", "MECROUTE_DEVICE_THREADS: device.threads"),
        ("MECROUTE_DEVICE_THRAEDS", "1", "did you mean MECROUTE_DEVICE_THREADS"),
        ("MECROUTE_NODES", "[", "not valid JSON"),
        ("MECROUTE_NODES", "{}", "must be a JSON list"),
        ("MECROUTE_CONFIG", "/no/such/file.toml", "no configuration file at /no/such/file.toml"),
    ],
)
def test_a_mistake_in_a_variable_is_named(empty_dir: Path, monkeypatch, variable, value, named) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=named):
        load_config()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Config(device={"battery_floor": 2}), "Config.device.battery_floor"),
        (lambda: DeviceConfig(battery_floor=2), "DeviceConfig.battery_floor: .* (given: 2)"),
        (lambda: Config(nonsense=1), "Config.nonsense: there is no such setting"),
        (lambda: Config(nodes=[{"name": "A!", "url": "x"}]), "Config.nodes.0.name"),
        (lambda: NodeConfig(name="a", url="nowhere"), "NodeConfig.url"),
        (lambda: BudgetConfig(name="x", limit_usd=float("nan")), "BudgetConfig.limit_usd"),
        (lambda: RouterConfig(cascade={"tiers": ()}), "RouterConfig.cascade.tiers"),
        (lambda: ServerConfig(tls_cert="cert.pem"), "tls_cert and tls_key go together"),
        (
            lambda: Config(cloud=[CloudConfig(name="a", base_url="http://x", model="m")] * 2),
            "Config.cloud: the name 'a' is used twice",
        ),
    ],
)
def test_a_mistake_in_code_is_a_config_error_too(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    for part in named.split(".* "):
        assert part in str(caught.value)


def test_a_secret_is_not_told_in_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig(name="a", url="http://n", api_key=["sk-secret"])
    assert "sk-secret" not in str(caught.value)
