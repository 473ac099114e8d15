"""Runs the chat template of a model file, which is somebody's program, within bounds of work and size.

Jinja's sandbox keeps a template from Python's insides. It does not keep it from loops within loops over a
long conversation, from macros that call themselves twice, or from a text that is doubled forty times. Here
each rendering has a budget of loop passes and calls, what an operation makes has a largest size, and so has
all that is made. What an operation would make is reckoned before, where it can be much more than it is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextvars import ContextVar
from datetime import datetime
from functools import cache, wraps
from typing import Any

from mecroute.errors import MissingExtraError

#: Loop passes of one rendering, where a call or a filter counts as ten: a second or two. A template takes a
#: few dozen for each message and tool.
MAX_STEPS = 5_000_000
_STEPS_OF_A_CALL = 10
#: Characters of a text, items of a list; a prompt beyond that fits no context.
MAX_SIZE = 16_000_000
#: Of everything that is made, in characters; an item of a list is a pointer.
MAX_MADE = 500_000_000
_ITEM = 8
#: Widths and counts that a template gives to a filter, a method or a format, and the bits of a number.
MAX_NUMBER = 100_000
MAX_BITS = 4096

#: No chat template needs these, and each can make very much of little.
_LEFT_OUT_FILTERS, _LEFT_OUT_GLOBALS = ("urlize", "wordwrap"), ("lipsum",)
#: Filters that look at every text in a list, or add all up.
_WALKING = frozenset({"join", "sort", "unique", "min", "max", "groupby", "dictsort"})
#: Filters that pass on what is in a list, and write nothing as text.
_LEAVE_ITEMS = frozenset(
    {
        *("length", "count", "list", "first", "last", "map", "select", "selectattr", "reject", "rejectattr"),
        *("default", "d", "items", "dictsort", "attr", "batch", "slice", "reverse", "groupby", "unique"),
        *("min", "max", "sort", "sum", "random"),
    }
)
#: Formats that ask for a width of six digits, or for one that is another argument.
_WIDE_FORMAT = re.compile(r"\d{6}|%[^a-zA-Z%]*\*|\{[^{}]*\{")


class _Steps:
    """What a rendering may still do."""

    def __init__(self) -> None:
        self.left = MAX_STEPS
        self._may_make = MAX_MADE

    def take(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise _refusal(f"it takes more than {MAX_STEPS:,} steps")

    def make(self, characters: int) -> None:
        self._may_make -= characters
        if self._may_make < 0:
            raise _refusal(f"it makes more than {MAX_MADE:,} characters in all")


_rendering: ContextVar[_Steps | None] = ContextVar("mecroute_template_steps", default=None)


def _steps() -> _Steps:
    return _rendering.get() or _Steps()  # constants are folded when a template is compiled


def render(template: Any, **variables: Any) -> str:
    """Render a template of `environment()`.

    Raises:
        jinja2.TemplateError: the template fails, or goes beyond a bound.
        TypeError, ValueError, OverflowError, RecursionError, MemoryError: it does what cannot be done.
    """
    token = _rendering.set(_Steps())
    try:
        return str(template.render(**variables))
    finally:
        _rendering.reset(token)


def _refusal(why: str) -> Exception:
    import jinja2

    return jinja2.TemplateRuntimeError(f"the template was stopped: {why}")


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise _refusal(f"it makes a value of {size:,} characters or items")


def _sized(value: Any) -> Any:
    """The value, if it is not too large."""
    if isinstance(value, Sized):
        _check_size(len(value))
        _steps().make(len(value) * (1 if isinstance(value, str | bytes) else _ITEM))
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _refusal(f"it makes a number of {value.bit_length():,} bits")
    return value


def _counted(values: Any) -> Any:
    """What a loop passes over."""
    steps = _steps()
    if isinstance(values, Sized):  # a loop that asks for its length must still be answered
        steps.take(len(values))
        return values

    def passes() -> Iterator[Any]:
        for value in values:
            steps.take()
            yield value

    return passes()


def _shallow(value: Any) -> Any:
    """What is about to be written as text: a list that holds another a thousand times, and so on, is not."""
    _check_size(_length(value))
    return value


def _length(value: Any) -> int:
    """How long a value is when it is written, about: of a list, that of all that it holds."""
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, list | tuple | dict):
        return 0
    steps, waiting, length = _steps(), [value], 0
    while waiting:
        items = waiting.pop()
        steps.take(len(items))
        for item in items.values() if isinstance(items, dict) else items:
            if isinstance(item, str | bytes):
                length += len(item)
                _check_size(length)
            elif isinstance(item, list | tuple | dict):
                waiting.append(item)
    return length


def _joined(texts: Iterable[str]) -> str:
    """What the pieces of an output make."""
    pieces, size = [], 0
    for text in texts:
        size += len(text)
        _check_size(size)
        pieces.append(text)
    _steps().make(size)
    return "".join(pieces)


def _check_use(name: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a call that would make something huge in one go; also a step.

    Args:
        name: of a filter, or of a text's method; empty for another function.
        arguments: the text or list that it is applied to comes first.
    """
    _steps().take(_STEPS_OF_A_CALL)
    for value in arguments:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise _refusal(f"it asks for {value:,}")
        if name and name not in _LEAVE_ITEMS:
            _shallow(value)
    text, *rest = arguments or ("",)
    if name == "sum" and any(isinstance(value, list | tuple) for value in rest):
        raise _refusal("it adds lists up")
    if name in _WALKING:
        _check_size(sum(map(_length, arguments)))
        if name == "join" and isinstance(text, list | tuple):  # the filter: a text may go between its items
            _check_size(len(text) * max(map(_length, rest), default=0))
    if isinstance(text, str):
        _check_size(len(text) + _added(name, text, rest))


