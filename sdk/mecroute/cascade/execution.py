"""Runs a cascade: the first target's whole answer is judged, and delivered or asked for elsewhere.

Where something is in the way of escalating (the deadline, a budget, a target that fails), the first answer is
delivered after all: it is there, and an error is worth less.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from mecroute.cascade.judged import Given, JudgedAnswers
from mecroute.cascade.marks import Marks, marks_of_classes, marks_of_text
from mecroute.cascade.plan import Verdict
from mecroute.decision import Candidate
from mecroute.errors import DeadlineExceededError, InvalidRequestError, MecrouteError
from mecroute.evidence.signals import Answer, answer_of
from mecroute.execution import Execution, Whole

#: Of answers that are compared: a model that always says its likeliest word would agree with itself.
_SAMPLING = {"temperature": 0.7}
_LEAST_TEMPERATURE = 0.3
#: Most of what is left before the deadline that is kept for the second stage.
_SHARE_KEPT = 0.5


@dataclass(slots=True)
class _First:
    """The first stage's answer, and what it was found to be worth."""

    whole: Whole
    marks: Marks
    prompt_tokens: int
    output_tokens: int


class CascadeExecution(Execution):
    """One request whose first answer is judged, as its decision plans; or, without a plan, only measured.

    Args:
        judged: what is known of answers; told of the first one here.
    """

    def __init__(self, judged: JudgedAnswers, *args: Any) -> None:
        super().__init__(*args)
        self._judged = judged
        self._plan = self.decision.cascade
        self.verdict: Verdict | None = None
        #: The first answer, where another one was delivered in its place.
        self.replaced: Answer | None = None
        self._delivered_ms: float | None = None

    @property
    def ttft_ms(self) -> float | None:
        """As `Execution.ttft_ms`; what was held back until it was judged came only then."""
        return self._delivered_ms if self._delivered_ms is not None else super().ttft_ms

    @property
    def is_settled_for(self) -> bool:
        """Whether an answer was delivered that had been judged too poor."""
        return self.verdict is not None and self.verdict.delivered and not self.verdict.kept

    async def complete(self) -> dict[str, Any]:
        """The first answer where it is good enough, else the second target's.

        Raises: as `Execution.complete`, where nobody answered at all.
        """
        first = await self._first()
        if first is None:
            return await super().complete()
        if self._plan is None or self._is_kept(first):
            return self._first_body(first)
        self._escalate(first)
        try:
            self._check_time()
            body = await super().complete()
        except MecrouteError as error:
            return self._settle_for(first, error)
        self._was_replaced(first)
        return body

    async def stream(self) -> AsyncGenerator[dict[str, Any]]:
        """As `complete`, in chunks: the first answer is held back until it is judged, the second is not.

        Raises: as `Execution.stream`.
        """
        first = await self._first()
        if first is None or self._plan is None:
            async with aclosing(super().stream()) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        body: dict[str, Any] | None = None
        if self._is_kept(first):
            body = self._first_body(first)
        else:
            self._escalate(first)
            try:
                self._check_time()
                async with aclosing(super().stream()) as chunks:
                    async for chunk in chunks:
                        if self.delivered and self._failed:
                            # From here on whoever is there may go on with it.
                            self._failed.clear()
                            self._was_replaced(first)
                        yield chunk
                self._was_replaced(first)
            except MecrouteError as error:
                if self.delivered or self.is_unjoinable:
                    raise
                body = self._settle_for(first, error)
        if body is not None:
            self._delivered_ms = (time.monotonic() - self._started) * 1000
            for chunk in _as_chunks(body):
                self._deliver(chunk, _text_of(chunk))
                yield chunk

    async def _first(self) -> _First | None:
        """The first stage; None where it gave nothing, which leaves the other targets to answer."""
        candidate = self.decision.candidates[0]
        try:
            async with asyncio.timeout(self._first_stage_s()):
                whole = await self._whole(0, body=self._measured_body())
        except TimeoutError:
            # It answers too slowly for this deadline. That says how slow it is, and is no failure.
            segment = self.segments[-1]
            segment.overtaken_by = self.decision.candidates[1].target.id
            self._monitor.overtaken(self.decision, segment)
            self._failed.add(0)
            return None
        except InvalidRequestError as error:
            if self._measured_body() == self.request.body:
                raise
            # Perhaps it is the log-probabilities that this target does not give.
            segment = self.segments[-1]
            segment.error = error.message
            if self._plan is not None:
                self._failed.add(0)
                self._attempts.append((segment.target_id, error))
            else:
                self._judged.cannot_measure(segment.target_id)
            return None
        if whole is None:
            return None
        self._taken(whole)
        prompt, output = _tokens(whole.body)
        others: list[dict[str, Any]] = []
        if self._plan is not None and self._plan.samples > 1:
            others = await self._more(candidate, self._plan.samples - 1)
        marks = self._marks(whole.body, others)
        for other in others:
            more = _tokens(other)
            self.set_aside.append((candidate, *more))
            prompt, output = prompt + more[0], output + more[1]
        return _First(whole, marks, prompt, output)

    def _first_stage_s(self) -> float | None:
        """How long the first stage may take, so that the second is still possible; None without a bound."""
        left_s = self.request.remaining_s()
        if left_s is None or self._plan is None:
            return None
        second_s = self.decision.candidates[1].latency_ms_p50 / 1000
        return left_s - min(second_s, left_s * _SHARE_KEPT)

    def _asks_for_logprobs(self) -> bool:
        asked = self.request.body.get("logprobs")
        return asked is not None and asked is not False

    def _measured_body(self) -> Mapping[str, Any]:
        """The request with log-probabilities asked for."""
        task = self.request.task
        # It is asked for whole, and may have been wanted as a stream.
        body = {name: value for name, value in self.request.body.items() if name != "stream_options"}
        if task in ("chat", "completion") and not self._asks_for_logprobs():
            body["logprobs"] = True if task == "chat" else 0
        return body

    async def _more(self, candidate: Candidate, count: int) -> list[dict[str, Any]]:
        """Further answers of the same target, all asked at once. Those that do not come are left out."""
        body = {name: value for name, value in self.request.body.items() if name != "stream_options"}
        if (body.get("temperature") or 0) < _LEAST_TEMPERATURE:
            body |= _SAMPLING
        seed = body.get("seed")
        asked = [
            self._sample(
                candidate, body | {"seed": (seed if isinstance(seed, int) else 0) + 1 + number}, number
            )
            for number in range(count)
        ]
        try:
            async with asyncio.timeout(self._first_stage_s()):
                found = await asyncio.gather(*asked)
        except (TimeoutError, MecrouteError):
            return []
        return [answer for answer in found if answer is not None]

    async def _sample(
        self, candidate: Candidate, body: Mapping[str, Any], number: int
    ) -> dict[str, Any] | None:
        sent = self._sent(candidate)
        try:
            return await self._ask(candidate, body, id_suffix=f"-{number + 2}")
        except MecrouteError:
            return None
        finally:
            sent.end()

    def _marks(self, body: Mapping[str, Any], others: list[dict[str, Any]]) -> Marks:
        if self.request.task == "classify":
            return marks_of_classes(body)
        answers = [answer_of(other, self.request.body) for other in others]
        texts = [answer.text if answer is not None else "" for answer in answers]
        return marks_of_text(self.request.text(), body, self.request.body, texts)

    def _is_kept(self, first: _First) -> bool:
        """Judge the first answer."""
        plan = self._plan
        assert plan is not None, "only planned cascades are judged"
        calibrated = self._judged.of(plan.first)
        threshold = (
            calibrated.threshold if calibrated is not None and calibrated.judge == plan.judge else None
        )
        score = calibrated.score(first.marks) if calibrated is not None and threshold is not None else None
        if threshold is None or calibrated is None:
            kept, reason = False, "what was known of this target's answers has been thrown away"
        elif score is None:
            kept, reason = False, f"the answer came with nothing that {plan.judge} could judge"
        else:
            kept = score >= threshold
            reason = f"{plan.judge} gives {score:.3f}, at least {threshold:.3f} is kept"
        self.verdict = Verdict(
            first=plan.first,
            judge=plan.judge,
            threshold=threshold,
            score=score,
            kept=kept,
            delivered=kept,
            reason=reason,
            latency_ms=(time.monotonic() - self._started) * 1000,
            prompt_tokens=first.prompt_tokens,
            output_tokens=first.output_tokens,
        )
        if calibrated is not None and score is not None:
            under = calibrated.under if kept else None
            self._remember(first, under=under, threshold=threshold if kept else None, is_escalated=not kept)
        return kept

    def _remember(self, first: _First, **how: Any) -> None:
        self._judged.given(self.request.id, Given(first.whole.segment.target_id, first.marks, **how))

    def _first_body(self, first: _First) -> dict[str, Any]:
        """The first answer as the caller asked for it."""
        if self._plan is None:
            self._remember(first)
        body = first.whole.body
        if not self._asks_for_logprobs():
            for choice in body.get("choices") or ():
                if isinstance(choice, dict):
                    choice.pop("logprobs", None)
        return body

    def _escalate(self, first: _First) -> None:
        """Leave only the second target to be asked."""
        second = self.decision.candidates[1]
        first.whole.segment.escalated_to = second.target.id
        self._failed = {0, *range(2, len(self.decision.candidates))}

    def _check_time(self) -> None:
        """Nothing is begun, and paid for, that cannot even begin to answer before the deadline."""
        left_s, second = self.request.remaining_s(), self.decision.candidates[1]
        if left_s is not None and left_s * 1000 < second.ttft_ms:
            raise DeadlineExceededError(
                f"{left_s * 1000:.0f} ms are left before the deadline, {second.target.id} takes "
                f"{second.ttft_ms:.0f} ms to begin"
            )

    def _was_replaced(self, first: _First) -> None:
        """Another answer is delivered: the first one's cost is part of its own."""
        if self.replaced is None:
            self.replaced = answer_of(first.whole.body, self.request.body) or Answer("")
            self.set_aside.append((self.decision.candidates[0], *_tokens(first.whole.body)))

    def _settle_for(self, first: _First, error: MecrouteError) -> dict[str, Any]:
        """Deliver the first answer although it was judged too poor."""
        assert self.verdict is not None, "it was judged"
        second = self.segments[-1]
        if second is not first.whole.segment and second.error is None:
            second.error = error.message
            candidate = self.decision.candidates[1]
            tokens = self.decision.features.prompt_tokens, int(candidate.output_tokens)
            self.set_aside.append((candidate, *tokens))  # it was begun: what it costs is not known
        first.whole.segment.escalated_to = None
        self._answering = 0
        reason = f"{self.verdict.reason}; it is delivered all the same: {error.message}"
        self.verdict = replace(self.verdict, delivered=True, reason=reason)
        return self._first_body(first)


