"""Which found nodes may be used: names, TLS, keys and regions cannot be had by claiming them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mecroute.config import MdnsSource, NodeConfig
from mecroute.network.tls import ClientTls
from mecroute.nodes.discovery.admission import admitted
from mecroute.nodes.discovery.base import FoundNode


def source(**facts: object) -> MdnsSource:
    return MdnsSource.model_validate({"kind": "mdns", "name": "lan", **facts})


def node(**facts: object) -> FoundNode:
    return FoundNode(**{"name": "mec-1", "url": "https://mec-1.example:8100", **facts})  # type: ignore[arg-type]


def test_a_found_node_is_named_after_its_source_and_gets_no_key() -> None:
    found = admitted(source(), node(zone="hall", region="eu"))
    assert isinstance(found, NodeConfig)
    assert (found.name, found.url, found.zone) == ("lan.mec-1", "https://mec-1.example:8100", "hall")
    assert found.key() is None
    assert found.region is None, "a region that a stranger claims must not satisfy a residency"


def test_the_source_s_own_word_on_key_region_and_prices_counts() -> None:
    found = admitted(
        source(api_key="k", region="eu-1", input_usd_per_mtok=2, trust_region=True), node(region="us")
    )
    assert isinstance(found, NodeConfig)
    assert (found.key(), found.region, found.input_usd_per_mtok) == ("k", "eu-1", 2)
    claimed = admitted(source(trust_region=True), node(region="us"))
    assert isinstance(claimed, NodeConfig)
    assert claimed.region == "us"


@pytest.mark.parametrize(
    ("url", "allow_http", "used"),
    [
        ("https://10.0.0.5:8100", False, True),
        ("http://10.0.0.5:8100", False, False),
        ("http://10.0.0.5:8100", True, True),
        ("http://127.0.0.1:8100", False, True),
        ("http://[::1]:8100", False, True),
        ("http://127.0.0.1.evil.example", False, False),
        ("http://localhost.evil.example", False, False),
        ("ftp://10.0.0.5", True, False),
        ("https://user:secret@10.0.0.5", True, False),
        ("https://10.0.0.5:99999", True, False),
        ("https://10.0.0.5/?x=1", True, False),
        ("https://10.0.0.5/\r\nx: y", True, False),
        ("https://", True, False),
        ("not a url", True, False),
    ],
)
def test_only_a_safe_url_is_used(url: str, allow_http: bool, used: bool) -> None:
    assert isinstance(admitted(source(allow_http=allow_http), node(url=url)), NodeConfig) is used


@pytest.mark.parametrize("name", ["MEC One!", "../../etc", "", "ÄÖ", "x" * 300, "lan\nmec"])
def test_any_name_becomes_a_harmless_one(name: str) -> None:
    found = admitted(source(), node(name=name))
    assert isinstance(found, NodeConfig)
    assert found.name.startswith("lan.")


def test_the_source_s_tls_files_are_for_nodes_with_tls() -> None:
    files = {"tls_cert": Path("client.pem"), "tls_key": Path("client.key"), "tls_ca": Path("ca.pem")}
    found = admitted(source(**files), node(url="https://edge.example:8443"))
    assert isinstance(found, NodeConfig)
    assert found.tls() == ClientTls(*files.values())
    plain = admitted(source(**files), node(url="http://127.0.0.1:8100"))
    assert isinstance(plain, NodeConfig)
    assert plain.tls() is None