def _added(name: str, text: str, rest: Sequence[Any]) -> int:
    """By how much a filter or a method can lengthen a text at most, beyond what it is given.

    Args:
        name: of the filter or the method.
        text: that it is applied to.
        rest: its other arguments.
    """
    most = max((max(_length(value), value if isinstance(value, int) else 0) for value in rest), default=0)
    if name in ("format", "format_map"):
        if _WIDE_FORMAT.search(text):
            raise _refusal("it formats with a width that is too large, or unknown")
        return max(text.count("%"), text.count("{")) * most
    if name == "replace" and len(rest) > 1:
        return text.count(str(rest[0])) * len(str(rest[1]))
    if name == "join":  # a method: the text goes between the others
        count = next((len(value) for value in rest if isinstance(value, list | tuple)), 0)
        return count * len(text)
    if name == "indent":
        return (text.count("\n") + 1) * most
    if name == "expandtabs":
        return text.count("\t") * most
    return len(text) * most if name == "translate" else 0


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are kept small."""

    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja's own first argument

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        args = _held(name, args)
        _check_use(name, (*args[skipped:], *kwargs.values()))
        return _sized(function(*args, **kwargs))

    return bounded


def _held(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call; what is looked at as a whole, in lists, so that it can be measured first."""
    if name not in _WALKING:
        return arguments
    return tuple(list(_counted(value)) if isinstance(value, Iterator) else value for value in arguments)


def _method_of_text(target: Any) -> tuple[str, tuple[str, ...]]:
    """The name of a text's method, and the text; empty for anything else."""
    method = getattr(target, "__wrapped__", target)  # Jinja's sandbox wraps `format`
    owner = getattr(method, "__self__", None)
    return (str(getattr(method, "__name__", "")), (owner,)) if isinstance(owner, str) else ("", ())


@cache
def environment() -> Any:
    """Where chat templates are compiled, with the settings and functions that they are written for, those of
    transformers' apply_chat_template.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2
        from jinja2 import nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("device", "rendering a chat template") from error

    def through(name: str, node: Any, line: int) -> Any:
        # A filter: unlike a function's, its name cannot be given another meaning by the template.
        return nodes.Filter(node, name, [], [], None, None, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "%", "**"})
        concat = staticmethod(_joined)

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            tree = super()._parse(source, name, filename)
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = through("__counted__", loop.iter, loop.lineno)
            for concat in list(tree.find_all(nodes.Concat)):
                parts = [through("__shallow__", part, concat.lineno) for part in concat.nodes]
                joined = nodes.Concat(parts, lineno=concat.lineno)
                concat.nodes = [through("__sized__", joined, concat.lineno)]
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "*":
                for value, count in ((left, right), (right, left)):
                    if isinstance(value, Sized) and isinstance(count, int):
                        _check_size(len(value) * count)
            elif operator == "**" and not (abs(left) <= MAX_NUMBER and abs(right) <= 64):
                raise _refusal(f"it asks for {left} ** {right}")
            elif operator == "%" and isinstance(left, str):
                _check_use("format", (left, *(right if isinstance(right, tuple) else (right,))))
            return _sized(super().call_binop(context, operator, left, right))

        def call(self, context: Any, target: Any, /, *args: Any, **kwargs: Any) -> Any:
            name, owner = _method_of_text(target)
            args = _held(name, args)
            _check_use(name, (*owner, *args, *kwargs.values()))
            return _sized(super().call(context, target, *args, **kwargs))

    made = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=_shallow
    )

    def tojson(value: object, indent: int | None = None, **_: object) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    # Jinja's own is for HTML and escapes quotes and angle brackets.
    made.filters["tojson"] = tojson
    made.filters = {
        name: _bounded(name, function)
        for name, function in made.filters.items()
        if name not in _LEFT_OUT_FILTERS
    }
    made.filters |= {"__counted__": _counted, "__sized__": _sized, "__shallow__": _shallow}
    for name in _LEFT_OUT_GLOBALS:
        del made.globals[name]
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made
