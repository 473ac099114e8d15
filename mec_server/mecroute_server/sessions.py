"""Conversations of this node: how requests name them, and which engine holds one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from mecroute.engines.llama.kv_snapshot import SESSION_NAME, KvSnapshot, decode_head
from mecroute.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    SessionConflictError,
    SessionNotFoundError,
)
from mecroute_server.pool import EnginePool
from mecroute_server.slot import Lease

if TYPE_CHECKING:
    from mecroute.engines.llama.engine import LlamaEngine
    from mecroute.engines.llama.kv_memory import Resident

SESSION_HEADER = "x-mecroute-session"
#: Keys of resident conversations that a node reports, at most: see `ModelReport.prefixes`.
MAX_REPORTED_PREFIXES = 256


def session_name(headers: Mapping[str, str]) -> str | None:
    """What a request calls its conversation, or None.

    Raises:
        InvalidRequestError: it is not a name.
    """
    name = headers.get(SESSION_HEADER)
    return None if name is None else checked_name(name)


def checked_name(name: str) -> str:
    """A session's name, as it may stand in a header or a path.

    Raises:
        InvalidRequestError: it is not one.
    """
    if not SESSION_NAME.fullmatch(name):
        raise InvalidRequestError(
            "a session's name has 1 to 128 letters, digits, dots, colons, hyphens and underscores",
            hint=f"send another {SESSION_HEADER}",
        )
    return name


def reported_prefixes(residents: list[Resident]) -> list[str]:
    """The keys to report, of the conversation used last first, and of each the longest beginning first."""
    keys: dict[str, None] = {}
    for resident in residents:
        for key in reversed(resident.keys):
            keys[key] = None
            if len(keys) == MAX_REPORTED_PREFIXES:
                return list(keys)
    return list(keys)


def list_sessions(pool: EnginePool) -> list[dict[str, Any]]:
    """The conversations in memory that have a name, the one used last first, model by model."""
    return [
        {
            "model": ref,
            "session": resident.session,
            "key": resident.keys[-1] if resident.keys else None,
            "tokens": resident.tokens,
            "running": resident.running,
        }
        for ref, engine in _engines(pool)
        for resident in engine.residents()
        if resident.session or resident.keys
    ]


async def export_session(pool: EnginePool, name: str, model: str | None) -> KvSnapshot:
    """Copy a conversation out of the memory of the engine that holds it.

    Args:
        pool: the node's engines.
        name: a session's name or a prefix key.
        model: the only model to look in, or None.

    Raises:
        SessionNotFoundError: no engine holds it.
        MecrouteError: as `Sessions.export`; or there is no such model.
    """
    async with _lent(pool, model) as leases:
        for lease in leases:
            if any(name == one.session or name in one.keys for one in lease.engine.residents()):
                return await asyncio.to_thread(lease.engine.sessions.export, name)
    raise SessionNotFoundError(
        f"no conversation '{name}' is in memory", hint="GET /admin/sessions lists those that are"
    )


async def import_session(pool: EnginePool, data: bytes, name: str, model: str | None) -> tuple[str, int]:
    """Take a conversation into the memory of the engine of its model.

    Args:
        pool: the node's engines.
        data: what an export gave.
        name: what it is called from now on; a prefix key of it names nothing new.
        model: the only model that it may go to, or None.

    Returns:
        The model's reference, and how many tokens came.

    Raises:
        InvalidSnapshotError: it is not whole, or not what it says.
        SessionConflictError: no engine here has its model file, build and KV cells.
        MecrouteError: as `Sessions.admit`; or there is no such model.
    """
    head = await asyncio.to_thread(decode_head, data)
    session = None if name in head.keys else name
    refusal: SessionConflictError | None = None
    async with _lent(pool, model) as leases:
        for lease in leases:
            try:
                snapshot = await asyncio.to_thread(lease.engine.sessions.admit, data, session)
                return lease.ref, len(snapshot.tokens)
            except SessionConflictError as error:
                refusal = refusal or error
    raise refusal or ModelNotFoundError("this node serves no generative model", hint="deploy one first")


@asynccontextmanager
async def _lent(pool: EnginePool, model: str | None) -> AsyncIterator[list[Lease]]:
    """Leases of one engine, or of every generative one that serves."""
    if model is not None:
        leases = [await pool.acquire(model)]
    else:
        refs = {ref for ref, _ in _engines(pool)}
        loaded = [(slot.ref, slot.loaded) for slot in pool.ready() if slot.ref in refs]
        leases = [held.lease(ref) for ref, held in loaded if held is not None]
    try:
        yield leases
    finally:
        for lease in leases:
            lease.release()


def _engines(pool: EnginePool) -> Iterator[tuple[str, LlamaEngine]]:
    from mecroute.engines.llama.engine import LlamaEngine

    for slot in pool.ready():
        if slot.loaded is not None and isinstance(slot.loaded.engine, LlamaEngine):
            yield slot.ref, slot.loaded.engine
