"""One S3 bucket through boto3, with boto3's errors in plain words.

Imports boto3, so it is imported only where a store is opened.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

from mecroute_registry.digest import Progress
from mecroute_registry.errors import RemoteStoreError, UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_BUCKET_PATTERN = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONNECT_TIMEOUT_S = 3
_READ_TIMEOUT_S = 20
_ATTEMPTS = 2  # an endpoint that does not answer is reported within about 7 s
_PART_BYTES = 16 << 20
_STREAM_BYTES = 64 << 10  # what a broken connection may cost of what had arrived

#: HEAD has no body that could name the reason. A bare 404 to GET is not S3 speaking: it counts as an error.
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_DENIED = frozenset(
    {
        "401",
        "403",
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
#: A conditional write that lost: somebody else wrote first.
_CONFLICT = frozenset({"409", "412", "ConditionalRequestConflict", "PreconditionFailed"})
_UNCONDITIONAL_ONLY = frozenset({"501", "NotImplemented"})
_BUCKET_IS_OURS = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists", "OperationAborted"})
_NO_CREDENTIALS = (CredentialRetrievalError, NoCredentialsError, PartialCredentialsError, ProfileNotFound)
_NO_ANSWER = (BotoConnectionError, HTTPClientError, IncompleteReadError)


class Listed(NamedTuple):
    """One object of a listing; `modified` by the service's clock."""

    key: str
    etag: str
    size: int
    modified: datetime


