"""Notices that the caller of a plain (not streamed) request has left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

_T = TypeVar("_T")


class CallerLeftError(Exception):
    """The caller closed its connection; nobody will read the answer."""


async def unless_caller_leaves(request: Request, work: Awaitable[_T]) -> _T:
    """Wait for `work`, and cancel it when the request's connection is closed.

    Args:
        request: a request whose body has been read.
        work: what makes the answer.

    Raises:
        CallerLeftError: the connection was closed first; `work` has been cancelled.
    """
    answer = asyncio.ensure_future(work)
    gone = asyncio.create_task(_wait_until_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise CallerLeftError
        return await answer
    finally:
        for task in (answer, gone):
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
                if not task.cancelled():
                    task.exception()  # nobody is left to tell; read, so that asyncio does not call it lost


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
