"""What is read of a long text: its beginning and its end."""

from __future__ import annotations

#: Instructions stand before what they are about or after it, so both ends are read; the time that reading
#: takes stays bounded, whatever was pasted in between.
READ_CHARS = 2000


def excerpt(text: str) -> str:
    """The text, or of one beyond 4,000 characters the first 2,000 and the last 2,000."""
    if len(text) <= 2 * READ_CHARS:
        return text
    return f"{text[:READ_CHARS]} {text[-READ_CHARS:]}"
