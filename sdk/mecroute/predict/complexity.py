"""How demanding a request is for a language model, from cheap features of its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mecroute.classification import chat_instructions, texts_of
from mecroute.context import Conversation, Question, RequestFeatures
from mecroute.predict.excerpt import excerpt
from mecroute.predict.kind import request_kind
from mecroute.predict.language import language_of
from mecroute.predict.question import question_of
from mecroute.predict.signal_words import Wish, signal_words
from mecroute.request import Need, Request, message_text

#: Characters per token of English under common BPE vocabularies (32k to 128k entries).
CHARS_PER_TOKEN = 4.0
#: The same of other languages in Latin script: nine of them took 2.0 to 3.1 with SmolLM2's vocabulary (49k)
#: and 2.7 to 3.7 with Qwen2.5's (152k), where English took 4.3 and 4.5.
CHARS_PER_TOKEN_ELSEWHERE = 3.0
_TOKENS_PER_MESSAGE = 6  # role and turn markers of common chat templates
_TOKENS_AROUND_LABEL = 1  # that ends it
_PART_NEEDS: Mapping[str, Need] = {"image_url": "images", "input_audio": "audio"}

#: What raises the complexity: words of the request's own language, and marks that every language shares.
_WISHES: tuple[tuple[Wish, float, str], ...] = (
    ("reason", 0.30, "asks for reasoning"),
    ("plan", 0.20, "asks to compare or plan"),
    ("long", 0.12, "asks for a long or structured text"),
)
_CODE_WEIGHT, _MATHS_WEIGHT = 0.20, 0.20
_CODE_WORDS = frozenset(
    ("def", "class", "function", "import", "implement", "refactor", "debug", "algorithm", "regex")
)
_CODE_MARKS = ("```", "#include", "stack trace", "</", "();", "=>")
_SQL = re.compile(r"\bSELECT [^\n]{1,200} FROM\b")
_MATHS = (
    "integral derivative theorem equation probability matrix eigenvalue eigenvalues eigenvector ableitung "
    "gleichung wahrscheinlichkeit dérivée équation probabilité intégrale théorème derivada ecuación "
    "probabilidad derivata equazione probabilità equação probabilidade"
)
_MATHS_WORDS = frozenset(_MATHS.split())
_MATHS_MARKS = re.compile(r"[∑∫√≤≥≠]|\d[ \t]*[-+*/^][ \t]*\d")
_LENGTH_SATURATES_AT = 800  # prompt tokens beyond which length tells no more
_LENGTH_WEIGHT = 0.25
_CONSTRAINTS = re.compile(r"^[ \t]*(?:[-*]|\d{1,9}[.)])\s", re.M)
_WORDS = re.compile(r"[^\W\d_]+")
#: A shorter message that goes on a conversation says little without the one before it ("and in French?").
_SHORT_CHARS = 80
#: Of a text beyond so many characters, scripts are counted in pieces from all over it.
_COUNTED_WHOLE = 4000
_PIECES = 8


def estimate_tokens(text: str, language: str | None = None) -> int:
    """Tokens of a text, from its length; at least 1. Non-Latin scripts take about one per character.

    Args:
        language: ISO 639-1; None where it is unknown, which counts as English.
    """
    per_token = CHARS_PER_TOKEN if language in (None, "en") else CHARS_PER_TOKEN_ELSEWHERE
    if text.isascii():
        return max(1, round(len(text) / per_token))
    share = _wide_share(text)
    return max(1, round(len(text) * (share + (1 - share) / per_token)))


def _wide_share(text: str) -> float:
    """Share of the characters that are of no Latin script, 0..1."""
    if len(text) > _COUNTED_WHOLE:
        step, size = len(text) // _PIECES, _COUNTED_WHOLE // _PIECES
        text = "".join(text[begin : begin + size] for begin in range(0, _PIECES * step, step))
    return sum(character > "\u02ff" for character in text) / len(text)


def request_features(
    request: Request,
    *,
    usual_output_tokens: float | None = None,
    difficulty: Callable[[str], float] | None = None,
) -> RequestFeatures:
    """Read the features of a request. Of a long text its beginning and its end are read (`excerpt`).

    Args:
        difficulty: a learned difficulty (0..1) of a text; the complexity is then the mean of it and of what
            the signals say, since neither sees all: the one learned from examination questions alone.
        usual_output_tokens: mean answer length of this user, where it is known; it is blended with
            what the text suggests.
    """
    text = request.text()
    prompt_tokens = estimate_tokens(text)
    if request.task == "classify":
        return _classes_features(request, prompt_tokens)
    if request.task in ("embed", "infer"):
        longest, count = _longest(request, prompt_tokens)
        return RequestFeatures(0.0, (), prompt_tokens, 0, longest_tokens=longest, texts=count)
    turns, conversation, begun = 0, None, ""
    instructions = text
    needs: set[Need] = set()
    if request.task == "chat":
        messages = request.body["messages"]
        prompt_tokens += _TOKENS_PER_MESSAGE * len(messages)
        asked = [message for message in messages if message.get("role") == "user"]
        turns, conversation = len(asked), _conversation(messages)
        instructions = _instructions(asked, conversation) if asked else text
        begun = message_text(messages[-1]) if conversation == "continuation" else ""
        needs |= _content_needs(messages)
    needs |= _body_needs(request.body)
    read = _Read(excerpt(instructions))
    if read.language not in (None, "en"):
        prompt_tokens += estimate_tokens(text, read.language) - estimate_tokens(text)
    signalled, reasons = read.complexity(prompt_tokens, turns)
    complexity = signalled
    if difficulty is not None:
        learned = difficulty(instructions)
        complexity = (signalled + learned) / 2
        reasons.append(f"learned difficulty {learned:.2f}")
    output_tokens = _output_tokens(
        read.question, estimate_tokens(instructions, read.language), signalled, usual_output_tokens, begun
    )
    limit = request.body.get("max_completion_tokens") or request.body.get("max_tokens")
    return RequestFeatures(
        complexity=complexity,
        reasons=tuple(reasons),
        prompt_tokens=prompt_tokens,
        output_tokens=max(1, round(min(output_tokens, limit) if limit else output_tokens)),
        needs=frozenset(needs),
        kind=request_kind(request, read.language),
        language=read.language,
        question=read.question,
        conversation=conversation,
        turns=turns,
    )


def _classes_features(request: Request, prompt_tokens: int) -> RequestFeatures:
    """Of a request for classes: as complex as a guess among them is wrong; where the target's own classes are
    wanted, as whatever it was evaluated on."""
    labels: Sequence[str] | None = request.body.get("labels")
    longest, count = _longest(request, prompt_tokens)
    features = RequestFeatures(
        complexity=1.0,
        reasons=(),
        prompt_tokens=prompt_tokens,
        output_tokens=0,
        kind=request_kind(request),
        longest_tokens=longest,
        texts=count,
    )
    if labels is None:
        return features
    return replace(
        features,
        complexity=1 - 1 / len(labels),
        reasons=(f"one of {len(labels)} classes",),
        chat_prompt_tokens=(
            estimate_tokens(chat_instructions(labels, "mec")["content"]) + 2 * _TOKENS_PER_MESSAGE
        ),
        chat_output_tokens=_TOKENS_AROUND_LABEL + max(map(estimate_tokens, labels)),
    )


def _longest(request: Request, prompt_tokens: int) -> tuple[int, int]:
    """The tokens of the longest text of a request, and how many texts it has."""
    if request.task == "infer":
        return prompt_tokens, 1
    texts = texts_of(request.body)
    return (prompt_tokens if len(texts) == 1 else estimate_tokens(max(texts, key=len))), len(texts)


class _Read:
    """One text, read once."""

    def __init__(self, text: str) -> None:
        self._text = text
        lower = text.lower()
        words = _WORDS.findall(lower)
        self.language = language_of(text, words)
        known = signal_words(self.language)
        self._hits: dict[Wish, int] = {}
        for wishes in filter(None, map(known.wishes.get, words)):
            for wish in wishes:
                self._hits[wish] = self._hits.get(wish, 0) + 1
        for phrase, wish in known.phrases:
            if phrase in lower:
                self._hits[wish] = self._hits.get(wish, 0) + 1
        self._code = _hits(words, _CODE_WORDS) + sum(mark in text for mark in _CODE_MARKS)
        self._code += _SQL.search(text) is not None
        self._maths = _hits(words, _MATHS_WORDS) + len(_MATHS_MARKS.findall(text))
        self.question: Question = question_of(text, words, self._hits, has_code="```" in text)

    def complexity(self, prompt_tokens: int, turns: int) -> tuple[float, list[str]]:
        """0..1, and the signals that raised it."""
        score, reasons = 0.05, []
        signals = [(self._hits.get(wish, 0), weight, reason) for wish, weight, reason in _WISHES]
        signals += [
            (self._code, _CODE_WEIGHT, "holds code"),
            (self._maths, _MATHS_WEIGHT, "holds mathematics"),
        ]
        for hits, weight, reason in signals:
            if hits:
                # A second and third signal of a kind add half as much; more tell nothing new.
                score += weight * (1 + 0.5 * (min(hits, 3) - 1))
                reasons.append(reason)
        length = min(1.0, prompt_tokens / _LENGTH_SATURATES_AT)
        score += _LENGTH_WEIGHT * length
        if length > 0.5:
            reasons.append("long")
        listed = len(_CONSTRAINTS.findall(self._text))
        if listed >= 3:
            score += 0.10
            reasons.append(f"{listed} listed constraints")
        if turns > 3:
            score += 0.05
            reasons.append("long conversation")
        return min(1.0, score), reasons


def _hits(words: Sequence[str], known: frozenset[str]) -> int:
    return sum(map(known.__contains__, words))


def _conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    last = messages[-1].get("role")
    if last == "assistant":
        return "continuation"
    if last in ("tool", "function"):
        return "tool-result"
    return "follow-up" if any(m.get("role") == "assistant" for m in messages) else "opening"


def _instructions(asked: Sequence[Mapping[str, Any]], conversation: Conversation) -> str:
    """What is to be done: the user's last message, with the one before where it says little by itself."""
    last = message_text(asked[-1])
    if conversation == "follow-up" and len(asked) > 1 and len(last) < _SHORT_CHARS:
        return f"{message_text(asked[-2])}\n{last}"
    return last


def _output_tokens(
    question: Question, asked_tokens: int, complexity: float, usual: float | None, begun: str
) -> float:
    """Tokens that the answer will take, about.

    Args:
        asked_tokens: of the instructions and what they are about.
        begun: the part of the answer that is there already.
    """
    if question in ("fact", "yes-no", "choice"):
        guess = 16.0
    elif question == "rewriting":
        guess = min(1000.0, max(16.0, 0.9 * asked_tokens))  # as long as what is rewritten
    elif question == "summary":
        guess = min(250.0, 40 + 0.15 * asked_tokens)
    else:
        guess = 40 + 400 * complexity
    if usual is not None:
        guess = (guess + usual) / 2
    if begun:
        guess = max(16.0, guess - estimate_tokens(begun))
    return guess


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
