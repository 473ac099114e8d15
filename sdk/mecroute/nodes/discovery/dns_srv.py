"""Nodes by DNS: the SRV records of `_mecroute._tcp.DOMAIN` (RFC 2782).

A TXT record of the same name may hold `tls=0` (the nodes speak plain HTTP), `zone=…` and `region=…`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mecroute.config.discovery import DnsSrvSource
from mecroute.errors import ConfigError, MissingExtraError, TierUnreachableError
from mecroute.nodes.discovery.base import Found, FoundNode

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

SERVICE = "_mecroute._tcp"
_LIFETIME_S = 3.0
_DEFAULT_PORT = 53
#: A record may say that it is good for a second or a year; neither is taken literally.
_TTL_S = (5.0, 3600.0)


class DnsSrv:
    """The nodes of one domain; see `Discovery`."""

    def __init__(self, source: DnsSrvSource) -> None:
        try:
            import dns.asyncresolver
        except ImportError as error:
            raise MissingExtraError("discovery", "finding nodes by DNS") from error
        self._name = f"{SERVICE}.{source.domain.rstrip('.')}."
        self._resolver = self._make_resolver(source, dns.asyncresolver.Resolver)

    async def find(self) -> Found:
        """Ask for the records; see `Discovery`. A domain without any has no nodes, which is no failure."""
        import dns.exception
        import dns.rdatatype
        import dns.resolver

        try:
            answer = await self._resolver.resolve(
                self._name, dns.rdatatype.SRV, raise_on_no_answer=False, search=False
            )
        except dns.resolver.NXDOMAIN:
            return Found((), _TTL_S[0], (f"there is no {self._name}",))
        except (dns.exception.DNSException, OSError) as error:
            raise TierUnreachableError(
                f"the DNS server did not tell of {self._name} ({type(error).__name__})",
                hint="check the domain, and the DNS server",
                retryable=True,
                tier="mec",
            ) from error
        if answer.rrset is None:
            return Found((), _TTL_S[0], (f"{self._name} has no SRV record",))
        facts = await self._facts()
        scheme = "http" if facts.get("tls") == "0" else "https"
        nodes = []
        for record in answer.rrset:
            host = record.target.to_text(omit_final_dot=True)
            if host in ("", "."):
                continue  # RFC 2782: the service is decidedly not available at this domain
            nodes.append(
                FoundNode(
                    name=f"{host.partition('.')[0]}-{record.port}",
                    url=f"{scheme}://{host}:{record.port}",
                    zone=facts.get("zone"),
                    region=facts.get("region"),
                    rank=record.priority * 65536 + (65535 - record.weight),
                )
            )
        low, high = _TTL_S
        return Found(nodes, min(high, max(low, float(answer.rrset.ttl))))

    async def aclose(self) -> None:
        """Nothing is held."""

    async def _facts(self) -> dict[str, str]:
        import dns.exception
        import dns.rdatatype

        try:
            answer = await self._resolver.resolve(
                self._name, dns.rdatatype.TXT, raise_on_no_answer=False, search=False
            )
        except (dns.exception.DNSException, OSError):
            return {}  # it is optional
        facts: dict[str, str] = {}
        for record in answer.rrset or ():
            for text in record.strings:
                key, _, value = text.decode("utf-8", "replace").partition("=")
                facts[key.strip().lower()] = value.strip()
        return facts

    @staticmethod
    def _make_resolver(source: DnsSrvSource, kind: type[Resolver]) -> Resolver:
        import dns.resolver

        try:
            resolver = kind(configure=source.server is None)
            if source.server is not None:
                host, _, port = source.server.partition(":")
                resolver.nameservers = [host]
                resolver.port = int(port or _DEFAULT_PORT)
        except dns.resolver.NoResolverConfiguration as error:
            raise ConfigError(
                "this system names no DNS server", hint=f"set server of [[discovery]] '{source.name}'"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"[[discovery]] '{source.name}': server '{source.server}' is no address: {error}",
                hint='give an IP address and a port, as "10.0.0.1:53"',
            ) from error
        resolver.lifetime = _LIFETIME_S
        return resolver
