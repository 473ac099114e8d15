"""What language a text is in, by its script and by its commonest words; no model, tens of microseconds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mecroute.predict.signal_words import signal_words

#: Words that come in nearly every sentence of a language, chosen to be few of any other's.
_COMMON: Mapping[str, str] = {
    "en": "the of and is are was what how why who when where which this that with from please you your "
    "i my it do does can could would should will give write explain me a an be not have has for "
    "if as to in on at by or we they he she any all am there need want get make like about tell "
    "some no so up out new than then set its each every these those been had did let find using "
    "given one two into between",
    "de": "der die das und ist sind war was wie warum wer wann wo welche welcher ein eine einen nicht "
    "mit von bitte ich du sie es mir mich dass kann auf für zu im den dem des haben hat wird oder "
    "aus",
    "fr": "le la les et est sont que quoi comment pourquoi qui quand où quel quelle un une des du pas "
    "avec pour je vous nous moi il elle ce cette dans sur au aux ne peux plus ou par l d qu c",
    "es": "el la los las y es son qué cómo por cuándo dónde cuál quién un una del no con para yo tú me "
    "mi su se este esta en al lo puedes más o favor está tiene hay como",
    "it": "qual il lo la gli le e è sono che cosa come perché chi quando dove quale un una del della "
    "dei non con per io mi questo questa nel di si puoi più o favore ha da al dal l alla",
    "pt": "qual o a os as e é são que como por quando onde qual quem um uma do da dos das não com para "
    "eu me meu seu este esta no na em ao você pode mais ou favor está tem foi",
    "nl": "de het een en is zijn was wat hoe waarom wie wanneer waar welke niet met van voor ik je jij "
    "u mij dat dit op te in kan kun aan heeft wordt of uit graag",
    "pl": "i jest są co jak dlaczego kto kiedy gdzie który która nie z do na w się mi mnie to ten ta "
    "proszę czy dla od po że może jaki jaka jakie oraz przez",
    "tr": "ve bir bu ne nasıl neden niçin kim nerede hangi için ile değil mi mı mu mü lütfen bana "
    "olarak daha çok var yok gibi kadar nedir olan en her",
    "sv": "och är det en ett som vad hur varför vem när var vilken inte med av för jag du mig att på i "
    "den kan till från om har eller de",
}  # fmt: skip
#: Each word's languages; what people ask for in a language speaks for it as well.
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {}
for _language, _words in _COMMON.items():
    for _word in {*_words.split(), *signal_words(_language).wishes}:
        _LANGUAGES_OF[_word] = (*_LANGUAGES_OF.get(_word, ()), _language)

#: Scripts that tell the language, the more telling ones first: Japanese and Korean are written with Chinese
#: characters among their own.
_SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
)
_UKRAINIAN = re.compile("[іїєґ]", re.I)
#: Of Chinese characters and kana, a sixth or more of a text: a word that is quoted makes no Chinese text.
_SCRIPT_SHARE = 1 / 6
#: Words of a text that are looked at.
_READ_WORDS = 200


def language_of(text: str, words: Sequence[str]) -> str | None:
    """The language of a text, as its ISO 639-1 code; None where nothing speaks for one.

    Args:
        text: a few thousand characters at most.
        words: its words, lower case, with their accents.
    """
    if not text.isascii():
        letters = sum(map(len, words))
        for language, pattern in _SCRIPTS:
            if len(pattern.findall(text)) > _SCRIPT_SHARE * letters:
                return "uk" if language == "ru" and _UKRAINIAN.search(text) else language
    votes: dict[str, float] = {}
    for word in words[:_READ_WORDS]:
        languages = _LANGUAGES_OF.get(word)
        # A single plain letter may be a variable.
        if languages is not None and (len(word) > 1 or not word.isascii()):
            share = 1 / len(languages)  # a word of several languages says little for each
            for language in languages:
                votes[language] = votes.get(language, 0.0) + share
    if not votes:
        return None
    best = max(votes, key=lambda language: (votes[language], language == "en"))
    return best if votes[best] >= 1 else None
