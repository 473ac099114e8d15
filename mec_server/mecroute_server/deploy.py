"""Brings a model from the node's store into service: pull, verify, register, load, warm up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from mecroute.errors import (
    ConfigError,
    InvalidRequestError,
    MecrouteError,
    ModelNotFoundError,
    NodeNotReadyError,
)
from mecroute_registry.facts import ModelVersion, parse_ref
from mecroute_registry.selection import select
from mecroute_registry.store import Registry
from mecroute_server.attempt import attempt
from mecroute_server.errors import ModelBusyError
from mecroute_server.pool import EnginePool
from mecroute_server.remembered import NodeMemory
from mecroute_server.settings import ServerSettings
from mecroute_server.slot import ModelSlot

if TYPE_CHECKING:
    from mecroute_registry.remote.base import RemoteStore

_T = TypeVar("_T")


class _Cancelled(Exception):
    """Raised in a pull's progress report to end it: the store keeps what has come, and resumes from there."""


class Deployer:
    """Deploys models to this node; belongs to the pool's event loop.

    Pulls run in two threads of their own, so that a long download delays no load and no request.

    Args:
        settings: the node's settings; its store is the only place a model is pulled from.
        registry: the node's own registry.
        pool: where the model is to serve.
        memory: remembers what was deployed.
    """

    def __init__(
        self, settings: ServerSettings, registry: Registry, pool: EnginePool, memory: NodeMemory
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._pool = pool
        self._memory = memory
        self._puller = ThreadPoolExecutor(max_workers=2, thread_name_prefix="mecroute-pull")
        self._store: RemoteStore | None = None

    def check(self) -> None:
        """Make sure that the store could be asked; contacts nothing.

        Raises:
            UsageError: its URI is not one that we know.
            MissingExtraError: what it needs is not installed.
        """
        if self._settings.store_uri is not None:
            self._open_store()

    async def deploy(self, ref: str, digest: str | None = None, *, remember: bool = True) -> ModelSlot:
        """Start to deploy a model and return at once; its slot shows how far it is.

        The same deployment asked for twice is one deployment; one that serves already is left alone.

        Args:
            ref: `name:version`, or `name` or `name@sha256:…`, which are looked up first.
            digest: the manifest digest it must have; None accepts the one the store names.
            remember: whether it is to be there after a restart.

        Raises:
            InvalidRequestError: `ref` is not a reference, or another digest of it is on its way.
            ConfigError: the node does not have the model, nor a store to pull it from.
            ModelNotFoundError, RemoteStoreError: looking up a reference without a version failed.
            NodeNotReadyError: the node is stopping.
        """
        if self._pool.closing:
            raise self._stopping()
        ref, digest = await self._resolve(ref, digest)
        slot = self._pool.slot(ref)
        if slot is not None and slot.file is not None:
            raise InvalidRequestError(
                f"'{ref}' is served from {slot.file}, so nothing can be deployed under that name",
                hint="restart the node without that file",
                model=ref,
            )
        if slot is not None and slot.deployment is not None:
            if digest is not None and slot.wanted_digest != digest:
                raise InvalidRequestError(
                    f"another deployment of '{ref}' is under way",
                    hint=f"wait for it, or cancel it with POST /admin/models/{ref}/unload",
                    model=ref,
                )
            return slot
        if slot is not None:
            slot.stopped = False
        if slot is not None and slot.loaded is not None and self._is_wanted(slot.model, digest):
            if remember:
                self._remember(slot)
            return slot
        is_new = slot is None
        slot = slot or self._pool.add_ref(ref)
        try:
            local = await self._in_thread(self._local, ref)
            if not self._is_wanted(local, digest) and self._settings.store_uri is None:
                raise self._no_store(ref, digest, local)
        except BaseException:
            if is_new:
                self._pool.discard(slot)
            raise
        if self._pool.closing:
            raise self._stopping()
        if slot.deployment is None:  # the same request may have come again while this one looked
            slot.cancelled = False
            slot.wanted_digest = digest
            wanted = local if self._is_wanted(local, digest) else None
            slot.begin("pulling" if wanted is None else "verifying", "waiting for its turn")
            slot.deployment = self._pool.spawn(self._run(slot, digest, wanted, remember))
        return slot

    async def remove(self, ref: str, *, drain: bool = False) -> None:
        """Remove a model from this node: from memory, from its registry, and from what it remembers.

        Args:
            ref: `name:version`.
            drain: whether to wait for its requests to end, taking no new ones; else it must have none.

        Raises:
            ModelNotFoundError: this node has no such model.
            ModelBusyError: it has requests.
            InvalidRequestError: it is served from a file, which is not the node's to delete.
        """
        slot = self._pool.slot(ref)
        if slot is not None and slot.file is not None:
            raise InvalidRequestError(
                f"'{ref}' is served from {slot.file}, which is not in the node's registry",
                hint=f"POST /admin/models/{ref}/unload takes it out of memory",
                model=ref,
            )
        local = await self._in_thread(self._local, ref)
        if slot is None and local is None:
            raise ModelNotFoundError(
                f"node '{self._settings.node}' has no model '{ref}'",
                hint="GET /admin/models lists those it has; name one with its version",
                model=ref,
            )
        if slot is not None:
            in_flight = slot.loaded.in_flight if slot.loaded is not None else 0
            if in_flight and not drain:
                raise ModelBusyError(
                    f"'{ref}' answers {in_flight} requests",
                    hint="DELETE with ?drain=true waits for them and takes no new ones",
                    retryable=True,
                    model=ref,
                )
            await self._pool.unload(slot)
            slot.pinned = False
        self._memory.removed(ref)
        if local is not None:
            await self._in_thread(self._registry.remove, ref)
        if slot is not None:
            self._pool.discard(slot)

    async def close(self) -> None:
        """End the pulling threads; call it when the pool has closed and so no deployment is left."""
        await asyncio.to_thread(self._puller.shutdown)

    def _remember(self, slot: ModelSlot) -> None:
        if slot.model is not None:
            self._memory.deployed(slot.ref, slot.model.digest)

    async def _run(
        self, slot: ModelSlot, digest: str | None, local: ModelVersion | None, remember: bool
    ) -> None:
        try:
            async with slot.lock:
                with attempt(slot):
                    if slot.loaded is not None and self._is_wanted(slot.model, digest):
                        slot.succeed()  # loaded while this one waited for the lock
                        if remember:
                            self._remember(slot)
                        return
                    try:
                        model = local or await self._pull(slot, digest)
                        self._stop_if_cancelled(slot)
                        with self._remembering(slot.ref, model.digest if remember else None):
                            await self._pool.load_locked(slot, model)
                    except (_Cancelled, MecrouteError):
                        # A store may have put its own error around ours.
                        if not slot.cancelled:
                            raise
                        slot.rest("the deployment was cancelled; the next one resumes it")
        finally:
            slot.deployment = None
            slot.wanted_digest = None

    @contextmanager
    def _remembering(self, ref: str, digest: str | None) -> Iterator[None]:
        """Remember a deployment before anybody is told that it serves, and forget it if it fails."""
        before = self._memory.models().get(ref)
        if digest is not None:
            self._memory.deployed(ref, digest)
        try:
            yield
        except BaseException:
            if digest is not None:
                self._memory.deployed(ref, before.digest if before is not None else None)
            raise

    async def _pull(self, slot: ModelSlot, digest: str | None) -> ModelVersion:
        slot.begin("pulling", f"from {self._settings.store_uri}")

        def progress(done: int, total: int) -> None:
            self._stop_if_cancelled(slot)
            slot.progress = (done, total)

        def pull() -> ModelVersion:
            self._stop_if_cancelled(slot)
            return self._open_store().pull(slot.ref, self._registry, expect_digest=digest, progress=progress)

        return await self._in_thread(pull)

    async def _resolve(self, ref: str, digest: str | None) -> tuple[str, str | None]:
        """The reference with its version, and the digest it must have."""
        try:
            name, rest = parse_ref(ref)
        except ValueError as error:
            raise InvalidRequestError(str(error), model=ref) from error
        if rest is not None and not rest.startswith("sha256:"):
            return ref, digest
        if rest is not None and digest not in (None, rest):
            raise InvalidRequestError(f"'{ref}' and the digest {digest} contradict each other", model=ref)
        wanted = rest or digest
        models = await self._in_thread(self._known_versions)
        where = self._settings.store_uri or str(self._registry.root)
        model = select(f"{name}@{wanted}" if wanted else name, models, where)
        return model.ref, model.digest

    def _known_versions(self) -> list[ModelVersion]:
        return self._registry.list() if self._settings.store_uri is None else self._open_store().list()

    def _local(self, ref: str) -> ModelVersion | None:
        try:
            return self._registry.get(ref)
        except ModelNotFoundError:
            return None

    @staticmethod
    def _is_wanted(model: ModelVersion | None, digest: str | None) -> bool:
        return model is not None and digest in (None, model.digest)

    def _stopping(self) -> NodeNotReadyError:
        return NodeNotReadyError(f"node '{self._settings.node}' is stopping", retryable=True, tier="mec")

    def _no_store(self, ref: str, digest: str | None, local: ModelVersion | None) -> ConfigError:
        node = self._settings.node
        held = f"has '{ref}' with digest {local.digest}, not {digest}," if local else f"does not have '{ref}'"
        return ConfigError(
            f"node '{node}' {held} and has no model store to pull it from",
            hint="set [store] uri (MECROUTE_STORE_URI) where the node is started",
            model=ref,
        )

    def _open_store(self) -> RemoteStore:
        from mecroute_registry.remote import open_remote

        if self._store is None:
            assert self._settings.store_uri is not None
            self._store = open_remote(
                self._settings.store_uri,
                endpoint_url=self._settings.store_endpoint_url,
                region=self._settings.store_region,
            )
        return self._store

    @staticmethod
    def _stop_if_cancelled(slot: ModelSlot) -> None:
        if slot.cancelled:
            raise _Cancelled

    async def _in_thread(self, work: Callable[..., _T], *args: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._puller, work, *args)
