"""What language a request is in, what it asks for, and where its conversation stands."""

from __future__ import annotations

import pytest

from mecroute.context import RequestFeatures
from mecroute.predict.complexity import request_features
from mecroute.predict.difficulty import difficulty_source
from mecroute.request import ingest

EASY_AND_HARD = {
    "en": ("What is the capital of Peru?", "Prove step by step that there are infinitely many primes."),
    "de": (
        "Wie heißt die Hauptstadt von Peru?",
        "Beweise Schritt für Schritt, dass es unendlich viele Primzahlen gibt.",
    ),
    "fr": (
        "Quelle est la capitale du Pérou ?",
        "Démontre étape par étape qu'il existe une infinité de nombres premiers.",
    ),
    "es": ("¿Cuál es la capital del Perú?", "Demuestra paso a paso que hay infinitos números primos."),
    "it": ("Qual è la capitale del Perù?", "Dimostra passo dopo passo che i numeri primi sono infiniti."),
    "pt": (
        "Qual é a capital do Peru, por favor?",
        "Demonstre passo a passo que existem infinitos números primos, e justifique.",
    ),
    "nl": ("Wat is de hoofdstad van Peru?", "Bewijs stap voor stap dat er oneindig veel priemgetallen zijn."),
    "pl": (
        "Jaka jest stolica Peru?",
        "Udowodnij krok po kroku, że jest nieskończenie wiele liczb pierwszych.",
    ),
    "tr": (
        "Peru'nun başkenti neresidir ve ne kadar büyük?",
        "Sonsuz sayıda asal sayı olduğunu adım adım kanıtla ve bir örnek ver.",
    ),
    "sv": ("Vad är huvudstaden i Peru?", "Bevisa steg för steg att det finns oändligt många primtal."),
    "ru": ("Как называется столица Перу?", "Докажи шаг за шагом, что простых чисел бесконечно много."),
    "uk": (
        "Як називається столиця Перу і де її шукати?",
        "Доведи крок за кроком, що простих чисел нескінченно багато, й обґрунтуй.",
    ),
    "zh": ("秘鲁的首都是哪里？", "请逐步证明素数有无穷多个，并分析每一步。"),
    "ja": ("ペルーの首都はどこですか。", "素数が無限に存在することを段階的に証明してください。"),
    "ko": ("페루의 수도는 어디입니까?", "소수가 무한히 많다는 것을 단계별로 증명하고 분석해 주세요."),
    "ar": ("ما هي عاصمة بيرو؟", "أثبت خطوة بخطوة أن الأعداد الأولية لا نهائية."),
    "hi": ("पेरू की राजधानी क्या है?", "चरण दर चरण सिद्ध करो कि अभाज्य संख्याएँ अनंत हैं।"),
}


def features(*messages: str | tuple[str, str], **body: object) -> RequestFeatures:
    told = [("user", m) if isinstance(m, str) else m for m in messages]
    chat = {"messages": [{"role": role, "content": content} for role, content in told], **body}
    return request_features(ingest("chat", model="auto", body=chat))


@pytest.mark.parametrize("language", EASY_AND_HARD)
def test_every_language_is_told_and_its_hard_requests_from_its_easy_ones(language: str) -> None:
    easy, hard = (features(text) for text in EASY_AND_HARD[language])
    assert (easy.language, hard.language) == (language, language)
    assert easy.complexity + 0.2 < hard.complexity
    assert "asks for reasoning" in hard.reasons


@pytest.mark.parametrize("text", ["x + y = 4z", "42", "", "xqzt blorf", "🙂", "```\nfoo(bar)\n```"])
def test_what_speaks_for_no_language_has_none(text: str) -> None:
    assert features(text).language is None


def test_chats_in_other_languages_are_kinds_of_their_own() -> None:
    assert features("Was ist das für ein Baum?").kind == "chat-de"
    assert features("What kind of tree is that?").kind is None
    told = ("system", "Answer as a gardener."), ("user", "Was ist das für ein Baum?")
    assert features(*told).kind == features(told[0], "What kind of tree is that?").kind


