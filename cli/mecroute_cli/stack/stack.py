"""The stack: S3, one MEC node and a cloud stand-in as processes on loopback, and the `Config` to use them."""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import SecretStr

from mecroute.config import (
    CloudConfig,
    Config,
    DeviceConfig,
    NodeConfig,
    RegistryConfig,
    ServerConfig,
    StateConfig,
    StoreConfig,
)
from mecroute.errors import MissingExtraError, UsageError
from mecroute_cli.stack.config_file import write_config
from mecroute_cli.stack.processes import ChildProcess, free_port

NODE = "mec-1"
ZONE = "loopback"
STORE_URI = "s3://mecroute/models"
STAND_IN = "stand-in"
CONFIG_FILE = "mecroute.toml"
ENVIRONMENT_FILE = "env.sh"

_MECROUTE = (sys.executable, "-m", "mecroute_cli")

_START_TIMEOUT_S = 60.0
_LOAD_TIMEOUT_S = 180.0
#: AWS settings of the user that would mislead an S3 client about this server.
_AWS_FOREIGN = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)


class Stack:
    """A whole system on loopback. A context manager: leaving it ends every process it started.

    The parts are started one by one (`start_store`, `start_node`, `start_cloud`), or all with `start`.
    For one thread, the main one. Nothing of the user's is touched: registry, state and keys are its own.

    Args:
        workdir: holds registry, S3 data, state and logs; created; used by one stack at a time.
        source: the GGUF file that the cloud stand-in serves.
        clouds: the user's own clouds; with any, no stand-in is started.
        parallel: sequences the node decodes at once.
        device: the device tier; default: one thread, as on a small device.

    Raises:
        UsageError: another stack runs in `workdir`.
    """

    def __init__(
        self,
        workdir: Path,
        source: Path,
        *,
        clouds: Sequence[CloudConfig] = (),
        parallel: int = 4,
        device: DeviceConfig | None = None,
    ) -> None:
        self.workdir = workdir
        self.source = source
        self.store: ChildProcess | None = None
        self.node: ChildProcess | None = None
        self.cloud: ChildProcess | None = None
        self._parallel = parallel
        self._aws = {
            "AWS_ACCESS_KEY_ID": "mecroute-" + secrets.token_hex(6),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(24),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._node_key = secrets.token_urlsafe(24)
        self._exits = ExitStack()
        self._lock: IO[str] | None = None
        self._config = Config(
            registry=RegistryConfig(path=workdir / "registry"),
            device=device or DeviceConfig(threads=1),
            state=StateConfig(path=workdir / "state.sqlite"),
            cloud=tuple(clouds),
        )

    @property
    def config(self) -> Config:
        """The configuration with every part that was started so far."""
        return self._config

    @property
    def config_file(self) -> Path:
        """The same as a file, for other commands: `MECROUTE_CONFIG=… mecroute …`."""
        return self.workdir / CONFIG_FILE

    @property
    def environment_file(self) -> Path:
        """A shell file that points other commands at this stack."""
        return self.workdir / ENVIRONMENT_FILE

    @property
    def has_stand_in(self) -> bool:
        """Whether the cloud is this stack's own stand-in."""
        return any(cloud.stand_in for cloud in self._config.cloud)

    def __enter__(self) -> Self:
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._lock = (self.workdir / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UsageError(
                f"another mecroute stack runs in {self.workdir}",
                hint="stop that one first, or name another --workdir",
            ) from error
        self._exits.callback(self._lock.close)
        self._exits.enter_context(self._credentials())
        self._save()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def forget_state(self) -> None:
        """Delete what clients of earlier runs observed; for the time before the first client."""
        assert self._config.state.path is not None
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._config.state.path}{suffix}").unlink(missing_ok=True)

    def start(self) -> None:
        """Start every part."""
        self.start_store()
        self.start_node()
        self.start_cloud()

    def start_store(self) -> str:
        """Start the S3 server, with random keys; returns its endpoint.

        Raises:
            MissingExtraError: nanio is not installed.
        """
        program = Path(sys.executable).with_name("nanio")
        if not program.exists():
            raise MissingExtraError("demo", "a local S3 server")
        port = free_port()
        endpoint = f"http://127.0.0.1:{port}"
        command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
        command += ["--log-level", "warning", "--data-dir", str(self.workdir / "s3")]
        (self.workdir / "s3").mkdir(exist_ok=True)
        keys = {
            "NANIO_ACCESS_KEY": self._aws["AWS_ACCESS_KEY_ID"],
            "NANIO_SECRET_KEY": self._aws["AWS_SECRET_ACCESS_KEY"],
        }
        self.store = self._start("S3 server", command, keys)
        # Without a signature every request is refused, and a refusal is an answer.
        self.store.wait_until_ready(endpoint, timeout_s=_START_TIMEOUT_S, any_answer=True)
        self._update(store=StoreConfig(uri=STORE_URI, endpoint_url=endpoint, region="us-east-1"))
        return endpoint

    def start_node(self) -> str:
        """Start the MEC node, with its own registry and key, and no model yet; returns its URL."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        own = Config(
            registry=RegistryConfig(path=self.workdir / "node-registry"),
            store=self._config.store,
            server=ServerConfig(
                port=port, node=NODE, zone=ZONE, parallel=self._parallel, api_key=SecretStr(self._node_key)
            ),
        )
        own_file = self.workdir / f"{NODE}.toml"
        write_config(own, own_file)
        self.node = self._start(f"MEC node {NODE}", [*_MECROUTE, "--config", str(own_file), "serve"], {})
        self.node.wait_until_ready(f"{url}/healthz", timeout_s=_START_TIMEOUT_S)
        entry = NodeConfig(name=NODE, url=url, zone=ZONE, api_key=SecretStr(self._node_key))
        self._update(nodes=(entry,))
        return url

    def start_cloud(self) -> str:
        """Start the cloud stand-in, unless the user has a cloud; returns the base URL of the cloud in use."""
        if self._config.cloud:
            return self._config.cloud[0].base_url
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        nothing = self.workdir / "stand-in.toml"
        write_config(Config(registry=RegistryConfig(path=self.workdir / "stand-in-registry")), nothing)
        command = [*_MECROUTE, "--config", str(nothing), "serve", "--node", STAND_IN, "--port", str(port)]
        command += ["--model", str(self.source), "--parallel", "2"]
        self.cloud = self._start("cloud stand-in", command, {})
        self.cloud.wait_until_ready(f"{url}/readyz", timeout_s=_LOAD_TIMEOUT_S)
        entry = CloudConfig(
            name=STAND_IN,
            base_url=f"{url}/v1",
            model=self.source.name.removesuffix(".gguf"),
            # What a large cloud model would be declared with; the stand-in itself is the small source model.
            quality=0.9,
            context_length=2048,
            input_usd_per_mtok=2.50,
            output_usd_per_mtok=10.00,
            continues_prefix=True,
            stand_in=True,
        )
        self._update(cloud=(entry,))
        return entry.base_url

    def _start(self, name: str, command: Sequence[str], extra: Mapping[str, str]) -> ChildProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MECROUTE_", "NANIO_"))}
        if os.environ.get("MECROUTE_DEBUG"):
            environment["MECROUTE_DEBUG"] = os.environ["MECROUTE_DEBUG"]
        log = self.workdir / f"{name.lower().replace(' ', '-')}.log"
        child = ChildProcess(name, command, log=log, environment={**environment, **extra})
        self._exits.callback(child.stop)
        return child

    def _update(self, **parts: object) -> None:
        self._config = self._config.model_copy(update=parts)
        self._save()

    def _save(self) -> None:
        write_config(self._config, self.config_file)
        lines = [f"export MECROUTE_CONFIG='{self.config_file}'"]
        lines += [f"export {name}='{value}'" for name, value in self._aws.items()]
        self.environment_file.touch(mode=0o600)
        self.environment_file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @contextmanager
    def _credentials(self) -> Iterator[None]:
        """Give this process and its children the S3 keys the standard way; put back what was there."""
        touched = (*self._aws, *_AWS_FOREIGN)
        before = {name: os.environ.get(name) for name in touched}
        for name in _AWS_FOREIGN:
            os.environ.pop(name, None)
        os.environ.update(self._aws)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
