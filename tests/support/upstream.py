"""A stand-in for a MEC node or a cloud: a real HTTP server whose answers and faults a test sets."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

WORDS = ["The ", "quick ", "brown ", "fox ", "jumps ", "over ", "the ", "lazy ", "dog."]


@dataclass
class Upstream:
    """What the server answers, and what it was asked.

    Args:
        continues: whether a final assistant message is continued.
        break_after: chunks after which a stream's connection is cut; None never cuts.
        status: answer every call with this status instead.
        error_headers: what such an answer carries.
        delay_s: wait before answering.
        calls: whether a stream begins with part of a tool call where tools are offered.
        repeats: start a continuation with this text, as a merely instructed model may.
        logprob: of every word, for who asks for log-probabilities; None gives none.
        refuses_logprobs: answer 400 to who asks for them.
        others: what further whole answers say, one after the other, in place of `words`.
        classes: what `/v1/classify` answers, as probabilities of `a` and `b`.
    """

    words: list[str] = field(default_factory=lambda: list(WORDS))
    continues: bool = True
    break_after: int | None = None
    status: int | None = None
    error_code: str | None = None
    error_headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    calls: bool = False
    repeats: str = ""
    logprob: float | None = None
    refuses_logprobs: bool = False
    others: list[str] = field(default_factory=list)
    classes: tuple[float, float] = (0.9, 0.1)
    garbage: bytes | None = None
    report: dict[str, Any] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cancelled: int = 0
    url: str = ""

    def remaining(self, body: dict[str, Any]) -> list[str]:
        """The words that are still to come, given what the prompt already ends with."""
        messages = body.get("messages") or [{}]
        prefix = next((m["content"] for m in reversed(messages) if m.get("role") == "assistant"), "")
        done = 0
        while done < len(self.words) and "".join(self.words[: done + 1]) in prefix:
            done += 1
        return ([self.repeats] if self.repeats and done else []) + self.words[done:]


def _app(up: Upstream) -> FastAPI:
    app = FastAPI()

    @app.get("/admin/node")
    async def node() -> Response:
        return JSONResponse(up.report or {}, status_code=200 if up.report else 404)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await request.json()
        up.requests.append(body)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [{"object": "embedding", "index": i, "embedding": [0.6, 0.8]} for i in range(len(texts))]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": usage})

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        body = await request.json()
        up.requests.append(body)
        if up.status is not None:
            return JSONResponse({"error": {"message": "the fault"}}, status_code=up.status)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        label = "ab"[up.classes.index(max(up.classes))]
        data = [
            {"index": i, "label": label, "probs": list(up.classes), "num_classes": 2}
            for i in range(len(texts))
        ]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": usage})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        up.requests.append(body)
        up.headers.append(dict(request.headers))
        await asyncio.sleep(up.delay_s)
        if up.garbage is not None:
            return Response(up.garbage, media_type="application/json")
        if up.status is not None:
            error = {"message": "the fault a test asked for", "code": up.error_code}
            headers = {"retry-after": "2"} if up.status == 429 else {}
            return JSONResponse({"error": error}, status_code=up.status, headers=headers | up.error_headers)
        if up.refuses_logprobs and body.get("logprobs"):
            return JSONResponse({"error": {"message": "logprobs is not known"}}, status_code=400)
        words = up.remaining(body)
        if not body.get("stream"):
            if up.others and len(up.requests) > 1:
                words = [up.others[(len(up.requests) - 2) % len(up.others)]]
            return JSONResponse(_completion(up, body, words))
        return StreamingResponse(_sse(up, body, words), media_type="text/event-stream")

    return app


def _completion(up: Upstream, body: dict[str, Any], words: list[str]) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(words)},
        "finish_reason": "stop",
    }
    if body.get("logprobs") and up.logprob is not None:
        choice["logprobs"] = {"content": [{"token": word, "logprob": up.logprob} for word in words]}
    return {
        "id": "upstream-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 5 + len(words)},
    }


async def _sse(up: Upstream, body: dict[str, Any], words: list[str]) -> AsyncIterator[str]:
    def event(delta: dict[str, Any], finish: str | None = None, choice: int = 0) -> str:
        chunk = {
            "id": "upstream-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": choice, "delta": delta, "finish_reason": finish}],
        }
        return f"data: {json.dumps(chunk)}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        sent = 0
        if up.calls and body.get("tools"):
            call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
            yield event({"tool_calls": [call]})
        for choice in range(body.get("n") or 1):
            for word in words:
                if up.break_after is not None and sent >= up.break_after:
                    raise ConnectionResetError
                yield event({"content": word}, choice=choice)
                sent += 1
                await asyncio.sleep(0.005)
            yield event({}, "stop", choice)
        yield "data: [DONE]\n\n"
    except asyncio.CancelledError:
        up.cancelled += 1
        raise


class _Quiet(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """Signals belong to the test run."""


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an app with uvicorn in a thread on a free loopback port; yields its base URL."""
    # What still waits at the end (a delay that a test asked for) is not waited for.
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = _Quiet(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the test server did not start")
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@contextmanager
def upstream(**settings: Any) -> Iterator[Upstream]:
    """A running upstream with these settings; change them while it runs."""
    up = Upstream(**settings)
    with running(_app(up)) as url:
        up.url = url
        yield up
