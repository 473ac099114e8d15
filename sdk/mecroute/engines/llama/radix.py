"""A radix tree over token sequences: which of many holders begin like a prompt, in one walk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

H = TypeVar("H")

#: Tokens compared at a time: slices are compared in C.
_BLOCK = 64


class _Node(Generic[H]):
    """An edge and what hangs on it: `label` are its tokens, `depth` how many there are down to its end."""

    __slots__ = ("children", "depth", "holders", "label", "parent")

    def __init__(self, parent: _Node[H] | None, label: tuple[int, ...], depth: int) -> None:
        self.parent = parent
        self.label = label
        self.depth = depth
        self.children: dict[int, _Node[H]] = {}
        #: Everyone whose tokens begin with the tokens down to the end of this edge, in the order of coming.
        self.holders: dict[H, None] = {}


class RadixTree(Generic[H]):
    """Holders of token sequences, by their tokens.

    A lookup costs as much as its prompt is long, however many holders there are. Holders are told apart by
    identity or equality, as in a dictionary. Not thread-safe.
    """

    def __init__(self) -> None:
        self._root: _Node[H] = _Node(None, (), 0)
        self._ends: dict[H, _Node[H]] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, holder: object) -> bool:
        return holder in self._ends

    def length_of(self, holder: H) -> int:
        """How many tokens a holder was put in with; 0 if it is not here."""
        end = self._ends.get(holder)
        return end.depth if end is not None else 0

    def put(self, holder: H, tokens: Sequence[int]) -> None:
        """Say what a holder's tokens are now; a holder of no tokens is taken out."""
        self.discard(holder)
        if not tokens:
            return
        node, at, given = self._root, 0, tuple(tokens)
        while at < len(given):
            child = node.children.get(given[at])
            if child is None:
                child = _Node(node, given[at:], len(given))
                node.children[given[at]] = child
            else:
                shared = common_prefix(child.label, given[at : at + len(child.label)])
                if shared < len(child.label):
                    child = self._split(child, shared)
            child.holders[holder] = None
            node, at = child, child.depth
        self._ends[holder] = node

    def discard(self, holder: H) -> None:
        """Take a holder out, if it is here."""
        end = node = self._ends.pop(holder, None)
        while node is not None and node.parent is not None:
            del node.holders[holder]
            parent = node.parent
            if not node.holders:
                del parent.children[node.label[0]]
            node = parent
        # Where it ended or branched off, an edge may now go on unbranched. Without joining those again, edges
        # of long-lived beginnings would be cut into ever smaller pieces.
        node = end
        while node is not None and node.parent is not None:
            parent = node.parent
            if node.holders:
                self._join(node)
            node = parent

    def matches(self, prompt: Sequence[int]) -> list[tuple[int, dict[H, None]]]:
        """Who begins like a prompt.

        Returns:
            How many tokens are shared and by whom, the most first. A holder stands in every entry up to the
            number of tokens that it shares, so that its first is the one that counts.
        """
        found: list[tuple[int, dict[H, None]]] = []
        node, at, given = self._root, 0, tuple(prompt)
        while at < len(given) and (child := node.children.get(given[at])) is not None:
            shared = common_prefix(child.label, given[at : at + len(child.label)])
            found.append((at + shared, child.holders))
            if shared < len(child.label):
                break
            node, at = child, child.depth
        found.reverse()
        return found

    def ending_on(self, tokens: Sequence[int]) -> Iterator[H]:
        """Holders whose tokens are these or a beginning of these."""
        for depth, holders in self.matches(tokens):
            for holder in holders:
                if self._ends[holder].depth == depth:
                    yield holder

    def _split(self, node: _Node[H], at: int) -> _Node[H]:
        """Cut an edge in two; the first half."""
        assert node.parent is not None
        head: _Node[H] = _Node(node.parent, node.label[:at], node.depth - len(node.label) + at)
        head.holders = dict(node.holders)
        head.children[node.label[at]] = node
        node.parent.children[node.label[0]] = head
        node.parent, node.label = head, node.label[at:]
        return head

    def _join(self, node: _Node[H]) -> None:
        """Make one edge of an edge and the only one after it, if nobody ends in between."""
        if len(node.children) != 1:
            return
        (child,) = node.children.values()
        if len(child.holders) != len(node.holders):
            return
        assert node.parent is not None
        child.label = node.label + child.label
        child.parent = node.parent
        node.parent.children[node.label[0]] = child


def common_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens two sequences of the same type have in common at their start."""
    end = min(len(held), len(prompt))
    at = 0
    while at < end and held[at : at + _BLOCK] == prompt[at : at + _BLOCK]:
        at += _BLOCK
    while at < end and held[at] == prompt[at]:
        at += 1
    return min(at, end)
