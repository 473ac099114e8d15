"""Request bodies that Triton's clients have compressed."""

from __future__ import annotations

import zlib

from mecroute.errors import InvalidRequestError
from mecroute_server.body import too_large

#: Content-Encoding → the window that zlib takes for it; `deflate` is zlib's own format.
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body as it was before it was compressed.

    Args:
        body: as it came.
        encoding: the request's Content-Encoding.
        max_bytes: the largest that it may become; no more than that is ever held.

    Raises:
        InvalidRequestError: an encoding that is not supported, or bytes that are not of it.
        BodyTooLargeError: it is larger.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    window = _WINDOWS.get(encoding)
    if window is None:
        raise InvalidRequestError(
            f"the Content-Encoding '{encoding[:50]}' is not supported", hint="gzip, deflate or none"
        )
    stream = zlib.decompressobj(window)
    try:
        data = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequestError(f"the request body is not {encoding}: {error}") from error
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    if not stream.eof or stream.unused_data:
        raise InvalidRequestError(f"the request body is not one whole {encoding} stream")
    return data