def _tokens(body: Mapping[str, Any]) -> tuple[int, int]:
    usage = body.get("usage")
    if not isinstance(usage, Mapping):
        return 0, 0
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (
        prompt if isinstance(prompt, int) and prompt > 0 else 0,
        output if isinstance(output, int) and output > 0 else 0,
    )


def _as_chunks(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A whole answer as the chunks of a stream."""
    is_chat = body.get("object") != "text_completion"
    frame = {name: body.get(name) for name in ("id", "created", "model")}
    frame["object"] = "chat.completion.chunk" if is_chat else "text_completion"
    for choice in body.get("choices") or ():
        index = choice.get("index", 0)
        given = {"logprobs": choice["logprobs"]} if choice.get("logprobs") else {}
        if is_chat:
            message = choice.get("message") or {}
            delta = {"role": message.get("role", "assistant"), "content": message.get("content") or ""}
            yield {**frame, "choices": [{"index": index, "delta": delta, "finish_reason": None, **given}]}
            end: dict[str, Any] = {"delta": {}}
        else:
            text = {"index": index, "text": choice.get("text") or "", "finish_reason": None, **given}
            yield {**frame, "choices": [text]}
            end = {"text": ""}
        finish = choice.get("finish_reason") or "stop"
        yield {**frame, "choices": [{"index": index, **end, "finish_reason": finish}]}
    if isinstance(body.get("usage"), Mapping):
        yield {**frame, "choices": [], "usage": body["usage"]}


def _text_of(chunk: Mapping[str, Any]) -> str:
    for choice in chunk["choices"]:
        return str((choice.get("delta") or {}).get("content") or choice.get("text") or "")
    return ""
