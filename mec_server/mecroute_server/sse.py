"""Streamed answers: pieces in an API's own framing, kept alive while there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from mecroute.errors import MecrouteError
from mecroute_server.framing import OPENAI_EVENTS, Framing

_log = logging.getLogger(__name__)

#: A request that waits or has a long prompt shows signs of life this often, so that neither the client nor
#: a proxy takes the connection for dead.
_HEARTBEAT_S = 10.0

#: Under this name in a request's state: an ASGI `send` for what follows the head of an answer. It passes by
#: the layers between edge and route, which look at the head only.
SEND_BODY = "send_body"


class EventStream(StreamingResponse):
    """A streamed answer.

    An error in mid-stream is sent as the last piece, and the stream then ends without what marks a complete
    one (`[DONE]`): what was delivered is all that the client may take as the answer.

    Args:
        chunks: the pieces.
        on_end: called exactly once, when the last piece has been sent and what marks the end has not: True;
            or once the caller has left or an error has ended it: False.
        first: the piece before those, where it has been asked for already.
        framing: how they travel.
    """

    def __init__(
        self,
        chunks: AsyncIterator[dict[str, Any]],
        *,
        on_end: Callable[[bool], None],
        first: Awaitable[dict[str, Any]] | None = None,
        framing: Framing = OPENAI_EVENTS,
    ) -> None:
        self._chunks = chunks
        self._first = first
        self._on_end = on_end
        self._framing = framing
        self._complete = False
        self._sent_at = 0.0
        self._send_body: Send | None = None
        super().__init__(
            (),  # `stream_response` sends the pieces
            media_type=framing.media_type,
            # Proxies (nginx first) must pass each event on when it comes.
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; Starlette cancels it when the caller leaves."""
        self._send_body = scope.get("state", {}).get(SEND_BODY)
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._complete:
                self._on_end(False)

    async def stream_response(self, send: Send) -> None:
        """Send the pieces, and a heartbeat when there has been none for a while."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        send = self._send_body or send
        self._sent_at = asyncio.get_running_loop().time()
        heart = asyncio.create_task(self._beat(send))
        try:
            await self._send_pieces(send)
        finally:
            heart.cancel()
            with suppress(asyncio.CancelledError):
                await heart
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(0.05, self._sent_at + _HEARTBEAT_S - now()))
            if now() - self._sent_at >= _HEARTBEAT_S:
                self._sent_at = now()
                await send(_message(self._framing.heartbeat))

    async def _send_pieces(self, send: Send) -> None:
        # No generator around another here: a step passes all weights through the caches, so that the code of
        # a token always runs cold. What takes 7 us in a loop takes some 70 after a step.
        framing, now = self._framing, asyncio.get_running_loop().time
        sent = 0
        try:
            if self._first is not None:
                sent = 1
                await send(_message(framing.encode(await self._first)))
            async for chunk in self._chunks:
                sent += 1
                self._sent_at = now()
                await send(_message(framing.encode(chunk)))
            self._complete = True
            self._on_end(True)
            if framing.end:
                await send(_message(framing.end))
        except MecrouteError as error:
            _log.warning("a stream broke off: %s", error)
            await send(_message(framing.encode(framing.failure(error, sent))))
        except Exception:  # noqa: BLE001 - the edge: the status line is long gone, and the caller must learn of it
            _log.exception("a stream broke off")
            failure = MecrouteError("internal error", hint="the server's log says more")
            await send(_message(framing.encode(framing.failure(failure, sent))))


def _message(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}
