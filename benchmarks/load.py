"""Load on an OpenAI-compatible server: prompts that are the same for everybody, and what answers took."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

TOPICS = ("harbour", "mountain", "orchard", "railway", "glacier", "market", "lantern", "violin", "desert")
STORY = (
    "the old quiet river carried boats past a mill where people traded grain cloth and stories while "
    "children counted birds above the bridge and the evening light turned every window gold"
)


@dataclass
class Sample:
    """One round of one server. Times in seconds; `computed`: tokens of prompts that no cache held."""

    tokens: int = 0
    computed: int = 0
    wall: float = 0.0
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "tok/s": self.tokens / self.wall,
            "ttft p50 ms": quantile(self.ttft, 0.50) * 1e3,
            "ttft p95 ms": quantile(self.ttft, 0.95) * 1e3,
            "gap p95 ms": quantile(self.gaps, 0.95) * 1e3,
            "prompt tok": float(max(1, self.computed)),
        }


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))] if ordered else float("nan")


def text(rng: random.Random, words: int) -> str:
    vocabulary = STORY.split()
    return " ".join(rng.choice(vocabulary) for _ in range(words))


def question(rng: random.Random, words: int = 20) -> str:
    return f"Tell a long story about a {rng.choice(TOPICS)}. It begins so: {text(rng, words)}"


def client(url: str, timeout_s: float = 300) -> httpx.AsyncClient:
    # A new connection each time: llama-server closes a kept one after a stream.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits)


async def ask(
    http: httpx.AsyncClient,
    model: str,
    messages: list[dict[str, str]],
    sample: Sample,
    *,
    max_tokens: int,
    headers: dict[str, str] | None = None,
    said: list[str] | None = None,
    **fields: Any,
) -> int:
    """Stream one answer; the status it was given. Errors of the connection go through.

    Args:
        said: the pieces of the answer are added to it.
    """
    body = {
        "model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}, **fields,
    }  # fmt: skip
    begun = last = time.perf_counter()
    first, usage, pieces = True, 0, 0
    async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        if response.status_code != 200:
            await response.aread()
            return response.status_code
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return 500
            if chunk.get("usage"):
                usage = chunk["usage"]["completion_tokens"]
                cached = (chunk["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                sample.computed += chunk["usage"]["prompt_tokens"] - cached
            if not chunk["choices"] or not chunk["choices"][0]["delta"].get("content"):
                continue
            now = time.perf_counter()
            pieces += 1
            if said is not None:
                said.append(chunk["choices"][0]["delta"]["content"])
            if first:
                sample.ttft.append(now - begun)
                first = False
            else:
                sample.gaps.append(now - last)
            last = now
    sample.tokens += usage or pieces  # llama-cpp-python's server streams no usage; a piece is a token there
    return 200


class RawClient:
    """One kept connection that posts JSON bodies: next to no work of its own, so that on a small machine the
    servers are measured and not the client. For answers with a content-length."""

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._url.host, self._url.port)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._url.host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = answer.partition(b"content-length:")[2].partition(b"\r\n")[0]
        return int(answer[9:12]), await self._reader.readexactly(int(length))

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()
