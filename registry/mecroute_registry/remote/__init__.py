"""Stores that models are pushed to and pulled from."""

from __future__ import annotations

from mecroute_registry.errors import UsageError
from mecroute_registry.remote.base import RemoteStore

__all__ = ["RemoteStore", "open_remote"]


def open_remote(uri: str, *, endpoint_url: str | None = None, region: str | None = None) -> RemoteStore:
    """Return the store that a URI names; nothing is contacted yet.

    Args:
        uri: `s3://bucket/prefix`.
        endpoint_url: the URL of an S3-compatible service; AWS itself when None.
        region: the AWS region; the standard AWS configuration decides when None.

    Raises:
        UsageError: the URI is not one that we know.
    """
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "s3":
        from mecroute_registry.remote.s3 import S3Store

        return S3Store(uri, endpoint_url=endpoint_url, region=region)
    raise UsageError(f"'{uri}' is not a model store", hint="give a URI like s3://bucket/prefix")
