"""Several prompts, `echo`, `suffix` and `best_of` of `/v1/completions`, as OpenAI's own client sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest

from mecroute.engines.llama import LlamaEngine
from mecroute_server.run import NodeServer
from support.server import SAYS
from support.tiny_gguf import FIRST_BYTE, write_tiny_gguf

#: The model goes on from the last byte of a prompt that is one of SAYS.
ASK: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 3}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the others use, with tokens that say that there is a gap to fill."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", says=SAYS, infill=True)


@pytest.fixture
def client(node: NodeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def engine(node: NodeServer) -> LlamaEngine:
    loaded = node.node.pool.find("tiny").loaded
    assert loaded is not None
    assert isinstance(loaded.engine, LlamaEngine)
    return loaded.engine


def test_several_prompts(client: openai.OpenAI, engine: LlamaEngine) -> None:
    prompts = [SAYS[:1], SAYS[:3], "x"]
    answer = client.completions.create(**ASK, prompt=prompts)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, SAYS[1:4]), (1, SAYS[3:6]), (2, SAYS[:3])
    ]  # fmt: skip
    assert answer.usage
    assert answer.usage.prompt_tokens == sum(len(engine.tokenize(prompt)) for prompt in prompts)
    assert answer.usage.completion_tokens == 9
    tokens = [list(engine.tokenize(prompt)) for prompt in prompts]
    assert client.completions.create(**ASK, prompt=tokens).choices == answer.choices


def test_several_prompts_with_several_answers_each(client: openai.OpenAI) -> None:
    ask = {**ASK, "prompt": [SAYS[:1], SAYS[:3]], "n": 2}
    want = [SAYS[1:4], SAYS[1:4], SAYS[3:6], SAYS[3:6]]
    assert [choice.text for choice in client.completions.create(**ask).choices] == want
    found, ends, usages = [""] * 4, [0] * 4, []
    for chunk in client.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            assert not usages  # it comes after the last of them
            found[choice.index] += choice.text
            ends[choice.index] += choice.finish_reason == "length"
        if chunk.usage:
            usages.append(chunk.usage.completion_tokens)
    assert (found, ends, usages) == (want, [1] * 4, [12])


def test_one_prompt_that_cannot_be_served_leaves_none_running(
    client: openai.OpenAI, engine: LlamaEngine
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=["a", "b " * 400])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="67 prompts ask for 67 answers"):
        client.completions.create(model="tiny", prompt=["a"] * 67)
    assert (engine.stats().running, engine.stats().queued) == (0, 0)


def test_a_caller_that_leaves_stops_all_of_its_prompts(node: NodeServer, engine: LlamaEngine) -> None:
    body = {**ASK, "prompt": ["a", "b", "c"], "max_tokens": 250, "stream": True}
    with httpx.Client(base_url=node.url, timeout=30) as http:
        with http.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        # The freed sequences serve the next request, and nothing of the one before is left in the queue.
        assert http.post("/v1/completions", json={**ASK, "prompt": "x"}).json()["choices"][0]["text"]
    assert engine.stats().queued == 0


def test_echo(client: openai.OpenAI, engine: LlamaEngine) -> None:
    answer = client.completions.create(**ASK, prompt=["say: H", list(engine.tokenize("AH"))], echo=True)
    assert [choice.text for choice in answer.choices] == ["say: HELO", "AHELO"]
    stream = client.completions.create(**ASK, prompt="say: H", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "say: HELO"


def test_echo_with_the_log_probabilities_of_the_prompt(client: openai.OpenAI, engine: LlamaEngine) -> None:
    """As lm-evaluation-harness asks for them: by token ids, greedy, with one token more."""
    tokens = list(engine.tokenize("é " + SAYS + "x"))
    ask: dict[str, Any] = {**ASK, "max_tokens": 1, "echo": True, "logprobs": 1}
    ids, text = client.completions.create(**ask, prompt=[tokens, tokens]).choices
    assert ids.text == text.text == "é " + SAYS + "x" + SAYS[0]
    assert ids.logprobs == text.logprobs
    found = ids.logprobs
    assert found
    assert found.tokens
    assert found.token_logprobs
    assert found.top_logprobs
    assert found.text_offset
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(tokens) + 1
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    # What the model says by itself is the likeliest there, and what it does not is not.
    start = len(tokens) - len(SAYS) - 1
    for at in range(start + 1, start + len(SAYS)):
        assert [found.token_logprobs[at]] == list(found.top_logprobs[at].values())
    assert found.token_logprobs[len(tokens) - 1] < max(found.top_logprobs[len(tokens) - 1].values())
    assert found.tokens[start:] == [*SAYS, "x", SAYS[0]]
    assert found.text_offset[start:] == list(range(2, len(SAYS) + 4))
    # A text is split by the node, and a stream brings the same in its first piece.
    answer = client.completions.create(**ask, prompt="é " + SAYS + "x").choices[0]
    assert answer.logprobs == found
    pieces = [chunk.choices[0] for chunk in client.completions.create(**ask, prompt=[tokens], stream=True)]
    assert "".join(piece.text for piece in pieces) == ids.text
    parts = [piece.logprobs for piece in pieces if piece.logprobs]
    assert [entry for part in parts for entry in part.token_logprobs or []] == found.token_logprobs
    assert [entry for part in parts for entry in part.text_offset or []] == found.text_offset


def test_an_echo_alone(client: openai.OpenAI, engine: LlamaEngine) -> None:
    ask: dict[str, Any] = {**ASK, "prompt": "say: H", "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = client.completions.create(**ask)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("say: H", "length")
    assert choice.logprobs
    assert len(choice.logprobs.tokens or []) == len(engine.tokenize("say: H"))
    assert answer.usage
    assert answer.usage.completion_tokens == 0
    pieces = [chunk.choices[0] for chunk in client.completions.create(**ask, stream=True)]
    assert "".join(piece.text for piece in pieces) == "say: H"
    assert pieces[-1].finish_reason == "length"


def test_an_answer_that_ends_at_once_has_a_token_behind_a_scored_prompt(
    client: openai.OpenAI, engine: LlamaEngine
) -> None:
    ask: dict[str, Any] = {**ASK, "prompt": SAYS, "echo": True, "logprobs": 1, "logit_bias": {"2": 100}}
    answer = client.completions.create(**ask).choices[0]
    assert (answer.text, answer.finish_reason) == (SAYS, "stop")
    assert answer.logprobs
    assert len(answer.logprobs.token_logprobs or []) == len(engine.tokenize(SAYS)) + 1


def test_the_best_of_several(client: openai.OpenAI) -> None:
    # The bias makes four letters about as likely, so that the seed decides; the model itself prefers the H.
    bias = {str(FIRST_BYTE + ord(letter)): 32 for letter in "PQZ"}
    ask: dict[str, Any] = {
        "model": "tiny",
        "prompt": "x",
        "temperature": 2,
        "max_tokens": 1,
        "seed": 3,
        "logit_bias": bias,
        "extra_body": {"top_k": 4, "min_p": 0},
    }
    every = client.completions.create(**ask, n=16, logprobs=0)

    def logprob(choice: Any) -> float:
        return choice.logprobs.token_logprobs[0]

    ranked = sorted(every.choices, key=logprob, reverse=True)
    assert logprob(ranked[0]) > logprob(ranked[-1])  # else any would do
    best = client.completions.create(**ask, n=2, best_of=16)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [(choice.index, choice.logprobs) for choice in best.choices] == [(0, None), (1, None)]
    assert best.usage
    assert best.usage.completion_tokens == 16  # all of them were made
    shown = client.completions.create(**ask, n=1, best_of=16, logprobs=2)
    assert logprob(shown.choices[0]) == pytest.approx(logprob(ranked[0]), abs=0.01)


def test_a_gap_is_filled(client: openai.OpenAI, node: NodeServer, engine: LlamaEngine) -> None:
    before, after = "a HE", "b WRD"
    prompt = engine.tokenize_infill(before, after)
    begin, end = engine.tokenize(before, add_special=False), engine.tokenize(after, add_special=False)
    pre, suf, mid = (engine.tokenize(f"<|fim_{name}|>")[-1] for name in ("prefix", "suffix", "middle"))
    assert prompt == (1, pre, *begin, suf, *end, mid)
    for given in (before, list(begin)):
        answer = client.completions.create(**ASK, prompt=given, suffix=after)
        assert answer.choices[0].text == SAYS[:3]
        assert answer.usage
        assert answer.usage.prompt_tokens == len(prompt)
    with ollama.Client(node.url, timeout=30) as other:
        options = {"temperature": 0, "num_predict": 3}
        told = other.generate(model="tiny", prompt=before, suffix=after, options=options)
        assert (told.response, told.prompt_eval_count) == (SAYS[:3], len(prompt))
        assert "insert" in (other.show("tiny").capabilities or [])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": ["a", [True]]}, "prompt[1]"),
        ({"prompt": ["a", []]}, "prompt[1]"),
        ({"prompt": [[1], [10**9]]}, "vocabulary"),
        ({"prompt": [10**9], "echo": True}, "vocabulary"),
        ({"prompt": [-1], "suffix": "x"}, "vocabulary"),
        ({"echo": 1}, "echo"),
        ({"echo": True, "suffix": "x"}, "echo together with suffix"),
        ({"echo": True, "logprobs": 20, "prompt": ["a" * 200] * 30}, "log-probabilities"),
        ({"suffix": 3}, "suffix"),
        ({"n": 3, "best_of": 2}, "best_of is 2"),
        ({"best_of": 129}, "best_of is 129"),
        ({"best_of": 4, "stream": True}, "best_of is 4"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_what_is_wrong_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], named: str) -> None:
    answer = http.post("/v1/completions", json={**ASK, "prompt": "x", **fields})
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
