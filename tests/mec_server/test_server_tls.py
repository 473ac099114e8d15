"""TLS, mTLS and CORS, with certificates made on the spot."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from mecroute import AsyncClient, Client
from mecroute.config import Config, NodeConfig
from mecroute.config.schema import DeviceConfig, StateConfig
from mecroute.errors import (
    ConfigError,
    MecrouteError,
    NoEligibleTargetError,
    TierUnreachableError,
    UsageError,
)
from mecroute.network.tls import ClientTls
from mecroute.target import Target
from mecroute.tiers.base import Call
from mecroute.tiers.http import Endpoint, HttpTier
from mecroute_cli.node_api import NodeApi
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from mecroute_server.tls import Tls
from support.dns_server import dns_server
from support.process import run_cli
from support.server import SAYS, running_node, running_server
from support.upstream import upstream


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and the files of a node on 127.0.0.1."""

    ca: trustme.CA
    folder: Path

    def tls(self, *, mutual: bool = False) -> Tls:
        cert = self.ca.issue_cert("127.0.0.1", "localhost")
        files = Tls(self.folder / "node.pem", self.folder / "node.key")
        cert.private_key_pem.write_to_path(files.key)
        files.cert.write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
        self.ca.cert_pem.write_to_path(self.folder / "ca.pem")
        return replace(files, client_ca=self.folder / "ca.pem") if mutual else files

    def client_files(self, issuer: trustme.CA | None = None, name: str = "client") -> dict[str, Any]:
        """The settings of a client with a certificate of this authority, or of another one."""
        cert = (issuer or self.ca).issue_cert(f"{name}@example.org")
        files = {"tls_cert": self.folder / f"{name}.pem", "tls_key": self.folder / f"{name}.key"}
        cert.private_key_pem.write_to_path(files["tls_key"])
        files["tls_cert"].write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
        self.ca.cert_pem.write_to_path(self.folder / "ca.pem")
        return {**files, "tls_ca": self.folder / "ca.pem"}

    def trusting(self, *, shows: trustme.CA | None = None) -> ssl.SSLContext:
        """A client's context; `shows` issues the certificate it shows."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if shows is not None:
            shows.issue_cert("client@example.org").configure_cert(context)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(trustme.CA(), tmp_path)


def test_https(authority: Authority, tmp_path: Path) -> None:
    with running_server(ServerSettings(port=0, registry_root=tmp_path, tls=authority.tls())) as url:
        assert url.startswith("https://")
        assert httpx.get(f"{url}/healthz", verify=authority.trusting()).status_code == 200
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{url}/healthz")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz".replace("https", "http"))


@pytest.mark.parametrize("says", [b"", bytes.fromhex("1603010200010001")])
def test_a_client_that_does_not_shake_hands_is_bounded_and_counted(
    authority: Authority, tmp_path: Path, says: bytes
) -> None:
    settings = ServerSettings(
        port=0, registry_root=tmp_path, tls=authority.tls(), header_timeout_s=0.5, max_connections=2
    )
    with running_server(settings) as url:
        parts = urlsplit(url)
        with ExitStack() as held:
            silent = []
            for _ in range(2):
                connection = socket.create_connection((parts.hostname, parts.port), timeout=20)
                held.enter_context(connection).sendall(says)
                silent.append(connection)
            with pytest.raises(httpx.TransportError):  # there is no room beside them
                httpx.get(f"{url}/healthz", verify=authority.trusting())
            for connection in silent:
                assert everything_of(connection) == b""  # long before the socket's own timeout
        assert httpx.get(f"{url}/healthz", verify=authority.trusting()).status_code == 200


def test_a_node_stops_beside_a_client_that_does_not_shake_hands(authority: Authority, tmp_path: Path) -> None:
    with running_node(ServerSettings(port=0, registry_root=tmp_path, tls=authority.tls())) as node:
        parts = urlsplit(node.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            assert httpx.get(f"{node.url}/healthz", verify=authority.trusting()).status_code == 200
            node.stop()
            assert everything_of(connection) == b""


def everything_of(connection: socket.socket) -> bytes:
    try:
        return connection.recv(100)
    except ConnectionResetError:
        return b""


def test_old_tls_is_not_spoken(authority: Authority, tmp_path: Path) -> None:
    with running_server(ServerSettings(port=0, registry_root=tmp_path, tls=authority.tls())) as url:
        context = authority.trusting()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(f"{url}/healthz", verify=context).status_code == 200
        # A ClientHello of TLS 1.0, written out: clients of today do not send one any more.
        hello = bytes.fromhex("160301002d010000290301") + bytes(32) + bytes.fromhex("000002002f0100")
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            connection.sendall(hello)
            assert connection.recv(16)[:1] in (b"\x15", b"")  # an alert, or the end


def test_mutual_tls(authority: Authority, tmp_path: Path) -> None:
    settings = ServerSettings(port=0, registry_root=tmp_path, tls=authority.tls(mutual=True))
    with running_server(settings) as url:
        known = authority.trusting(shows=authority.ca)
        assert httpx.get(f"{url}/healthz", verify=known).status_code == 200
        for shows in (None, trustme.CA()):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/healthz", verify=authority.trusting(shows=shows))
        assert httpx.get(f"{url}/healthz", verify=known).status_code == 200


def test_a_certificate_does_not_stand_in_for_a_key(authority: Authority, tmp_path: Path) -> None:
    tls = authority.tls(mutual=True)
    with running_server(ServerSettings(port=0, registry_root=tmp_path, tls=tls, api_keys=("k",))) as url:
        known = authority.trusting(shows=authority.ca)
        assert httpx.get(f"{url}/v1/models", verify=known).status_code == 401
        headers = {"authorization": "Bearer k"}
        assert httpx.get(f"{url}/v1/models", verify=known, headers=headers).status_code == 200


def test_our_own_client_shows_a_certificate(authority: Authority, tiny: Path, tmp_path: Path) -> None:
    shown = authority.client_files()
    settings = ServerSettings(
        port=0, registry_root=tmp_path, tls=authority.tls(mutual=True), model_files=(tiny,), parallel=2,
        threads=1,
    )  # fmt: skip
    ask: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    with running_server(settings) as url:
        # Nothing shown, another authority's certificate, an authority that is not the node's.
        stranger = trustme.CA()
        for files, said in (
            ({"tls_ca": authority.folder / "ca.pem"}, "closed the connection without an answer"),
            ({**shown, **authority.client_files(stranger, "s")}, "closed the connection without an answer"),
            ({k: v for k, v in shown.items() if k != "tls_ca"}, "is not trusted"),
        ):
            node = NodeConfig(name="mec", url=url, **files)
            with NodeApi(node) as api, pytest.raises(TierUnreachableError, match=said) as caught:
                api.report()
            assert "tls_" in (caught.value.hint or "")
            with Client(only(node)) as client:
                with pytest.raises(NoEligibleTargetError) as refused:
                    client.chat.completions.create(**{**ask, "model": "auto"})
                assert said in str(refused.value)
        node = NodeConfig(name="mec", url=url, **shown)
        with NodeApi(node) as api:
            assert [model.ref for model in api.report().models] == ["tiny"]
        with Client(only(node)) as client:
            reply = client.chat.completions.create(**ask)
            assert reply.choices[0].message.content == SAYS
            assert reply.mecroute.tier == "mec"
            chunks = client.chat.completions.create(**ask, stream=True)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert said == SAYS
        listed = run_cli(
            "nodes", "list", "--json", env={"MECROUTE_NODES": f"[{node.model_dump_json(exclude_unset=True)}]"}
        )
        assert [row["state"] for row in json.loads(listed.stdout)["nodes"]] == ["ready"]


def test_a_call_says_what_is_wrong_with_tls(authority: Authority, tiny: Path, tmp_path: Path) -> None:
    """Where the certificate stops being accepted between two calls, the call itself says so."""
    settings = ServerSettings(
        port=0, registry_root=tmp_path, tls=authority.tls(mutual=True), model_files=(tiny,), threads=1
    )

    async def call(url: str) -> MecrouteError:
        tls = ClientTls(ca=authority.folder / "ca.pem")
        tier = HttpTier({"mec": Endpoint("mec", "mec", f"{url}/v1", tls=tls)})
        target = Target("mec", "tiny", "mec")
        body = {"messages": [{"role": "user", "content": "hi"}]}
        try:
            await tier.complete(Call("chat", target, body, request_id="r"))
        except MecrouteError as error:
            return error
        finally:
            await tier.aclose()
        raise AssertionError("it was answered")

    with running_server(settings) as url:
        error = asyncio.run(call(url))
        assert "closed the connection without an answer" in error.message
        assert "tls_cert" in (error.hint or "")


def test_files_of_a_client_that_do_not_work_are_named(authority: Authority, tmp_path: Path) -> None:
    shown = authority.client_files()
    text = tmp_path / "text.pem"
    text.write_text("not a certificate")
    other = authority.client_files(name="other")
    for bad, said in (
        ({**shown, "tls_ca": text}, "text.pem"),
        ({**shown, "tls_ca": tmp_path / "missing.pem"}, "missing.pem: No such file"),
        ({**shown, "tls_cert": text}, "text.pem"),
        ({**shown, "tls_key": other["tls_key"]}, "other.key"),
    ):
        node = NodeConfig(name="mec", url="https://127.0.0.1:9", **bad)
        with pytest.raises(ConfigError, match=said):
            NodeApi(node)
        with pytest.raises(ConfigError, match=said), Client(only(node)) as client:
            client.models.list()
        entered = AsyncClient(only(node))
        with pytest.raises(ConfigError, match=said):
            asyncio.run(entered.__aenter__())
        with pytest.raises(UsageError, match="closed"):
            asyncio.run(entered.models.list())
    for fields, said in (
        ({"url": "http://127.0.0.1:9", **shown}, "https://"),
        ({"url": "https://127.0.0.1:9", "tls_key": shown["tls_key"]}, "tls_key needs tls_cert"),
    ):
        with pytest.raises(ConfigError, match=said):
            NodeConfig(name="mec", **fields)


def test_a_file_that_disappears_costs_its_own_node_alone(
    authority: Authority, tiny: Path, tmp_path: Path
) -> None:
    """A node that is found once the file is gone is out of reach until it is back, and others are asked."""
    tls = authority.tls()
    ca = authority.folder / "ca.pem"
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    report = {"node": "other", "models": [{"ref": "fox:1", "state": "ready", "context_length": 4096}]}
    settings = ServerSettings(port=0, registry_root=tmp_path, tls=tls, model_files=(tiny,), threads=1)
    with running_server(settings) as url, upstream(report=report) as other, dns_server() as dns:
        name, port = "_mecroute._tcp.edge.example.", urlsplit(url).port
        dns.records[name, "SRV"] = (600, [f"1 1 {port} localhost."])
        source = {
            "kind": "dns-srv", "name": "dns", "domain": "edge.example", "server": dns.address, "tls_ca": ca,
        }  # fmt: skip
        config = Config.model_validate(
            {
                **only(NodeConfig(name="plain", url=other.url)).model_dump(exclude_unset=True),
                "discovery": [source],
            }
        )
        with Client(config) as client:
            kept = ca.rename(tmp_path / "kept.pem")
            for _ in range(2):
                reply = client.chat.completions.create(model="auto", **ask)
                assert reply.mecroute.node == "plain"
                assert "ca.pem: No such file" in reply.mecroute.decision.explain()
            with pytest.raises(NoEligibleTargetError, match=r"ca\.pem: No such file"):
                client.chat.completions.create(model="tiny", **ask)
            kept.rename(ca)
            ends_at = time.monotonic() + 60
            while True:
                with suppress(NoEligibleTargetError):
                    reply = client.chat.completions.create(model="tiny", **ask)
                    break
                assert time.monotonic() < ends_at
                time.sleep(0.2)
            assert reply.choices[0].message.content == SAYS


def test_a_call_to_a_target_whose_file_is_gone_goes_on_to_the_next(authority: Authority) -> None:
    async def call() -> None:
        tier = HttpTier({"mec": Endpoint("mec", "mec", "https://127.0.0.1:9/v1", tls=ClientTls(ca=tmp))})
        body = {"messages": [{"role": "user", "content": "hi"}]}
        try:
            await tier.complete(Call("chat", Target("mec", "tiny", "mec"), body, request_id="r"))
        finally:
            await tier.aclose()

    tmp = authority.folder / "missing.pem"
    with pytest.raises(TierUnreachableError, match=r"missing\.pem: No such file") as caught:
        asyncio.run(call())
    assert caught.value.retryable
    assert "tls_ca" in (caught.value.hint or "")


def only(node: NodeConfig) -> Config:
    """A configuration with that node, and nothing else that could answer."""
    return Config(nodes=(node,), device=DeviceConfig(enabled=False), state=StateConfig(enabled=False))


def test_files_that_do_not_work_are_said_at_start(authority: Authority, tmp_path: Path) -> None:
    good = authority.tls(mutual=True)
    other = tmp_path / "other.key"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    locked = tmp_path / "locked.key"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n")
    text = tmp_path / "text.pem"
    text.write_text("not a certificate")
    for bad in (
        replace(good, cert=tmp_path / "missing.pem"),
        replace(good, cert=text),
        replace(good, key=other),
        replace(good, key=locked),
        replace(good, client_ca=text),
        replace(good, client_ca=tmp_path / "missing.pem"),
    ):
        with pytest.raises(ConfigError, match="cannot use"):
            NodeServer(ServerSettings(port=0, registry_root=tmp_path, tls=bad))


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def test_no_page_may_ask_unless_named(tmp_path: Path) -> None:
    with running_server(ServerSettings(port=0, registry_root=tmp_path, api_keys=("k",))) as url:
        headers = {"origin": "https://app.example", "authorization": "Bearer k"}
        answer = httpx.get(f"{url}/v1/models", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        asked = httpx.options(f"{url}/v1/models", headers={**headers, **PREFLIGHT})
        assert not [name for name in asked.headers if name.startswith("access-control")]


def test_pages_of_a_named_origin_may_ask(tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0, registry_root=tmp_path, api_keys=("k",), cors_origins=("https://app.example",)
    )
    with running_node(settings) as server, httpx.Client(base_url=server.url) as http:
        origin = {"origin": "https://app.example"}
        asked = http.options("/v1/chat/completions", headers={**origin, **PREFLIGHT})
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        answer = http.get("/v1/models", headers={**origin, "authorization": "Bearer k"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        exposed = answer.headers["access-control-expose-headers"]
        assert "retry-after" in exposed
        assert "inference-header-content-length" in exposed  # or a page could not read a binary tensor
        refused = http.get("/v1/models", headers=origin)
        assert refused.status_code == 401  # and the page can read why
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        other = {"origin": "https://other.example"}
        assert http.options("/v1/models", headers={**other, **PREFLIGHT}).status_code == 400
        answer = http.get("/v1/models", headers={**other, "authorization": "Bearer k"})
        assert "access-control-allow-origin" not in answer.headers


def test_a_named_page_may_ask_an_open_node(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, registry_root=tmp_path, cors_origins=("https://app.example",))
    with running_node(settings) as server, httpx.Client(base_url=server.url) as http:
        assert http.get("/v1/models", headers={"origin": "https://app.example"}).status_code == 200
        assert http.get("/v1/models", headers={"origin": "https://other.example"}).status_code == 403
        rebound = {"origin": "https://app.example", "host": "app.example"}
        assert http.get("/v1/models", headers=rebound).status_code == 403


@pytest.mark.parametrize("origin", ["*", "app.example", "https://*.example", "https://app.example/", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError):
        ServerSettings(cors_origins=(origin,))
