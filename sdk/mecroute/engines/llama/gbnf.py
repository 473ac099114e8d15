"""Looks a GBNF grammar over before llama.cpp sees it, which some grammars would crash or stall.

llama.cpp refuses bad syntax, unknown names and left recursion by itself. It also expands every way in which
a rule can begin, recursively and without a bound: twenty rules that each name the next one twice keep it
busy for minutes, and a hundred thousand parentheses overflow its stack. Tokens by name or number (`<[5]>`,
`!<think>`) are refused: llama.cpp offers some that it then ends the process over.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mecroute.errors import InvalidRequestError

MAX_CHARS = 100_000
#: Parentheses and rules that begin with a rule.
MAX_DEPTH = 100
#: Ways in which a rule may begin. JSON has about 20.
MAX_BEGINNINGS = 5_000

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]*
    | (?P<rule>[A-Za-z0-9-]+)[ \t]*::=
    | (?P<name>[A-Za-z0-9-]+)
    | (?P<text>"(?:\\.|[^"\\])*")
    | (?P<terminal>\[(?:\\.|[^\]\\])*\] | \.)
    | (?P<count>\{\s*(?P<least>\d{1,6})?\s*(?P<comma>,)?\s*(?P<most>\d{1,6})?\s*\})
    | (?P<mark>[()|?*+])""",
    re.VERBOSE | re.DOTALL,
)


class _Openings(NamedTuple):
    """How something can begin: with one of `beginnings` terminals, or by being empty in `empties` ways."""

    beginnings: int
    empties: int


_TERMINAL, _NOTHING = _Openings(1, 0), _Openings(0, 1)


class _Node(NamedTuple):
    """A part of a grammar: a terminal, a rule's name, or alternatives, each a sequence of nodes."""

    name: str | None = None
    alternatives: tuple[tuple[_Node, ...], ...] | None = None
    openings: _Openings = _TERMINAL
    least: int = 1
    most: int = 1


def check_gbnf(grammar: str, *, field: str) -> None:
    """Make sure that a grammar is one that llama.cpp can be given.

    Args:
        grammar: GBNF with a rule named root.
        field: of the request, named in errors.

    Raises:
        InvalidRequestError: it is too large, cannot be read, or can begin in too many ways.
    """
    if len(grammar) > MAX_CHARS or "\0" in grammar:
        raise _refusal(field, f"is longer than {MAX_CHARS:,} characters, or holds a zero byte")
    rules = _parse(grammar, field)
    if "root" not in rules:
        raise _refusal(field, "has no rule named 'root'")
    try:
        _Checker(rules, field).check()
    except RecursionError as error:
        raise _refusal(field, "is nested too deeply") from error


def _refusal(field: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field}: the grammar {problem}", hint="see llama.cpp's grammars/README.md for its GBNF"
    )


def _parse(grammar: str, field: str) -> dict[str, _Node]:
    rules: dict[str, _Node] = {}
    name: str | None = None
    # Each level of parentheses: its alternatives so far, the last one being read.
    levels: list[list[list[_Node]]] = []
    at = 0
    while True:
        match = _TOKEN.match(grammar, at)
        starts_rule = match is not None and match["rule"] is not None
        if (at == len(grammar) or starts_rule) and name is not None:
            if len(levels) != 1:
                raise _refusal(field, f"has an open parenthesis in the rule '{name}'")
            rules[name] = _group(levels.pop())
        if at == len(grammar):
            return rules
        if match is None:
            raise _refusal(field, f"cannot be read from {grammar[at : at + 20]!r} on")
        at = match.end()
        kind = match.lastgroup
        if kind is None:
            continue
        if kind == "rule":
            name, levels = match["rule"], [[[]]]
            continue
        if name is None:
            raise _refusal(field, "does not begin with a rule")
        if match["mark"] == "(":
            levels.append([[]])
            if len(levels) > MAX_DEPTH:
                raise _refusal(field, f"has more than {MAX_DEPTH} parentheses within each other")
        elif match["mark"] == ")":
            if len(levels) < 2:
                raise _refusal(field, f"closes a parenthesis too many in the rule '{name}'")
            node = _group(levels.pop())
            levels[-1][-1].append(node)
        elif match["mark"] == "|":
            levels[-1].append([])
        elif match["mark"] or match["count"]:
            sequence = levels[-1][-1]
            if not sequence:
                raise _refusal(field, f"repeats nothing in the rule '{name}'")
            sequence[-1] = _repeated(sequence[-1], match)
        elif match["name"]:
            levels[-1][-1].append(_Node(name=match["name"]))
        else:
            openings = _NOTHING if match["text"] == '""' else _TERMINAL
            levels[-1][-1].append(_Node(openings=openings))


