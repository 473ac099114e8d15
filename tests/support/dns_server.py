"""A real DNS server on loopback, over UDP: SRV and TXT records that a test may change while it runs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


@dataclass
class DnsServer:
    """What is answered. `records` maps (name, type) to (time to live, texts); a name in none is NXDOMAIN."""

    address: str = ""
    records: dict[tuple[str, str], tuple[int, list[str]]] = field(default_factory=dict)
    silent: bool = False
    asked: int = 0

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        """The answer to one query."""
        self.asked += 1
        question = query.question[0]
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        if (name, kind) in self.records:
            ttl, texts = self.records[name, kind]
            response.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, *texts))
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response


@contextmanager
def dns_server() -> Iterator[DnsServer]:
    """A running server; `address` is its host and port."""
    server = DnsServer()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.05)
        server.address = f"127.0.0.1:{udp.getsockname()[1]}"
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    data, peer = udp.recvfrom(4096)
                except TimeoutError:
                    continue
                if not server.silent:
                    udp.sendto(server.answer(dns.message.from_wire(data)).to_wire(), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            stop.set()
            thread.join()