def test_a_quoted_foreign_word_does_not_change_the_language() -> None:
    assert features("What does the word 漢字 mean, and how is it written by hand?").language == "en"
    assert features("Warum heißt diese Pflanze auf Englisch 'tree of heaven'?").language == "de"


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Which of these is a metal?\nA. Oxygen\nB. Iron\nC. Neon", "choice"),
        ("Is water wet?", "yes-no"),
        ("Kann ich das Dokument löschen?", "yes-no"),
        ("Who wrote Faust?", "fact"),
        ("Wie viele Einwohner hat Peru?", "fact"),
        ("Explain how a heat pump works", "explanation"),
        ("なぜ空は青いのですか", "explanation"),
        ("Compare trains and buses", "comparison"),
        ("Translate into German: good morning", "rewriting"),
        ("Corrige ce texte, s'il te plaît : je suis allé a la gare.", "rewriting"),
        ("请总结下面的文章", "summary"),
        ("Write a poem about rain", "text"),
        ("Debug this:\n```python\nprint(1/0)\n```", "code"),
        ("Hello there", "other"),
    ],
)
def test_what_is_asked_for_is_told(text: str, question: str) -> None:
    assert features(text).question == question


def test_a_translation_is_about_as_long_as_its_text_and_a_fact_is_short() -> None:
    text = "The harbour bridge was closed on Friday because of high winds. " * 20
    assert features(f"Translate into French: {text}").output_tokens > 200
    assert features(f"Summarise: {text}").output_tokens < 120
    assert features("Who wrote Faust?").output_tokens == 16


def test_the_state_of_a_conversation_is_told() -> None:
    first = features("What is tea?")
    assert (first.conversation, first.turns) == ("opening", 1)
    later = features("What is tea?", ("assistant", "A drink."), "And coffee?")
    assert (later.conversation, later.turns) == ("follow-up", 2)
    called = features("What time is it?", ("assistant", "…"), ("tool", "12:00"))
    assert (called.conversation, called.turns) == ("tool-result", 1)
    begun = features("Write a long story about a lighthouse.", ("assistant", "Once upon a time " * 30))
    assert begun.conversation == "continuation"
    assert begun.output_tokens < features("Write a long story about a lighthouse.").output_tokens


def test_a_short_follow_up_is_as_hard_as_what_it_goes_on_from() -> None:
    hard = "Prove step by step that the square root of 2 is irrational, and justify each deduction."
    alone = features("And of 3?")
    after = features(hard, ("assistant", "…"), "And of 3?")
    assert after.complexity > alone.complexity + 0.3


def test_features_are_part_of_what_a_decision_tells() -> None:
    request = ingest("embed", model="auto", body={"input": "a text"})
    found = request_features(request)
    assert (found.language, found.question, found.conversation, found.turns) == (None, None, None, 0)


@pytest.mark.parametrize(
    "piece", ["How does 3 + 4 make 7? ", "Wie groß ist die Brücke? ", "橋はなぜ赤い？", "\n", "- x\n"]
)
def test_of_a_long_text_the_beginning_and_the_end_are_read(piece: str) -> None:
    """Whatever lies between changes nothing, so that the work does not grow with it."""
    difficulty = difficulty_source("shipped")
    end = piece * 2000
    one, other = (
        request_features(
            ingest("chat", model="auto", body={"messages": [{"role": "user", "content": text}]}),
            difficulty=difficulty,
        )
        for text in (end + "x" * 100_000 + end, end + ". $ % = Prove 7\n- why?\nA. x" * 4000 + end)
    )
    assert abs(one.complexity - other.complexity) < 0.02  # by the length alone
    assert (one.language, one.question) == (other.language, other.question)


def test_lines_without_text_are_no_list_of_constraints() -> None:
    assert features("\n" * 3000 + "What is tea?\n- \n- x").reasons == ("long",)
