"""The closest edge zone, as the mobile network tells it: CAMARA Simple Edge Discovery 2.x.

The API names zones and no endpoints, so the configuration says which node stands in which zone. Tested
against a server of the same interface, not against an operator's.
"""

from __future__ import annotations

import os
import uuid
from typing import Any
from urllib.parse import urlsplit

import httpx

from mecroute.config.discovery import CamaraSource
from mecroute.errors import AuthenticationError, ConfigError, TierResponseError, TierUnreachableError
from mecroute.nodes.discovery.admission import is_loopback
from mecroute.nodes.discovery.base import Found, FoundNode

_PATH = "/simple-edge-discovery/v2/retrieve-closest-edge-cloud-zone"
_TIMEOUT = httpx.Timeout(5.0, connect=3.0)
_MAX_ZONES = 64


class Camara:
    """Asks the operator which zone is closest; see `Discovery`."""

    def __init__(self, source: CamaraSource) -> None:
        root = urlsplit(source.root)
        if root.scheme != "https" and not is_loopback(root.hostname or ""):
            raise ConfigError(
                f"[[discovery]] '{source.name}': root is not https, and a bearer token goes there",
                hint="use the operator's https:// address",
            )
        self._source = source
        self._url = source.root.rstrip("/") + _PATH
        self._http = httpx.AsyncClient(follow_redirects=False, timeout=_TIMEOUT)

    async def find(self) -> Found:
        """Ask once; see `Discovery`."""
        source = self._source
        token = os.environ.get(source.token_env)
        if not token:
            raise AuthenticationError(
                f"[[discovery]] '{source.name}': the variable {source.token_env} holds no token",
                hint=f"export {source.token_env}=… (scope simple-edge-discovery:read)",
            )
        body = {"device": source.device} if source.device is not None else {}
        headers = {"authorization": f"Bearer {token}", "x-correlator": str(uuid.uuid4())}
        try:
            response = await self._http.post(self._url, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise TierUnreachableError(
                f"{self._url} cannot be reached ({type(error).__name__})",
                hint="check root, and the network",
                retryable=True,
                tier="mec",
            ) from error
        if response.status_code != 200:
            raise self._refusal(response)
        return self._read(response)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _read(self, response: httpx.Response) -> Found:
        try:
            told = response.json()
        except ValueError as error:
            raise self._nonsense("the answer is not JSON") from error
        # The schema says one zone, the prose a list of them: both are taken.
        zones = told if isinstance(told, list) else [told]
        if len(zones) > _MAX_ZONES or not all(isinstance(zone, dict) for zone in zones):
            raise self._nonsense("the answer is not a zone, or a list of zones")
        nodes, notes = [], []
        for rank, zone in enumerate(zones):
            names = [zone.get("edgeCloudZoneId"), zone.get("edgeCloudZoneName")]
            known = next((n for n in names if isinstance(n, str) and n in self._source.zones), None)
            if known is None:
                shown = " / ".join(str(name)[:100] for name in names if name) or "a zone without a name"
                notes.append(f"no node is configured for the closest zone, {shown}")
                continue
            zone_name = zone.get("edgeCloudZoneName")
            nodes.append(
                FoundNode(
                    name=known,
                    url=self._source.zones[known],
                    zone=zone_name if isinstance(zone_name, str) else known,
                    rank=rank,
                )
            )
        return Found(nodes, self._source.refresh_s, tuple(notes))

    def _refusal(self, response: httpx.Response) -> AuthenticationError | TierUnreachableError:
        try:
            told: Any = response.json()
            reason = f"{told['code']}: {told['message']}"[:300]
        except (ValueError, KeyError, TypeError):
            reason = "no reason given"
        message = f"{self._url} answered {response.status_code} ({reason})"
        if response.status_code in (401, 403):
            return AuthenticationError(
                message, hint=f"check the token in {self._source.token_env}, and its scope"
            )
        return TierUnreachableError(
            message,
            hint="404 says that the operator does not know the device; set `device`",
            retryable=response.status_code >= 500 or response.status_code == 429,
            tier="mec",
        )

    def _nonsense(self, what: str) -> TierResponseError:
        return TierResponseError(
            f"{self._url}: {what}", hint="is root that of a Simple Edge Discovery 2.x API?", tier="mec"
        )
