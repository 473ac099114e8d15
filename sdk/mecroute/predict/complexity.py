"""How demanding a request is for a language model, from cheap features of its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mecroute.context import RequestFeatures
from mecroute.predict.kind import request_kind
from mecroute.request import Need, Request, message_text

#: Characters per token of English under common BPE vocabularies (32k to 128k entries).
CHARS_PER_TOKEN = 4.0
_TOKENS_PER_MESSAGE = 6  # role and turn markers of common chat templates
_PART_NEEDS: Mapping[str, Need] = {"image_url": "images", "input_audio": "audio"}

_SIGNALS: tuple[tuple[str, float, re.Pattern[str]], ...] = (
    ("asks for reasoning", 0.30, re.compile(
        r"\b(prove|proof|derive|deduce|reason|why|step[- ]by[- ]step|justify|trade-?offs?|implications?|"
        r"critique|evaluate|analy[sz]e|root cause|hypothes[ie]s)\b", re.I)),
    ("asks to compare or plan", 0.20, re.compile(
        r"\b(compare|contrast|versus|pros and cons|design|plan|strategy|architect\w*|optimi[sz]e)\b", re.I)),
    ("holds code", 0.20, re.compile(
        r"```|\b(def|class|function|SELECT .+ FROM|import|#include|implement|refactor|debug|stack trace|"
        r"algorithm|regex)\b")),
    ("holds mathematics", 0.20, re.compile(
        r"\b(integral|derivative|theorem|equation|probability|matrix|eigen\w*|solve for)\b|[∑∫√≤≥≠]|"
        r"\d\s*[-+*/^]\s*\d", re.I)),
    ("asks for a long or structured text", 0.12, re.compile(
        r"\b(essay|report|article|story|letter|table|json|yaml|outline|in detail|at least \d+)\b", re.I)),
)  # fmt: skip
_LENGTH_SATURATES_AT = 800  # prompt tokens beyond which length tells no more
_LENGTH_WEIGHT = 0.25
_CONSTRAINTS = re.compile(r"^\s*(?:[-*]|\d+[.)])\s", re.M)
_FEW_OUTPUT = re.compile(
    r"\b(yes or no|true or false|one word|which of|what is the (?:capital|name)|how many|when (?:did|was|is)|"
    r"who (?:is|was|wrote)|classify|label)\b", re.I
)  # fmt: skip


def estimate_tokens(text: str) -> int:
    """Tokens of a text, from its length; at least 1. Non-Latin scripts take about one per character."""
    if text.isascii():
        return max(1, round(len(text) / CHARS_PER_TOKEN))
    wide = sum(character > "\u02ff" for character in text)
    return max(1, round(wide + (len(text) - wide) / CHARS_PER_TOKEN))


def request_features(
    request: Request,
    *,
    usual_output_tokens: float | None = None,
    difficulty: Callable[[str], float] | None = None,
) -> RequestFeatures:
    """Read the features of a request.

    Args:
        difficulty: a learned difficulty (0..1) of a text; the complexity is then the mean of it and of what
            the signals say, since neither sees all: the one learned from examination questions alone.
        usual_output_tokens: mean answer length of this user, where it is known; it is blended with
            what the text suggests.
    """
    text = request.text()
    prompt_tokens = estimate_tokens(text)
    if request.task in ("embed", "classify", "infer"):
        return RequestFeatures(0.0, (), prompt_tokens, 0, kind=request_kind(request))
    turns = 1
    instructions = text
    needs: set[Need] = set()
    if request.task == "chat":
        messages = request.body["messages"]
        prompt_tokens += _TOKENS_PER_MESSAGE * len(messages)
        turns = sum(message.get("role") == "user" for message in messages)
        instructions = next((message_text(m) for m in reversed(messages) if m.get("role") == "user"), text)
        needs |= _content_needs(messages)
    needs |= _body_needs(request.body)
    signalled, reasons = _complexity(instructions, prompt_tokens, turns)
    complexity = signalled
    if difficulty is not None:
        learned = difficulty(instructions)
        complexity = (signalled + learned) / 2
        reasons.append(f"learned difficulty {learned:.2f}")
    return RequestFeatures(
        complexity=complexity,
        reasons=tuple(reasons),
        prompt_tokens=prompt_tokens,
        output_tokens=_output_tokens(instructions, signalled, request.body, usual_output_tokens),
        needs=frozenset(needs),
        kind=request_kind(request),
    )


def _complexity(text: str, prompt_tokens: int, turns: int) -> tuple[float, list[str]]:
    score, reasons = 0.05, []
    for reason, weight, pattern in _SIGNALS:
        hits = len(pattern.findall(text))
        if hits:
            # A second and third signal of a kind add half as much; more tell nothing new.
            score += weight * (1 + 0.5 * (min(hits, 3) - 1))
            reasons.append(reason)
    length = min(1.0, prompt_tokens / _LENGTH_SATURATES_AT)
    score += _LENGTH_WEIGHT * length
    if length > 0.5:
        reasons.append("long")
    listed = len(_CONSTRAINTS.findall(text))
    if listed >= 3:
        score += 0.10
        reasons.append(f"{listed} listed constraints")
    if turns > 3:
        score += 0.05
        reasons.append("long conversation")
    return min(1.0, score), reasons


def _output_tokens(text: str, complexity: float, body: Mapping[str, Any], usual: float | None) -> int:
    guess = 16.0 if _FEW_OUTPUT.search(text) else 40 + 400 * complexity
    if usual is not None:
        guess = (guess + usual) / 2
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return max(1, round(min(guess, limit) if limit else guess))


def _content_needs(messages: Any) -> set[Need]:
    parts = (
        part
        for message in messages
        if isinstance(message.get("content"), list | tuple)
        for part in message["content"]
        if isinstance(part, Mapping)
    )
    return {_PART_NEEDS[part["type"]] for part in parts if part.get("type") in _PART_NEEDS}


def _body_needs(body: Mapping[str, Any]) -> set[Need]:
    needs: set[Need] = set()
    if body.get("tools"):
        needs.add("tools")
    # What `tools` replaced, and GBNF, which only our own engine knows.
    needs |= {name for name in ("functions", "grammar") if body.get(name)}
    if body.get("logprobs") or body.get("top_logprobs"):
        needs.add("logprobs")
    if body.get("logit_bias"):
        needs.add("logit_bias")
    if isinstance(body.get("n"), int) and body["n"] > 1:
        needs.add("several_choices")
    kind = (body.get("response_format") or {}).get("type", "text")
    if kind != "text":
        needs.add(kind)
    return needs
