"""`mecroute nodes list`, `doctor` and `config prices` with found nodes and a table of prices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.dns_server import DnsServer, dns_server

NAME = "_mecroute._tcp.edge.example."


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with dns_server() as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, dns: DnsServer) -> Path:
    path = tmp_path / "mecroute.toml"
    path.write_text(
        f'[[discovery]]\nkind = "dns-srv"\nname = "dns"\ndomain = "edge.example"\nserver = "{dns.address}"\n'
        '[[discovery]]\nkind = "camara"\nname = "op"\nroot = "https://127.0.0.1:1"\n'
        'token_env = "NO_SUCH_TOKEN"\nzones = { "z" = "https://z.example" }\n'
    )
    return path


def test_nodes_list_shows_where_a_node_is_from_and_what_failed(
    mecroute: Callable[..., Any], dns: DnsServer, config: Path
) -> None:
    dns.records[NAME, "SRV"] = (60, ["1 1 9 localhost."])
    dns.records[NAME, "TXT"] = (60, ['"tls=0"'])
    answer = mecroute("nodes", "list", "--json", "--config", config)
    assert answer.code == 0
    (row,) = answer.json["nodes"]
    assert (row["node"], row["source"], row["state"]) == ("dns.localhost-9", "dns", "unreachable")
    assert "[[discovery]] op: " in answer.err
    assert "NO_SUCH_TOKEN" in answer.err


def test_a_node_that_is_not_trusted_is_named(
    mecroute: Callable[..., Any], dns: DnsServer, config: Path
) -> None:
    dns.records[NAME, "SRV"] = (60, ["1 1 8100 mec-1.edge.example."])
    dns.records[NAME, "TXT"] = (60, ['"tls=0"'])
    answer = mecroute("nodes", "list", "--config", config)
    assert "no node is configured or found" in answer.out + answer.err
    assert "has no TLS" in answer.err


def test_doctor_names_each_source(mecroute: Callable[..., Any], dns: DnsServer, config: Path) -> None:
    checks = {
        check["name"]: check for check in mecroute("doctor", "--json", "--config", config).json["checks"]
    }
    assert checks["discovery dns"]["status"] == "missing"
    assert NAME in checks["discovery dns"]["detail"]
    assert checks["discovery op"]["status"] == "broken"


def test_prices_say_who_states_them(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "mecroute.toml"
    path.write_text(
        '[[cloud]]\nname = "a"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "big-2"\n'
        '[[cloud]]\nname = "b"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "big-2"\ninput_usd_per_mtok = 9\n'
        '[[cloud]]\nname = "c"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "small"\n'
        '[[prices]]\nmodel = "big-*"\ninput_usd_per_mtok = 3\noutput_usd_per_mtok = 4\n'
        '[[prices]]\nmodel = "*-2"\ninput_usd_per_mtok = 5\noutput_usd_per_mtok = 6\n'
    )
    rows = {
        row["name"]: row for row in mecroute("config", "prices", "--json", "--config", path).json["prices"]
    }
    assert (rows["a"]["input_usd_per_mtok"], rows["a"]["output_usd_per_mtok"]) == (3, 4)
    assert rows["a"]["source"] == "[[prices]] big-*"
    assert (rows["b"]["input_usd_per_mtok"], rows["b"]["source"]) == (9, "its own entry")
    assert rows["c"]["source"].startswith("not stated")
