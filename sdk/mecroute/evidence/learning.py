"""Turns finished requests into records and evidence, off the request path, and keeps what was learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mecroute.decision import Candidate
from mecroute.evidence.confidence import LogprobEvidence
from mecroute.evidence.drift import DriftMonitor
from mecroute.evidence.posterior import CLEAN_WEIGHT, SIGN_WEIGHTS, QualityEvidence
from mecroute.evidence.regret import regret
from mecroute.evidence.signals import Answer, Signals, signals
from mecroute.outcome import ABANDONED, Provenance, Segment
from mecroute.state.encoding import encode
from mecroute.state.store import Batch, DecisionRow, EvidenceRow, LearnedRow, StateStore
from mecroute.state.worker import Worker

_SAVE_EVERY_S = 5.0


class Learned(Protocol):
    """Something that is learned and survives a restart, as JSON objects by name."""

    def take_changes(self) -> Mapping[str, Mapping[str, Any]]:
        """What changed since the last call."""
        ...

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        """Take one entry back; what is damaged is left out."""
        ...

    def forget(self) -> None:
        """Start afresh."""
        ...


@dataclass(frozen=True, slots=True)
class Judgement:
    """What somebody or something says of one answer.

    Args:
        source: `feedback` (a person), `shadow` (a second target's answer).
        complexity: 0..1, of the request.
        predicted: quality predicted for the answer, before any adjustment; 0..1.
        score: 0 (wrong) to 1 (right).
        weight: 0..1, how much it says.
        note: on what it stands, in a word; never any text of the answer.
        is_settled: whether it tells right from wrong, and not only what is likelier.
        kind: of the request; see `predict/kind.py`.
    """

    request_id: str
    source: str
    target_id: str
    complexity: float
    predicted: float
    score: float
    weight: float = 1.0
    note: str = ""
    is_settled: bool = True
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class _Finished:
    provenance: Provenance
    at: float
    user: str | None
    answer: Answer | None


class Learning:
    """The monitor's work behind the scenes: one thread, batches, one transaction each. Thread-safe.

    Args:
        store: where it is kept.
        kinds: what is learned, by the kind under which it is kept.
        on_judged: told of every judgement, in the thread of this.
        clock: Unix seconds.
    """

    def __init__(
        self,
        store: StateStore,
        quality: QualityEvidence,
        drift: DriftMonitor,
        confidence: LogprobEvidence,
        kinds: Mapping[str, Learned],
        *,
        on_judged: Callable[[Judgement], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._on_judged = on_judged
        self._quality = quality
        self._drift = drift
        self._confidence = confidence
        self._kinds = kinds
        self._clock = clock
        self._saved_at = clock()
        self._generation, rows = store.restored()
        self._worker: Worker[_Finished | Judgement] = Worker(self._digest, name="mecroute-monitor")
        for row in rows:
            if row.kind in kinds:
                kinds[row.kind].restore(row.name, row.value)

    def finished(self, provenance: Provenance, user: str | None, answer: Answer | None) -> None:
        """A request ended. Returns at once; the answer's text is read later and forgotten."""
        self._worker.put(_Finished(provenance, self._clock(), user, answer))

    def judged(self, judgement: Judgement) -> None:
        """An answer was judged. Returns at once."""
        self._worker.put(judgement)

    def flush(self) -> None:
        """Wait until all of it is learned and on disk (at most a few seconds)."""
        self._worker.flush()

    def close(self) -> None:
        """Learn and write what is left."""
        self._worker.close()
        batch = Batch()
        self._save(batch)
        if batch.learned:
            self._store.write(batch)
        self._store.close()

    def _digest(self, items: list[_Finished | Judgement]) -> None:
        batch = Batch()
        for item in items:
            if isinstance(item, Judgement):
                self._judge(item, batch)
            else:
                self._finish(item, batch)
            time.sleep(0)  # lets a request that waits for the interpreter go first
        if not 0 <= self._clock() - self._saved_at < _SAVE_EVERY_S:
            self._save(batch)
        self._store.write(batch)

    def _judge(self, item: Judgement, batch: Batch) -> None:
        if self._on_judged is not None:
            self._on_judged(item)
        if item.is_settled and item.source != "signals":
            self._confidence.judged(item.request_id, item.target_id, item.score)
        self._quality.add(
            item.target_id,
            item.complexity,
            score=item.score,
            weight=item.weight,
            predicted=item.predicted,
            kind=item.kind,
        )
        batch.evidence.append(
            EvidenceRow(
                *(item.request_id, self._clock(), item.source, item.target_id),
                *(item.score, item.weight, item.note),
            )
        )

    def _finish(self, item: _Finished, batch: Batch) -> None:
        provenance = item.provenance
        decision, outcome = provenance.decision, provenance.outcome
        by_id = {c.target.id: c for c in decision.candidates}
        seen: Signals | None = None
        if provenance.cache is None:
            for segment in provenance.segments:
                if segment.error is None:
                    self._time(segment, by_id.get(segment.target_id), decision.features.output_tokens)
            given = by_id.get(outcome.target_id)
            # Where several targets wrote one answer, its faults are nobody's alone.
            if item.answer is not None and given is not None and outcome.error is None:
                seen = signals(item.answer)
                if len(provenance.segments) == 1:
                    if seen.mean_logprob is not None:
                        self._confidence.saw(provenance.request_id, seen.mean_logprob)
                    self._weigh(item, seen, given, batch)
        bad = seen is not None and bool(seen.bad)
        fell_short = None
        # What was remembered was not decided, and a stream that the caller closed was not got.
        if provenance.cache is None and outcome.error != ABANDONED:
            fell_short = regret(decision, outcome, 0.0 if bad else None)
        batch.decisions.append(
            DecisionRow(
                id=provenance.request_id,
                at=item.at,
                target=outcome.target_id,
                tier=provenance.tier,
                model=provenance.model,
                policy=decision.policy,
                complexity=decision.features.complexity,
                prompt_tokens=outcome.prompt_tokens,
                output_tokens=outcome.output_tokens,
                ttft_ms=outcome.ttft_ms,
                latency_ms=outcome.latency_ms,
                cost_usd=outcome.cost_usd,
                error=outcome.error,
                cache=provenance.cache,
                propensity=decision.propensity,
                explored=int(decision.explored),
                regret=fell_short.value if fell_short else None,
                detail=encode(provenance, user=item.user, signals=seen, regret=fell_short),
            )
        )

    def _time(self, segment: Segment, candidate: Candidate | None, expected_tokens: int) -> None:
        predicted = 0.0
        if candidate is not None and not candidate.cold and segment.seam is None and segment.output_tokens:
            expected = candidate.output_tokens or expected_tokens
            per_token = (candidate.latency_ms_p50 - candidate.ttft_ms) / max(1, expected)
            predicted = candidate.ttft_ms + per_token * segment.output_tokens
        self._drift.answered(segment.target_id, segment.latency_ms, predicted)

    def _weigh(self, item: _Finished, seen: Signals, given: Candidate, batch: Batch) -> None:
        decision = item.provenance.decision
        predicted = given.quality - given.quality_adjusted_by
        if not seen.bad:
            # No bad sign is no proof of a right answer: it counts as what was predicted, or as what its
            # log-probabilities make of that.
            score = None
            if seen.mean_logprob is not None:
                score = self._confidence.quality(given.target.id, seen.mean_logprob, predicted)
            self._quality.add(
                given.target.id, decision.features.complexity,
                score=predicted if score is None else score, weight=CLEAN_WEIGHT, predicted=predicted,
            )  # fmt: skip
            return
        judgement = Judgement(
            request_id=item.provenance.request_id,
            source="signals",
            target_id=given.target.id,
            complexity=decision.features.complexity,
            predicted=predicted,
            score=0.0,
            weight=max(SIGN_WEIGHTS[name] for name in seen.bad),
            note=", ".join(seen.bad),
            kind=decision.features.kind,
        )
        self._judge(judgement, batch)

    def _save(self, batch: Batch) -> None:
        self._saved_at = self._clock()
        generation = self._store.generation()
        if generation != self._generation:
            # Somebody reset what was learned: this process forgets as well, and writes nothing of it back.
            self._generation = generation
            for learned in self._kinds.values():
                learned.forget()
        for kind, learned in self._kinds.items():
            for name, value in learned.take_changes().items():
                batch.learned.append(LearnedRow(kind, name, self._saved_at, value))
