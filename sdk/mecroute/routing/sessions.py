"""Keeps a conversation at its node, where its tokens are, until that node or its user moves."""

from __future__ import annotations

from hashlib import blake2b

from mecroute.request import Request, message_text
from mecroute.routing.dispatch import Session
from mecroute.routing.rows import Row, Rows

#: A node whose answer would take this many times as long as the best one's has degraded.
_DEGRADED_FACTOR = 2.0
_DEGRADED_MS = 250.0


def session_name(request: Request) -> str | None:
    """What tells a conversation from others: OpenAI's `prompt_cache_key`, or its user and its beginning.

    The system message and the first question stay the same as a conversation grows. Only a hash of them is
    kept. A request that is no conversation has no name.
    """
    messages = request.body.get("messages")
    if not messages or request.task != "chat":
        return None
    named = request.body.get("prompt_cache_key")
    if isinstance(named, str) and named:
        return f"{request.user or ''}|key|{named}"
    beginning = blake2b((request.user or "").encode("utf-8", "surrogatepass"), digest_size=12)
    for message in messages:
        role = str(message.get("role"))
        beginning.update(f"\0{role}\0{message_text(message)}".encode("utf-8", "surrogatepass"))
        if role == "user":
            break
    return beginning.hexdigest()


def goes_on(request: Request) -> bool:
    """Whether a request continues a conversation, so that its tokens may lie at some node."""
    return bool(request.body.get("prompt_cache_key")) or any(
        message.get("role") == "assistant" for message in request.body.get("messages") or ()
    )


def kept(session: Session | None, ranked: Rows, *, zone: str | None, margin: float) -> tuple[Row | None, str]:
    """The row at which a conversation stays, and why; or None and why it is handed over.

    Only ranked targets come into question, so that nothing keeps a request past a hard constraint.

    Args:
        ranked: best first, not empty.
        zone: where the user is now.
        margin: how far below the best score it may be.
    """
    if session is None or margin <= 0:
        return None, ""
    row = ranked.find(session.target_id)
    if row is None:
        return None, f"handed over: {session.target_id} can no longer serve the conversation"
    if zone is not None and session.zone is not None and zone != session.zone and row.state.zone != zone:
        return None, f"handed over: the user moved from '{session.zone}' to '{zone}'"
    best = ranked[0]
    if best.score - row.score > margin:
        return None, f"handed over: {row.id} is {best.score - row.score:.3f} below the best score"
    if row.p50_ms > best.p50_ms * _DEGRADED_FACTOR + _DEGRADED_MS and best.nearness <= row.nearness:
        return None, f"handed over: {row.id} would take {row.p50_ms:.0f} ms, {best.id} {best.p50_ms:.0f} ms"
    return row, "the conversation stays at its node"
