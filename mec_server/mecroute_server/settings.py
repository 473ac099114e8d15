"""What one MEC server is told when it starts."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mecroute.engines.llama.prefix_disk import PrefixDiskOptions
from mecroute.engines.llama.speculation import Speculation, check_speculation
from mecroute.errors import ConfigError
from mecroute_registry.facts import parse_ref
from mecroute_server.tls import Tls

_ORIGIN = re.compile(r"https?://[^\s/?#@*]+")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of one node; immutable, checked when made.

    Args:
        host: address to listen on; anything but loopback needs an API key.
        port: 0..65535; 0 takes a free port.
        api_keys: keys that are accepted, each non-empty; none leaves the node open to this machine only.
        keys_file: more keys, with scopes, as `mecroute keys` writes them; they need not exist yet.
        requests_per_minute: of each key without a limit of its own, >= 1; default: unlimited.
        output_tokens_per_minute: of each key without a limit of its own, >= 1; default: unlimited.
        node: the node's name, as clients see it.
        zone: the edge zone it stands in.
        region: the region it stands in; compared with a request's residency.
        registry_root: the node's own registry; default: the user data folder.
        store_uri: where deployments are pulled from, as `s3://bucket/prefix`.
        store_endpoint_url: an S3 endpoint other than AWS.
        store_region: the store's AWS region.
        model_files: GGUF and ONNX files, and folders with an ONNX model, to load at start; each is served
            under its name without the ending.
        models: references (`name:version`) to load at start, from the registry or else the store.
        threads: CPU threads per engine, >= 1; default: every usable CPU.
        context: tokens per sequence, >= 64; a model trained for fewer gets what it was trained for.
        parallel: sequences decoded at once, 1..256.
        gpu_layers: layers on the GPU; -1 is all of them.
        max_queue: requests that may wait per model, >= 0; the next one gets 429.
        speculation: `prompt-lookup` or `draft`: guess tokens ahead where that is measured to pay.
        draft_model: a small GGUF file with the vocabulary of the models served, for `draft`.
        max_body_bytes: the largest request body, >= 1024.
        max_session_bytes: the largest conversation that may be imported, >= 1024.
        prefix_cache_memory_bytes: for conversations that have left a model's KV memory, of each model, >= 0.
        prefix_cache_dir: a folder for those that have left that too; default: none is ever stored.
        prefix_cache_bytes: of all files in that folder, >= 1 MB.
        prefix_cache_min_tokens: shorter conversations are not stored, >= 1.
        audit_log: a file for the admin actions, as JSON lines; its folder must exist; default: none.
        tls: the files for HTTPS and mTLS; default: plain HTTP.
        cors_origins: web pages of these origins (`https://app.example`) may use the node; default: none.
        drain_delay_s: how long a node that is told to stop still takes requests, while `/readyz` says no, so
            that balancers notice first; >= 0.
        max_connections: open at once, >= 1; the next one is answered 503 and closed.
        header_timeout_s: for a request's headers to arrive, > 0.
        body_timeout_s: for its body, from the end of the headers, > 0.
        write_timeout_s: how long a client may take nothing of its answer, > 0.
        request_timeout_s: from a request's headers to its answer's last byte, > 0.
        load_wait_s: how long a request waits for a model that is being loaded, >= 0.
        shutdown_grace_s: how long a stopping node lets requests finish, >= 1.

    Raises:
        ConfigError: a value is impossible, or a node without a key would listen to other machines.
    """

    host: str = "127.0.0.1"
    port: int = 8100
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    keys_file: Path | None = None
    requests_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    node: str = "node"
    zone: str | None = None
    region: str | None = None
    registry_root: Path | None = None
    store_uri: str | None = None
    store_endpoint_url: str | None = None
    store_region: str | None = None
    model_files: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    threads: int | None = None
    context: int = 4096
    parallel: int = 8
    gpu_layers: int = 0
    max_queue: int = 64
    speculation: Speculation = "off"
    draft_model: Path | None = None
    max_body_bytes: int = 8_000_000
    max_session_bytes: int = 256_000_000
    prefix_cache_memory_bytes: int = 256_000_000
    prefix_cache_dir: Path | None = None
    prefix_cache_bytes: int = 4_000_000_000
    prefix_cache_min_tokens: int = 256
    audit_log: Path | None = None
    tls: Tls | None = None
    cors_origins: tuple[str, ...] = ()
    drain_delay_s: float = 0.0
    max_connections: int = 1024
    header_timeout_s: float = 15.0
    body_timeout_s: float = 60.0
    write_timeout_s: float = 60.0
    request_timeout_s: float = 600.0
    load_wait_s: float = 60.0
    shutdown_grace_s: int = 15

    def __post_init__(self) -> None:
        bounds = (
            ("port", self.port, 0, 65535),
            ("threads", self.threads or 1, 1, 1024),
            ("context", self.context, 64, 1_000_000),
            ("parallel", self.parallel, 1, 256),
            ("gpu_layers", self.gpu_layers, -1, 10_000),
            ("requests_per_minute", _or_1(self.requests_per_minute), 1, 1 << 40),
            ("output_tokens_per_minute", _or_1(self.output_tokens_per_minute), 1, 1 << 40),
            ("max_queue", self.max_queue, 0, 100_000),
            ("max_body_bytes", self.max_body_bytes, 1024, 1 << 40),
            ("max_session_bytes", self.max_session_bytes, 1024, 1 << 40),
            ("prefix_cache_memory_bytes", self.prefix_cache_memory_bytes, 0, 1 << 44),
            ("prefix_cache_bytes", self.prefix_cache_bytes, 1_000_000, 1 << 50),
            ("prefix_cache_min_tokens", self.prefix_cache_min_tokens, 1, 1_000_000),
            ("drain_delay_s", self.drain_delay_s, 0, 3600),
            ("max_connections", self.max_connections, 1, 1_000_000),
            ("header_timeout_s", self.header_timeout_s, 0.01, 86_400),
            ("body_timeout_s", self.body_timeout_s, 0.01, 86_400),
            ("write_timeout_s", self.write_timeout_s, 0.01, 86_400),
            ("request_timeout_s", self.request_timeout_s, 0.01, 86_400),
            ("load_wait_s", self.load_wait_s, 0, 86_400),
            ("shutdown_grace_s", self.shutdown_grace_s, 1, 86_400),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise ConfigError(f"server {name} must be between {low} and {high}, not {value}")
        check_speculation(self.speculation, self.draft_model)
        if not self.node or not self.node.isascii() or not self.node.isprintable():
            raise ConfigError(f"server node must be a printable ASCII name, not {self.node!r}")
        if any(not key.strip() for key in self.api_keys):
            raise ConfigError("a server API key is empty", hint="set a long random key, or none at all")
        if not self.api_keys and self.keys_file is None and not is_loopback(self.host):
            raise ConfigError(
                f"a server without an API key may listen on this machine only, not on {self.host}",
                hint="set [server] keys_file or api_key (MECROUTE_SERVER_API_KEY), or listen on 127.0.0.1",
            )
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"'{origin}' is not a web origin",
                    hint="name each one, as https://app.example or with a port",
                )
        stems = Counter(served_name(path) for path in self.model_files)
        for stem, count in stems.items():
            if count > 1:
                raise ConfigError(
                    f"{count} model files would be served as '{stem}'", hint="rename one of them"
                )
        for ref in self.models:
            try:
                parse_ref(ref)
            except ValueError as error:
                raise ConfigError(f"server models: {error}") from error

    @property
    def prefix_disk(self) -> PrefixDiskOptions | None:
        """Where engines keep conversations on disk, or None."""
        if self.prefix_cache_dir is None:
            return None
        return PrefixDiskOptions(self.prefix_cache_dir, self.prefix_cache_bytes, self.prefix_cache_min_tokens)


def _or_1(value: int | None) -> int:
    return 1 if value is None else value


def served_name(path: Path) -> str:
    """The name a model file is served under when it was given by its path."""
    return path.name.removesuffix(".gguf").removesuffix(".onnx") or path.name


def is_loopback(host: str) -> bool:
    """Whether `host` (a name, an address, or an address in brackets) means this machine and no other."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
