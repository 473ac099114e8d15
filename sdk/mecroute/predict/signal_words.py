"""Words by which a request says what it wants, in the languages that are told apart.

The kinds: `reason` and `plan` ask for thought, `long` for a long or structured text; `brief` settles for a
word or a number; `explain`, `rewrite`, `shorten` and `write` say what is to be made. Verbs stand as people
write them to a machine: imperative and infinitive. After the first bar come phrases, and beginnings of words
where words are not set apart (Chinese, Japanese) or are inflected much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Wish = Literal["reason", "plan", "long", "brief", "explain", "rewrite", "shorten", "write"]
WISHES: tuple[Wish, ...] = get_args(Wish)

_TOLD: Mapping[str, Mapping[Wish, str]] = {
    "en": {
        "reason": "prove proof derive deduce reason reasoning why justify tradeoff tradeoffs "
        "implication implications critique evaluate analyse analyze analysis hypothesis hypotheses|"
        "step by step|step-by-step|trade-off|root cause",
        "plan": "compare contrast versus design plan strategy architect architecture optimise "
        "optimize|pros and cons",
        "long": "essay report article story letter table json yaml outline|in detail|at least ",
        "brief": "classify label|yes or no|true or false|one word|which of|what is the capital|"
        "what is the name|how many|when did|when was|when is|who is|who was|who wrote",
        "explain": "explain why how describe",
        "rewrite": "translate rewrite rephrase paraphrase proofread correct",
        "shorten": "summarise summarize summary shorten condense",
        "write": "write draft compose generate create",
    },
    "de": {
        "reason": "beweise beweisen beweis leite herleiten begründe begründen warum wieso weshalb "
        "analysiere analysieren bewerte bewerten schlussfolgere|schritt für schritt|abwäg|ursache",
        "plan": "vergleiche vergleichen vergleich entwirf entwerfen plane planen plan strategie "
        "optimiere optimieren architektur|vor- und nachteile|vor und nachteile",
        "long": "aufsatz bericht artikel geschichte brief tabelle gliederung|ausführlich|im detail|"
        "mindestens ",
        "brief": "klassifiziere|ja oder nein|wahr oder falsch|ein wort|mit einem wort|welche von|"
        "welches von|wie viele|wie viel|wer ist|wer war|wer hat|wann war|wann ist|wann wurde|hauptstadt",
        "explain": "erkläre erklären erklär warum wie beschreibe beschreiben",
        "rewrite": "übersetze übersetzen übersetz umschreiben umformulieren formuliere korrigiere "
        "korrigieren",
        "shorten": "fasse zusammenfassen zusammenfassung kürze kürzen",
        "write": "schreibe schreiben schreib verfasse verfassen erstelle erstellen entwirf",
    },
    "fr": {
        "reason": "prouve prouvez démontre démontrez démontrer déduis pourquoi justifie justifiez "
        "justifier analyse analysez analyser évalue évaluez évaluer|étape par étape|pas à pas|cause "
        "profonde",
        "plan": "compare comparez comparer conçois concevez planifie planifiez plan stratégie "
        "optimise optimisez optimiser|avantages et inconvénients|avantages et les inconvénients",
        "long": "essai dissertation rapport article histoire lettre tableau|en détail|au moins ",
        "brief": "classe|oui ou non|vrai ou faux|un mot|lequel de|laquelle de|combien|qui est|qui "
        "était|qui a écrit|quand a|quelle est la capitale",
        "explain": "explique expliquez expliquer pourquoi comment décris décrivez",
        "rewrite": "traduis traduisez traduire réécris réécrivez reformule reformulez corrige "
        "corrigez corriger",
        "shorten": "résume résumez résumer résumé raccourcis raccourcissez",
        "write": "écris écrivez écrire rédige rédigez rédiger crée créez compose",
    },
    "es": {
        "reason": "demuestra demuestre demostrar deduce deriva justifica justifique justificar "
        "analiza analice analizar evalúa evalúe evaluar|por qué|paso a paso|causa raíz",
        "plan": "compara compare comparar diseña diseñe diseñar planifica planifique plan "
        "estrategia optimiza optimice optimizar|ventajas y desventajas|pros y contras",
        "long": "ensayo informe artículo historia cuento carta tabla|en detalle|al menos ",
        "brief": "clasifica|sí o no|verdadero o falso|una palabra|cuál de|cuántos|cuántas|cuánto|"
        "quién es|quién fue|quién escribió|cuándo fue|cuál es la capital",
        "explain": "explica explique explicar cómo describe describa describir|por qué",
        "rewrite": "traduce traduzca traducir reescribe reescriba reformula corrige corrija "
        "corregir",
        "shorten": "resume resuma resumir resumen acorta",
        "write": "escribe escriba escribir redacta redacte redactar crea cree compón",
    },
    "it": {
        "reason": "dimostra dimostrare dimostri deduci deriva perché giustifica giustificare "
        "analizza analizzare valuta valutare|passo dopo passo|passo per passo",
        "plan": "confronta confrontare progetta progettare pianifica pianificare piano strategia "
        "ottimizza ottimizzare|pro e contro|vantaggi e svantaggi",
        "long": "saggio tema relazione articolo storia racconto lettera tabella|in dettaglio|nel "
        "dettaglio|almeno ",
        "brief": "classifica|sì o no|vero o falso|una parola|quale di|quanti|quante|quanto|chi è|"
        "chi era|chi ha scritto|quando è|qual è la capitale",
        "explain": "spiega spiegare spiegami perché come descrivi descrivere",
        "rewrite": "traduci tradurre riscrivi riscrivere riformula correggi correggere",
        "shorten": "riassumi riassumere riassunto accorcia",
        "write": "scrivi scrivere redigi componi crea creare",
    },
    "pt": {
        "reason": "prove provar demonstre demonstrar deduza derive justifique justificar analise "
        "analisar avalie avaliar|por que|por quê|passo a passo|causa raiz",
        "plan": "compare comparar projete projetar planeje planejar plano estratégia otimize "
        "otimizar|prós e contras|vantagens e desvantagens",
        "long": "ensaio redação relatório artigo história conto carta tabela|em detalhe|em "
        "detalhes|pelo menos ",
        "brief": "classifique|sim ou não|verdadeiro ou falso|uma palavra|qual d|quantos|quantas|"
        "quanto|quem é|quem foi|quem escreveu|quando foi|qual é a capital",
        "explain": "explique explicar como descreva descrever|por que",
        "rewrite": "traduza traduzir reescreva reescrever reformule corrija corrigir",
        "shorten": "resuma resumir resumo encurte",
        "write": "escreva escrever redija crie criar componha",
    },
    "nl": {
        "reason": "bewijs bewijzen leid waarom onderbouw rechtvaardig analyseer analyseren "
        "beoordeel beoordelen|stap voor stap|oorzaak",
        "plan": "vergelijk vergelijken ontwerp ontwerpen plan strategie optimaliseer optimaliseren|"
        "voor- en nadelen|voor en nadelen",
        "long": "essay verslag rapport artikel verhaal brief tabel|uitgebreid|in detail|minstens ",
        "brief": "classificeer|ja of nee|waar of niet waar|één woord|welke van|hoeveel|wie is|wie "
        "was|wie schreef|wanneer was|wanneer werd|hoofdstad",
        "explain": "leg uitleggen waarom hoe beschrijf beschrijven verklaar",
        "rewrite": "vertaal vertalen herschrijf herschrijven herformuleer verbeter corrigeer",
        "shorten": "vat samenvatten samenvatting verkort inkort",
        "write": "schrijf schrijven stel maak",
    },
    "pl": {
        "reason": "udowodnij wyprowadź dlaczego uzasadnij przeanalizuj analizuj oceń|krok po kroku|"
        "przyczyn",
        "plan": "porównaj zaprojektuj zaplanuj plan strategia strategię zoptymalizuj|za i przeciw|"
        "zalety i wady",
        "long": "esej raport artykuł opowiadanie historię list tabelę tabela|szczegółowo|co "
        "najmniej ",
        "brief": "sklasyfikuj|tak lub nie|tak czy nie|prawda czy fałsz|jednym słowem|który z|która "
        "z|ile |kto jest|kto był|kto napisał|kiedy był|stolica|stolicą",
        "explain": "wyjaśnij dlaczego jak opisz wytłumacz",
        "rewrite": "przetłumacz przepisz przeformułuj popraw",
        "shorten": "streść podsumuj skróć streszczenie",
        "write": "napisz stwórz utwórz ułóż",
    },
    "tr": {
        "reason": "kanıtla ispatla türet neden niçin gerekçelendir değerlendir|adım adım|analiz et|"
        "çözümle",
        "plan": "karşılaştır tasarla planla plan strateji|artıları ve eksileri|optimize et",
        "long": "deneme rapor makale hikaye öykü mektup tablo|ayrıntılı|en az ",
        "brief": "sınıflandır|evet veya hayır|evet mi hayır mı|doğru veya yanlış|tek kelime|"
        "hangisi|kaç|kimdir|kim yazdı|ne zaman|başkenti",
        "explain": "açıkla neden nasıl anlat",
        "rewrite": "çevir düzelt yeniden",
        "shorten": "özetle özet kısalt",
        "write": "yaz oluştur hazırla",
    },
    "sv": {
        "reason": "bevisa härled varför motivera analysera utvärdera|steg för steg|orsak",
        "plan": "jämför designa planera plan strategi optimera|för- och nackdelar",
        "long": "uppsats rapport artikel berättelse brev tabell|i detalj|minst ",
        "brief": "klassificera|ja eller nej|sant eller falskt|ett ord|vilken av|hur många|hur "
        "mycket|vem är|vem var|vem skrev|när var|huvudstad",
        "explain": "förklara varför hur beskriv",
        "rewrite": "översätt formulera rätta",
        "shorten": "sammanfatta sammanfattning korta",
        "write": "skriv skapa",
    },
    "ru": {
        "reason": "|докаж|выведи|почему|обоснуй|проанализируй|анализ|оцени|пошагово|шаг за шагом",
        "plan": "|сравни|спроектируй|спланируй|план |стратеги|оптимизируй|плюсы и минусы|за и "
        "против",
        "long": "|эссе|сочинение|отчёт|отчет|стать|рассказ|письмо|таблиц|подробно|не менее ",
        "brief": "|классифицируй|да или нет|верно или неверно|одним словом|какой из|какая из|"
        "сколько|кто такой|кто написал|когда был|столица",
        "explain": "|объясни|почему|как |опиши",
        "rewrite": "|переведи|перепиши|перефразируй|исправь",
        "shorten": "|кратко излож|резюмируй|сократи|суммируй",
        "write": "|напиши|сочини|создай|составь",
    },
    "uk": {
        "reason": "|доведи|виведи|чому|обґрунтуй|проаналізуй|оціни|крок за кроком",
        "plan": "|порівняй|спроєктуй|сплануй|план |стратегі|оптимізуй",
        "long": "|есе|звіт|статт|оповідання|лист |таблиц|детально|щонайменше ",
        "brief": "|класифікуй|так чи ні|одним словом|який з|скільки|хто такий|хто написав|коли був|"
        "столиця",
        "explain": "|поясни|чому|як |опиши",
        "rewrite": "|переклади|перепиши|виправ",
        "shorten": "|стисло|скороти|підсумуй",
        "write": "|напиши|створи|склади",
    },
    "zh": {
        "reason": "|证明|證明|推导|推導|为什么|為什麼|逐步|一步一步|分析|论证|論證|评估|評估|权衡",
        "plan": "|比较|比較|对比|對比|设计|設計|规划|計劃|计划|策略|优化|優化|优缺点|優缺點",
        "long": "|文章|报告|報告|故事|论文|論文|表格|详细|詳細|至少",
        "brief": "|分类|分類|是或否|对还是错|一个词|哪个|哪一个|多少|几个|是谁|谁写|什么时候|首都",
        "explain": "|解释|解釋|为什么|為什麼|怎么|如何|说明|描述",
        "rewrite": "|翻译|翻譯|改写|改寫|润色|纠正|修改",
        "shorten": "|总结|總結|概括|摘要|缩短",
        "write": "|写一|寫一|编写|撰写|生成|创作",
    },
    "ja": {
        "reason": "|証明|導出|なぜ|どうして|分析|評価|根拠|段階的|ステップ",
        "plan": "|比較|設計|計画|戦略|最適化|長所と短所|メリットとデメリット",
        "long": "|エッセイ|レポート|記事|物語|手紙|表に|詳しく|以上",
        "brief": "|分類|はいかいいえ|正しいか|一言で|どれ|いくつ|何人|誰が|誰で|いつ|首都",
        "explain": "|説明|なぜ|どのように|どうやって",
        "rewrite": "|翻訳|訳して|書き直|言い換え|校正|修正",
        "shorten": "|要約|まとめ|短く",
        "write": "|書いて|作成|生成|作って",
    },
    "ko": {
        "reason": "|증명|유도|왜|분석|평가|근거|단계별",
        "plan": "|비교|설계|계획|전략|최적화|장단점",
        "long": "|에세이|보고서|기사|이야기|편지|표로|자세히|이상",
        "brief": "|분류|예 또는 아니오|참 또는 거짓|한 단어|어느|몇|누가|누구|언제|수도",
        "explain": "|설명|왜|어떻게|묘사",
        "rewrite": "|번역|다시 써|바꿔|교정|수정",
        "shorten": "|요약|줄여",
        "write": "|써줘|써 줘|작성|생성|만들어",
    },
    "ar": {
        "reason": "|أثبت|برهن|استنتج|لماذا|برر|حلل|قيّم|قيم|خطوة بخطوة",
        "plan": "|قارن|صمم|خطط|خطة|استراتيجية|حسّن|إيجابيات وسلبيات|مزايا وعيوب",
        "long": "|مقال|تقرير|قصة|رسالة|جدول|بالتفصيل|على الأقل",
        "brief": "|صنف|نعم أم لا|نعم أو لا|صح أم خطأ|كلمة واحدة|أي من|كم |من هو|من كتب|متى|عاصمة",
        "explain": "|اشرح|لماذا|كيف|صف",
        "rewrite": "|ترجم|أعد صياغة|أعد كتابة|صحح",
        "shorten": "|لخص|ملخص|اختصر",
        "write": "|اكتب|أنشئ|ألّف",
    },
    "hi": {
        "reason": "|सिद्ध|साबित|क्यों|विश्लेषण|मूल्यांकन|औचित्य|चरण दर चरण|कदम दर कदम",
        "plan": "|तुलना|डिज़ाइन|योजना|रणनीति|अनुकूलित|फायदे और नुकसान",
        "long": "|निबंध|रिपोर्ट|लेख|कहानी|पत्र|तालिका|विस्तार|कम से कम",
        "brief": "|वर्गीकृत|हाँ या नहीं|हां या नहीं|सही या गलत|एक शब्द|कौन सा|कितने|कितनी|कौन है|"
        "किसने|कब |राजधानी",
        "explain": "|समझा|क्यों|कैसे|वर्णन",
        "rewrite": "|अनुवाद|फिर से लिख|सुधार",
        "shorten": "|सारांश|संक्षेप|छोटा",
        "write": "|लिखो|लिखें|लिखिए|बनाओ|बनाएं",
    },
}  # fmt: skip


class SignalWords:
    """The words of one language.

    Attributes:
        wishes: a word, lower case, to what it says.
        phrases: what is looked for in a lower-case text as it stands, with what it says.
    """

    __slots__ = ("phrases", "wishes")

    def __init__(self, told: Mapping[Wish, str]) -> None:
        self.wishes: dict[str, tuple[Wish, ...]] = {}
        self.phrases: list[tuple[str, Wish]] = []
        for wish, listed in told.items():
            words, *phrases = listed.split("|")
            for word in words.split():
                self.wishes[word] = (*self.wishes.get(word, ()), wish)
            self.phrases.extend((phrase, wish) for phrase in phrases)


_MADE = {language: SignalWords(told) for language, told in _TOLD.items()}


def signal_words(language: str | None) -> SignalWords:
    """The words of a language; English ones where it is unknown, which people mix into any other."""
    return _MADE.get(language or "en") or _MADE["en"]
