"""Streamed answers: pieces in an API's own framing, kept alive while there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mecroute.errors import MecrouteError
from mecroute_server.framing import OPENAI_EVENTS, Framing

_log = logging.getLogger(__name__)

#: A request that waits or has a long prompt shows signs of life this often, so that neither the client nor
#: a proxy takes the connection for dead.
_HEARTBEAT_S = 10.0


class EventStream(StreamingResponse):
    """A streamed answer.

    An error in mid-stream is sent as the last piece, and the stream then ends without what marks a complete
    one (`[DONE]`): what was delivered is all that the client may take as the answer.

    Args:
        chunks: the pieces.
        on_end: called exactly once when the stream is over; True if every chunk was delivered, False if
            the caller left or an error ended it.
        framing: how they travel.
    """

    def __init__(
        self,
        chunks: AsyncIterator[dict[str, Any]],
        *,
        on_end: Callable[[bool], None],
        framing: Framing = OPENAI_EVENTS,
    ) -> None:
        self._on_end = on_end
        self._framing = framing
        self._complete = False
        super().__init__(
            self._events(chunks),
            media_type=framing.media_type,
            # Proxies (nginx first) must pass each event on when it comes.
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; Starlette cancels it when the caller leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end(self._complete)

    async def stream_response(self, send: Send) -> None:
        """Send the pieces, and a heartbeat when there has been none for a while."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()

        async def beat() -> None:
            while True:
                await asyncio.sleep(max(0.05, sent_at + _HEARTBEAT_S - loop.time()))
                if loop.time() - sent_at >= _HEARTBEAT_S:
                    await emit(self._framing.heartbeat)

        async def emit(event: bytes) -> None:
            nonlocal sent_at
            sent_at = loop.time()
            await send({"type": "http.response.body", "body": event, "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        heart = asyncio.create_task(beat())
        try:
            async for event in self.body_iterator:
                assert isinstance(event, bytes)
                await emit(event)
        finally:
            heart.cancel()
            with suppress(asyncio.CancelledError):
                await heart
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes]:
        framing = self._framing
        sent = 0
        try:
            async for chunk in chunks:
                sent += 1
                yield framing.encode(chunk)
            self._complete = True
            if framing.end:
                yield framing.end
        except MecrouteError as error:
            _log.warning("a stream broke off: %s", error)
            yield framing.encode(framing.failure(error, sent))
        except Exception:  # noqa: BLE001 - the edge: the status line is long gone, and the caller must learn of it
            _log.exception("a stream broke off")
            failure = MecrouteError("internal error", hint="the server's log says more")
            yield framing.encode(framing.failure(failure, sent))
