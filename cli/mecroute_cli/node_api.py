"""Talks to one MEC node's admin endpoints; every failure says which node and what to do."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from mecroute.config import NodeConfig
from mecroute.errors import (
    AuthenticationError,
    MecrouteError,
    ModelNotFoundError,
    NodeNotReadyError,
    TierResponseError,
    TierUnreachableError,
)
from mecroute.nodes.report import ModelReport, NodeReport

_TIMEOUT = httpx.Timeout(10.0, connect=3.0)


class NodeApi:
    """One node's admin endpoints, over one HTTP connection pool. A context manager; safe between threads.

    Args:
        node: name, URL and key of the node.
    """

    def __init__(self, node: NodeConfig) -> None:
        self.node = node
        key = node.key()
        self._http = httpx.Client(
            base_url=node.url.rstrip("/"),
            timeout=_TIMEOUT,
            headers={"authorization": f"Bearer {key}"} if key else {},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def report(self) -> NodeReport:
        """The node's report on itself and its models."""
        body = self._call("GET", "/admin/node")
        try:
            return NodeReport.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise TierResponseError(
                f"node '{self.node.name}' sent a report that cannot be read: "
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
                hint="is another version of mecroute serving there?",
                tier="mec",
            ) from error

    def model(self, ref: str) -> ModelReport | None:
        """The state of one model on the node; None when it knows none of that reference."""
        return next((model for model in self.report().models if model.ref == ref), None)

    def deploy(self, ref: str, digest: str | None) -> None:
        """Ask the node to pull, verify and load a model; it answers before that is done."""
        self._call("POST", "/admin/models", {"ref": ref, "digest": digest})

    def load(self, ref: str) -> None:
        """Ask the node to bring a model that it has into memory; it answers before that is done."""
        self._call("POST", f"/admin/models/{quote(ref, safe=':')}/load")

    def unload(self, ref: str) -> None:
        """Ask the node to take a model out of memory; it answers when the model's last request has ended."""
        self._call("POST", f"/admin/models/{quote(ref, safe=':')}/unload")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = "connection refused" if isinstance(error, httpx.ConnectError) else type(error).__name__
            raise TierUnreachableError(
                f"node '{self.node.name}' at {self.node.url} cannot be reached: {reason}",
                hint=f"is it running? `mecroute serve --node {self.node.name}` starts one",
                retryable=True,
                tier="mec",
            ) from error
        if response.is_success:
            try:
                return response.json()
            except ValueError as error:
                raise self._unreadable(response) from error
        raise self._refused(response)

    def _unreadable(self, response: httpx.Response) -> TierResponseError:
        return TierResponseError(
            f"{response.request.url} answered {response.status_code} with something that is no JSON",
            hint=f"is {self.node.url} a mecroute node?",
            tier="mec",
        )

    def _refused(self, response: httpx.Response) -> MecrouteError:
        try:
            error = response.json()["error"]
            message, hint = str(error["message"]), error.get("hint")
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._unreadable(response)
        where = f"node '{self.node.name}' refused: {message}"
        if response.status_code in (401, 403):
            return AuthenticationError(
                where,
                hint=f"set api_key or api_key_env of node '{self.node.name}' in mecroute.toml",
                tier="mec",
            )
        if response.status_code == 404:
            return ModelNotFoundError(where, hint=hint, tier="mec")
        kind = NodeNotReadyError if response.status_code == 503 else TierResponseError
        return kind(where, hint=hint, tier="mec")
