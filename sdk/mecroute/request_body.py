"""What a request's body may hold: JSON, in the shapes that are read on this side of the wire.

Whatever else is wrong with a body is for the target to say; here it is made sure that nothing in it can
break a decision, a cache key or the writing of the call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mecroute.errors import InvalidRequestError

#: Deeper than any JSON schema or message; `json` itself gives up at about a thousand.
_DEEPEST = 200
#: What 64 bits hold. Longer whole numbers are no seeds, counts or token ids.
_LARGEST = 2**64
_SHOWN_CHARS = 60
_MOST_LABELS, _LABEL_CHARS = 1024, 200
_PLAIN = frozenset({bool, type(None)})


def check_body(task: str, body: Mapping[str, Any]) -> None:
    """Refuse a body that this client could not read or send.

    Raises:
        InvalidRequestError: the message names the field and what is wrong with it.
    """
    _check_json(body)
    if task == "chat":
        _check_messages(body.get("messages"))
    elif task == "completion":
        if not isinstance(body.get("prompt"), str) or not body["prompt"]:
            raise InvalidRequestError("prompt must be a text that is not empty")
    elif task == "embed":
        _check_input(body.get("input"))
    elif task == "classify":
        _check_input(body.get("input"))
        _check_labels(body.get("labels"))
    elif task == "infer":
        _check_tensors(body.get("inputs"))
    for name in ("max_tokens", "max_completion_tokens", "n", "top_k")[: 4 if task == "classify" else 3]:
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidRequestError(f"{name} must be a whole number of at least 1, not {shown(value)}")
    _check_options(body)


def shown(value: object) -> str:
    """A value as an error names it: short, and safe whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a foreign __repr__, a text that holds itself, a number too long
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _check_json(body: Mapping[str, Any]) -> None:
    """Walk everything once. Depth comes before breadth, so that what holds itself is found at once."""
    waiting: list[tuple[str, Any, int]] = [(str(name), value, 1) for name, value in body.items()]
    while waiting:
        where, value, depth = waiting.pop()
        kind = type(value)
        if kind is str:
            # A text that cannot be encoded holds half of a surrogate pair, and is none.
            if not value.isascii():
                _check_text(where, value)
        elif kind in _PLAIN:
            continue
        elif isinstance(value, float):
            if not math.isfinite(value):
                _refuse(where, value, "no number that JSON can hold")
        elif isinstance(value, int):
            if not -_LARGEST <= value <= _LARGEST:
                _refuse(where, value, "beyond 64 bits")
        elif isinstance(value, str):
            _check_text(where, value)
        elif isinstance(value, dict | list | tuple):
            if depth >= _DEEPEST:
                raise InvalidRequestError(f"{where} is nested more than {_DEEPEST} deep, or holds itself")
            if isinstance(value, dict):
                for name, item in value.items():
                    if not isinstance(name, str):
                        _refuse(where, name, "no name of a JSON field")
                    if not name.isascii():
                        _check_text(where, name)
                    waiting.append((where, item, depth + 1))
            else:
                kinds = set(map(type, value))
                if kinds <= {int, float}:
                    _check_numbers(where, value)
                else:
                    waiting += [(where, item, depth + 1) for item in value]
        else:
            _refuse(where, value, "no JSON")


def _check_numbers(where: str, values: Sequence[float]) -> None:
    """A tensor's data, say: a loop over each would cost more than the call."""
    if values and not (min(values) >= -_LARGEST and max(values) <= _LARGEST and math.isfinite(sum(values))):
        for value in values:
            if isinstance(value, float) and not math.isfinite(value):
                _refuse(where, value, "no number that JSON can hold")
            if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
                _refuse(where, value, "beyond 64 bits")


def _check_text(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{where} holds half of a surrogate pair, at character {error.start}",
            hint="decode the text with errors='replace'",
        ) from error


def _refuse(where: str, value: object, why: str) -> NoReturn:
    raise InvalidRequestError(f"{where} holds {shown(value)} ({type(value).__name__}), which is {why}")


def _check_messages(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InvalidRequestError("messages must be a list of {'role': …, 'content': …}")
    if not messages:
        raise InvalidRequestError("messages is empty", hint="send at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequestError(f"messages[{index}] must be an object with 'role' and 'content'")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequestError(f"messages[{index}].role is missing")
        content, calls = message.get("content"), message.get("tool_calls")
        if calls is not None and not _is_list_of_objects(calls):
            raise InvalidRequestError(f"messages[{index}].tool_calls must be a list of objects")
        if isinstance(content, str) or (content is None and calls):
            continue
        if content is None or not _is_list_of_objects(content):
            raise InvalidRequestError(f"messages[{index}].content must be a text or a list of parts")
        for part in content:
            if not isinstance(part.get("type", ""), str) or not isinstance(part.get("text") or "", str):
                raise InvalidRequestError(f"messages[{index}].content holds a part of no known shape")


def _check_input(given: object) -> None:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise InvalidRequestError("input must be a text or a list of texts, none of them empty")


def _check_labels(labels: object) -> None:
    if labels is None:
        return
    if not isinstance(labels, list | tuple) or not labels:
        raise InvalidRequestError("labels must be a list of texts, at least one")
    if len(labels) > _MOST_LABELS:
        raise InvalidRequestError(f"labels has {len(labels)} classes; the limit is {_MOST_LABELS}")
    for at, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip() or len(label) > _LABEL_CHARS:
            raise InvalidRequestError(
                f"labels[{at}] must be a text of at most {_LABEL_CHARS} characters, not {shown(label)}"
            )
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InvalidRequestError(f"labels has {shown(twice)} twice")


def _check_tensors(tensors: object) -> None:
    if not isinstance(tensors, Sequence) or isinstance(tensors, str) or not tensors:
        raise InvalidRequestError("inputs must be a list of tensors, at least one")
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, dict) or not {"name", "shape", "datatype", "data"} <= tensor.keys():
            raise InvalidRequestError(
                f"inputs[{index}] must be an object with 'name', 'shape', 'datatype' and 'data'"
            )


def _check_options(body: Mapping[str, Any]) -> None:
    for name in ("response_format", "stream_options", "logit_bias"):
        value = body.get(name)
        if value is not None and not isinstance(value, dict):
            raise InvalidRequestError(f"{name} must be an object, not {shown(value)}")
    form = body.get("response_format")
    if form is not None and not isinstance(form.get("type", "text"), str):
        raise InvalidRequestError(f"response_format.type must be a text, not {shown(form['type'])}")
    for name in ("tools", "functions"):
        value = body.get(name)
        if value is not None and not _is_list_of_objects(value):
            raise InvalidRequestError(f"{name} must be a list of objects")


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value)
