"""What kind of request this is: whatever comes with the same instructions.

An app asks for the same thing again and again: its system message, or the classes it names, stay while the
text changes. Models differ far more between such kinds than a general difficulty tells: an encoder that knows
the classes names them better than any small language model, and is no help with a science question.
"""

from __future__ import annotations

from hashlib import blake2b

from mecroute.request import Request, message_text

#: Instructions are told apart by so many of their first characters.
_READ_CHARS = 4096
_INSTRUCTING = ("system", "developer")


def request_kind(request: Request, language: str | None = None) -> str | None:
    """A name for requests with these instructions: the task and a digest, from which no text can be had.

    Without instructions, chats in a language other than English are of a kind of their own: what models are
    measured on is English, and small ones may know little else.

    Args:
        language: ISO 639-1 code of the language of the request, where it is known.

    Returns:
        None where the request says nothing beyond its own text.
    """
    if request.task == "classify":
        labels = request.body.get("labels")
        return f"classify-{_digest('|'.join(sorted(labels)))}" if labels else "classify"
    if request.task != "chat":
        return None
    told = [message_text(m) for m in request.body["messages"] if m.get("role") in _INSTRUCTING]
    if not told and request.app is None:
        return None if language in (None, "en") else f"chat-{language}"
    return f"chat-{_digest('|'.join((request.app or '', *told)))}"


def _digest(text: str) -> str:
    return blake2b(text[:_READ_CHARS].encode("utf-8", "replace"), digest_size=6).hexdigest()