def _group(alternatives: list[list[_Node]]) -> _Node:
    return _Node(alternatives=tuple(tuple(sequence) for sequence in alternatives))


def _repeated(node: _Node, match: re.Match[str]) -> _Node:
    if match["mark"]:
        least, most = {"?": (0, 1), "*": (0, 2), "+": (1, 2)}[match["mark"]]
    else:
        least = int(match["least"] or 0)
        most = int(match["most"]) if match["most"] else (2 if match["comma"] else least)
    if (node.least, node.most) != (1, 1):
        node = _Node(alternatives=((node,),))
    return node._replace(least=min(least, 1), most=most)


class _Checker:
    def __init__(self, rules: dict[str, _Node], field: str) -> None:
        self._rules = rules
        self._field = field
        self._known: dict[str, _Openings] = {}
        self._open: set[str] = set()

    def check(self) -> None:
        for name in self._rules:
            self._rule(name)
        # What follows a terminal is expanded in the same way once that terminal has come.
        for name, node in self._rules.items():
            self._tails(node, name)

    def _rule(self, name: str) -> _Openings:
        known = self._known.get(name)
        if known is not None:
            return known
        if name not in self._rules:
            raise _refusal(self._field, f"names a rule '{name}' that it does not have")
        if name in self._open:
            raise _refusal(self._field, f"is left-recursive in the rule '{name}'")
        if len(self._open) >= MAX_DEPTH:
            raise _refusal(self._field, f"has more than {MAX_DEPTH} rules that begin with each other")
        self._open.add(name)
        found = self._node(self._rules[name], name)
        self._open.remove(name)
        self._known[name] = found
        return found

    def _node(self, node: _Node, rule: str) -> _Openings:
        if node.name is not None:
            once = self._rule(node.name)
        elif node.alternatives is None:
            once = node.openings
        else:
            each = [self._sequence(sequence, rule) for sequence in node.alternatives]
            once = _Openings(sum(o.beginnings for o in each), sum(o.empties for o in each))
        if once.empties and node.most > 1:
            raise _refusal(self._field, f"repeats something that may be empty in the rule '{rule}'")
        if node.most == 0:
            return _NOTHING
        return self._bounded(_Openings(once.beginnings, once.empties + (node.least == 0)), rule)

    def _sequence(self, sequence: tuple[_Node, ...], rule: str) -> _Openings:
        beginnings = 0
        for node in sequence:
            openings = self._node(node, rule)
            beginnings += openings.beginnings
            if not openings.empties:
                return self._bounded(_Openings(beginnings, 0), rule)
        return self._bounded(_Openings(beginnings, 1), rule)

    def _tails(self, node: _Node, rule: str) -> None:
        for sequence in node.alternatives or ():
            beginnings = 0
            for part in reversed(sequence):
                openings = self._node(part, rule)
                beginnings = openings.beginnings + (beginnings if openings.empties else 0)
                self._bounded(_Openings(beginnings, 0), rule)
                self._tails(part, rule)

    def _bounded(self, openings: _Openings, rule: str) -> _Openings:
        if openings.empties > 1:
            raise _refusal(self._field, f"can be empty in several ways in the rule '{rule}'")
        if openings.beginnings > MAX_BEGINNINGS:
            raise _refusal(self._field, f"can begin in over {MAX_BEGINNINGS:,} ways in the rule '{rule}'")
        return openings