class Bucket:
    """The objects under one prefix of a bucket. Thread-safe; nothing is contacted before the first call."""

    def __init__(self, uri: str, endpoint_url: str | None, region: str | None) -> None:
        name, _, prefix = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or not _BUCKET_PATTERN.fullmatch(name):
            raise UsageError(f"'{uri}' is not an S3 URI", hint="give one like s3://bucket/prefix")
        self.name = name
        self.prefix = prefix.strip("/")
        self.where = f"s3://{name} at {endpoint_url or 'AWS'}"
        self._endpoint_url = endpoint_url
        self._region = region
        self._lock = threading.Lock()
        self._client: S3Client | None = None

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        """Return a small object and its ETag; None when there is none.

        Raises:
            RemoteStoreError: the store cannot be reached or refuses, or the object exceeds `limit` bytes.
        """
        with self._errors(f"read {key}"):
            try:
                answer = self._s3().get_object(Bucket=self.name, Key=self._key(key))
            except ClientError as error:
                if _code(error) == "NoSuchKey":
                    return None
                raise
            with contextlib.closing(answer["Body"]) as body:
                data = body.read(limit + 1)
        if len(data) > limit:
            message = f"cannot read {key} of {self.where}: it is larger than {limit} bytes"
            raise RemoteStoreError(message, hint="check that the URI names a mecroute model store")
        return data, answer["ETag"]

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes; None when there is none."""
        with self._errors(f"look for {key}"):
            try:
                return self._s3().head_object(Bucket=self.name, Key=self._key(key))["ContentLength"]
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def names(self, folder: str) -> set[str]:
        """Return the names of the objects in a folder, itself and the slash left out."""
        prefix = self._key(f"{folder}/")
        with self._errors(f"list {folder}"):
            pages = self._s3().get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            return {
                item.get("Key", "").removeprefix(prefix)
                for page in pages
                for item in page.get("Contents", ())
            }

    def list_objects(self, limit: int) -> tuple[list[Listed], datetime]:
        """Return the newest state of at most `limit` objects under the prefix, and the service's own time."""
        prefix = f"{self.prefix}/" if self.prefix else ""
        with self._errors("list the objects"):
            answer = self._s3().list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=limit)
        listed = [
            Listed(
                item.get("Key", "").removeprefix(prefix),
                item.get("ETag", ""),
                item.get("Size", 0),
                item["LastModified"],
            )
            for item in answer.get("Contents", ())
            if "LastModified" in item
        ]
        told = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        try:
            now = parsedate_to_datetime(told)
        except ValueError:
            now = datetime.now(UTC)
        return listed, now

    def delete(self, key: str) -> None:
        """Take an object away; it is no error when there is none."""
        with self._errors(f"delete {key}"):
            self._s3().delete_object(Bucket=self.name, Key=self._key(key))

    def write(self, key: str, data: bytes) -> None:
        """Write a small object, whatever was there."""
        with self._errors(f"write {key}"):
            self._s3().put_object(Bucket=self.name, Key=self._key(key), Body=data)

    def swap(self, key: str, data: bytes, etag: str | None) -> bool:
        """Write an object only if it is still the one read before, where the server supports that.

        Args:
            key: the object.
            data: its new content.
            etag: the ETag read before; None when there was no object.

        Returns:
            Whether it was written; False when somebody else wrote first. A server that ignores conditions
            always writes.
        """
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._errors(f"write {key}"):
            try:
                self._s3().put_object(Bucket=self.name, Key=self._key(key), Body=data, **condition)
            except ClientError as error:
                if _code(error) in _CONFLICT | _MISSING:
                    return False
                if _code(error) not in _UNCONDITIONAL_ONLY:
                    raise
                self._s3().put_object(Bucket=self.name, Key=self._key(key), Body=data)
        return True

    def upload(self, key: str, file: Path, progress: Progress | None) -> None:
        """Write a file as an object, in parts where it is large."""
        total = file.stat().st_size
        lock, done = threading.Lock(), 0

        def count(sent: int) -> None:
            nonlocal done
            with lock:  # boto3 calls this from its transfer threads
                done += sent
                if progress is not None:
                    progress(min(done, total), total)

        # "classic" because boto3's CRT transfer ignores endpoint_url and goes to AWS (boto3#4839).
        config = TransferConfig(
            multipart_threshold=_PART_BYTES,
            multipart_chunksize=_PART_BYTES,
            preferred_transfer_client="classic",
        )
        with self._errors(f"write {key}"), file.open("rb") as source:
            self._s3().upload_fileobj(source, self.name, self._key(key), Callback=count, Config=config)

    def stream(self, key: str, offset: int) -> Generator[bytes]:
        """Yield an object's bytes from `offset` (less than its size) on.

        Raises:
            RemoteStoreError: also in the middle of the object; what was yielded is right.
        """
        with self._errors(f"read {key}"):
            answer = self._s3().get_object(Bucket=self.name, Key=self._key(key), Range=f"bytes={offset}-")
            with contextlib.closing(answer["Body"]) as body:
                if not answer.get("ContentRange", "").startswith(f"bytes {offset}-"):
                    message = f"cannot read {key} of {self.where}: the server ignores Range"
                    raise RemoteStoreError(message, hint="use an S3 service that supports range requests")
                while chunk := body.read(_STREAM_BYTES):
                    yield chunk

    def ensure(self) -> None:
        """Create the bucket when it does not exist."""
        with self._errors("create the bucket"):
            client = self._s3()
            try:
                client.head_bucket(Bucket=self.name)
            except ClientError as error:
                if _code(error) not in _MISSING | {"NoSuchBucket"}:
                    # Some credentials may write objects but not look at the bucket: the write will tell.
                    if _code(error) in _DENIED:
                        return
                    raise
            else:
                return
            # AWS wants the region stated in every region but its first.
            region = client.meta.region_name
            place: dict[str, Any] = (
                {}
                if region in ("us-east-1", "aws-global")
                else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            )
            try:
                client.create_bucket(Bucket=self.name, **place)
            except ClientError as error:
                if _code(error) not in _BUCKET_IS_OURS:
                    raise

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _s3(self) -> S3Client:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> S3Client:
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
            # We verify SHA-256 ourselves, and many S3-compatible services know no CRC trailers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if self._endpoint_url else "auto"},
        )
        try:
            # A session of our own: boto3's default session is not thread-safe.
            return boto3.session.Session(region_name=self._region).client(
                "s3", endpoint_url=self._endpoint_url, config=config
            )
        except ValueError as error:
            message = f"cannot use {self.where}: {error}"
            raise UsageError(message, hint="give the endpoint as a URL like http://host:9000") from error

    @contextlib.contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise self._refused(action, error) from error
        except (BotoCoreError, Boto3Error) as error:
            raise self._failed(action, error) from error

    def _refused(self, action: str, error: ClientError) -> RemoteStoreError:
        """The service answered, with an error."""
        code = _code(error)
        prefix = f"cannot {action} in {self.where}: "
        if code == "NoSuchBucket":
            return RemoteStoreError(
                f"{prefix}there is no such bucket", hint="check the URI; pushing a model creates the bucket"
            )
        reason = error.response.get("Error", {}).get("Message") or code
        if code in _DENIED:
            return RemoteStoreError(
                f"{prefix}access denied ({reason})",
                hint="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do in this bucket",
            )
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        busy = status >= 500 or code in {"SlowDown", "RequestTimeout"}
        message = f"{prefix}the service answered {status} {code} ({reason})"
        hint = "try again in a moment" if busy else "check the URI, the endpoint and the region"
        return RemoteStoreError(message, hint=hint, retryable=busy)

    def _failed(self, action: str, error: Exception) -> RemoteStoreError:
        """No complete answer came."""
        prefix = f"cannot {action} in {self.where}: "
        if isinstance(error, _NO_CREDENTIALS):
            hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile as for the aws command"
            return RemoteStoreError(f"{prefix}no usable AWS credentials ({error})", hint=hint)
        if isinstance(error, SSLError):
            hint = "check the endpoint's scheme and certificate"
            return RemoteStoreError(f"{prefix}no TLS connection ({error})", hint=hint)
        if isinstance(error, _NO_ANSWER):
            hint = "check that the service runs and that the endpoint is right"
            return RemoteStoreError(f"{prefix}it is unreachable ({error})", hint=hint, retryable=True)
        return RemoteStoreError(f"{prefix}{error}", hint="check the AWS configuration and the endpoint")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
