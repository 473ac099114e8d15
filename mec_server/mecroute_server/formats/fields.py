"""Reads the fields of a request that is about to be translated into OpenAI's form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mecroute.errors import InvalidRequestError


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors about translated fields name those that the caller sent.

    Args:
        names: from a part of OpenAI's name for a field to the caller's; the longest should come first.
    """
    try:
        yield
    except InvalidRequestError as error:
        for ours, theirs in names.items():
            error.message = error.message.replace(ours, theirs)
        raise


def text(fields: Mapping[str, Any], name: str, where: str = "") -> str | None:
    """A text, or None.

    Raises:
        InvalidRequestError: it is something else.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(f"{where}{name} is not a text")
    return value


def messages_in(fields: Mapping[str, Any], name: str = "messages") -> list[Mapping[str, Any]]:
    """A list of objects; empty where it is absent.

    Raises:
        InvalidRequestError: it is something else.
    """
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise InvalidRequestError(f"{name} is not a list")
    for at, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise InvalidRequestError(f"{name}[{at}] is not an object")
    return value


def role_of(message: Mapping[str, Any], allowed: Collection[str], where: str) -> str:
    """A message's role.

    Raises:
        InvalidRequestError: it is none of those allowed.
    """
    role = message.get("role")
    if not isinstance(role, str) or role not in allowed:
        raise InvalidRequestError(
            f"{where}.role is {role!r}", hint=f"it must be one of {', '.join(sorted(allowed))}"
        )
    return role


def joined_text(content: Any, types: Collection[str], where: str, separator: str = "") -> str:
    """The text of a content that is a string or a list of text parts.

    Args:
        content: as it was sent.
        types: what a text part may be called.
        where: names the content in an error.
        separator: goes between two parts.

    Raises:
        InvalidRequestError: there is none, or a part is something else (an image, a tool's result…).
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(f"{where} is not a text or a list of text parts")
    texts: list[str] = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in types:
            raise InvalidRequestError(
                f"{where}[{at}] of type {kind!r} is not supported by this server",
                hint=f"only parts of type {' or '.join(sorted(types))} are",
            )
        if not isinstance(part.get("text"), str):
            raise InvalidRequestError(f"{where}[{at}] has no text")
        texts.append(part["text"])
    return separator.join(texts)
