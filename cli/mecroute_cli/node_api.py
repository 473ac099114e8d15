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
from mecroute.network.tls import tls_problem
from mecroute.nodes.report import ModelReport, NodeReport

_TIMEOUT = httpx.Timeout(10.0, connect=3.0)
_DRAIN_TIMEOUT = httpx.Timeout(900.0, connect=3.0)


class NodeApi:
    """One node's admin endpoints, over one HTTP connection pool. A context manager; safe between threads.

    Args:
        node: name, URL, key and TLS files of the node.

    Raises:
        ConfigError: a TLS file cannot be used.
    """

    def __init__(self, node: NodeConfig) -> None:
        self.node = node
        key, tls = node.key(), node.tls()
        self._http = httpx.Client(
            base_url=node.url.rstrip("/"),
            timeout=_TIMEOUT,
            verify=tls.context() if tls is not None else True,
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

    def change(self, ref: str, action: str) -> ModelReport:
        """Have the node do something with one of its models.

        Args:
            ref: `name:version`, or the name of a model served from a file.
            action: `load`, `unload`, `pin` or `unpin`.

        Returns:
            The model's state afterwards; a load that has begun goes on.
        """
        # An unload answers when the model's last request has ended.
        timeout = _DRAIN_TIMEOUT if action == "unload" else _TIMEOUT
        body = self._call("POST", f"/admin/models/{quote(ref, safe=':/')}/{action}", timeout=timeout)
        return ModelReport.model_validate(body)

    def remove(self, ref: str, *, drain: bool) -> None:
        """Have the node remove a model from its memory and its registry.

        Args:
            ref: `name:version`.
            drain: whether to wait for its requests to end; else it must have none.
        """
        path = f"/admin/models/{quote(ref, safe=':/')}?drain={str(drain).lower()}"
        # A request may take as long as the node lets it.
        self._call("DELETE", path, timeout=_DRAIN_TIMEOUT if drain else _TIMEOUT)

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> Any:
        try:
            response = self._http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            reason = "connection refused" if isinstance(error, httpx.ConnectError) else type(error).__name__
            hint = f"is it running? `mecroute serve --node {self.node.name}` starts one"
            if (problem := tls_problem(error, self.node.url, self.node.tls())) is not None:
                reason, hint = problem
            raise TierUnreachableError(
                f"node '{self.node.name}' at {self.node.url} cannot be reached: {reason}",
                hint=hint,
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
