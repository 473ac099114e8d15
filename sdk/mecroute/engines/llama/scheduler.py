"""Continuous batching: one thread that decodes all running requests together, one step at a time."""

from __future__ import annotations

import threading
import time

from mecroute.engines.llama.admission import AnswerLength, Promise, Rates, Work, check_deadline
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.gaps import GapHistogram
from mecroute.engines.llama.generation import Generation, GenerationRequest, wake
from mecroute.engines.llama.grammar import Grammar
from mecroute.engines.llama.logprobs import token_logprob
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.prefill import left_of_prompt, prefill_rows
from mecroute.engines.llama.prefix import PrefixCache, Slot, common_prefix
from mecroute.engines.llama.rates import Rate
from mecroute.engines.llama.request_queue import FairQueue
from mecroute.engines.llama.sampling import Sampler
from mecroute.engines.llama.sequence import PREFILLING, Sequence
from mecroute.engines.llama.stats import EngineStats
from mecroute.errors import (
    ContextLengthError,
    DeadlineExceededError,
    InvalidRequestError,
    MecrouteError,
    OverloadedError,
    TierError,
    TierUnreachableError,
)

#: Steps with fewer prompt tokens than this say little about how fast prompts are computed.
MEASURABLE_PREFILL_ROWS = 16
#: Retry-After before any request has been completed.
UNMEASURED_RETRY_S = 1.0


class Scheduler:
    """Runs requests on one context. At every step each running request gets one token, and prompts that
    are not computed yet get what is left of the batch; requests join and leave between steps.

    Args:
        model: the weights, which must outlive this.
        context: closed with this.
        name: names the engine in errors.
        n_ctx: tokens a request may have, prompt and answer together.
        n_parallel: requests that run at a time.
        kv_tokens: KV cells of the context.
        max_queue: requests that may wait.

    Thread-safe.
    """

    def __init__(
        self,
        model: LlamaModel,
        context: DecodeContext,
        *,
        name: str,
        n_ctx: int,
        n_parallel: int,
        kv_tokens: int,
        max_queue: int,
    ) -> None:
        import numpy as np

        self._model = model
        self._context = context
        self._name = name
        self._n_ctx = n_ctx
        self._n_parallel = n_parallel
        self._kv_tokens = kv_tokens
        self._max_queue = max_queue
        self._slots = [Slot(i) for i in range(n_parallel)]
        self._prefixes = PrefixCache(self._slots, can_share=model.can_share_prefix)
        self._running: list[Sequence] = []
        self._queue = FairQueue()
        self._answer_length = AnswerLength()
        #: First answers of requests for several, until the others have been queued.
        self._leaders: set[Generation] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._pieces: dict[int, bytes | None] = {}
        self._counting = np.arange(n_ctx, dtype=np.int32)
        self._step_count = 0
        self._prefill_rate = Rate()
        self._decode_rate = Rate()
        # Requests end far less often than steps: a longer memory, of time with something running.
        self._completion_rate = Rate(memory_s=30.0)
        self._gaps = GapHistogram()
        self._decode_steps_total = 0
        self._decoded_rows_total = 0
        self._tokens_total = 0
        self._prompt_tokens_total = 0
        self._prefix_hit_tokens = 0
        self._thread = threading.Thread(target=self._run, name=f"mecroute-engine-{name}", daemon=True)
        self._thread.start()

    # The callers' side.

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request; see `LlamaEngine.submit`."""
        length, room = len(request.prompt), self._n_parallel + self._max_queue
        if request.n > room:
            raise InvalidRequestError(
                f"n is {request.n}, and {self._name} holds {room} requests", hint=f"ask for at most {room}"
            )
        if length >= self._n_ctx:
            raise ContextLengthError(
                f"the prompt has {length} tokens and {self._name}'s context window {self._n_ctx}, "
                "of which the answer needs at least one",
                hint="shorten the prompt, or serve the model with a longer context",
            )
        generation = Generation(
            request, max_tokens=min(request.max_tokens, self._n_ctx - length), cancel=self._cancel
        )
        request.submitter.reserve(generation.max_tokens * request.n)
        with self._changed:
            if self._closing:
                raise self._closed_error()
            leader = generation.branches[0]
            self._queue.push(leader)
            try:
                self._refuse_if_late(leader)
                self._check_room(leader, request.n)
            except MecrouteError:
                self._queue.remove(leader)
                raise
            if leader.followers:
                self._leaders.add(leader)
            request.submitter.accepted(generation)
            self._changed.notify()
        return generation

    def _check_room(self, leader: Generation, answers: int) -> None:
        """Raise if a request that has just been queued is one too many; another may have to give way."""
        self._leaders = {other for other in self._leaders if not (other.cancelled or other.done)}
        held = sum(len(other.followers) for other in self._leaders)
        over = len(self._queue) + len(self._running) + held + answers - 1 - self._n_parallel - self._max_queue
        if over > 0:
            self._make_room_for(leader, over)

    def _make_room_for(self, generation: Generation, places: int) -> None:
        overloaded = OverloadedError(
            f"{self._name} has {len(self._running)} requests running and {len(self._queue) - 1} waiting",
            retry_after_s=self._retry_after_s(),
        )
        self._queue.remove(generation)
        # A request for several answers does not push out several others.
        victim = self._queue.make_room_for(generation.request.submitter.key) if places == 1 else None
        if victim is None:
            raise overloaded
        self._queue.push(generation)
        victim.fail(overloaded)
        wake((victim,))

    def _refuse_if_late(self, generation: Generation) -> None:
        """Raise if a queued request with a deadline is not going to meet it, as far as can be predicted."""
        deadline_at = generation.request.submitter.deadline_at
        if deadline_at is not None:
            prefill, decode = self._prefill_rate.per_s, self._decode_rate.per_s
            now = time.perf_counter()
            line = list(self._queue)
            place = next(at for at, other in enumerate(line) if other is generation)
            check_deadline(
                self._work_of(generation),
                name=self._name,
                left_s=deadline_at - now,
                running=[self._work_left(sequence) for sequence in self._running],
                ahead=[self._work_of(other) for other in line[:place]],
                slots=self._n_parallel,
                rates=Rates(prefill, decode) if prefill and decode else None,
                behind=[self._promise(other, now) for other in line[place + 1 :]],
            )

    def _promise(self, generation: Generation, now: float) -> Promise:
        deadline_at = generation.request.submitter.deadline_at
        return Promise(self._work_of(generation), None if deadline_at is None else deadline_at - now)

    def _work_of(self, generation: Generation) -> Work:
        # The engine's thread may be adding to a slot's tokens meanwhile: the estimate is a token older then.
        prompt = list(generation.request.prompt)
        limit = len(prompt) - 1 if self._model.can_share_prefix else 0
        cached = max(common_prefix(slot.tokens, prompt, limit=limit) for slot in self._slots)
        return Work(len(prompt) - cached, self._answer_length.expected(generation.max_tokens))

    def _work_left(self, sequence: Sequence) -> Work:
        prefill = len(sequence.prompt) - len(sequence.slot.tokens)
        limit = sequence.generation.max_tokens
        return Work(
            max(0, prefill) if sequence.next_token == PREFILLING else 0,
            self._answer_length.expected_left(limit, sequence.completed),
        )

    def _cancel(self, generation: Generation) -> None:
        # A running one is seen at the next step; a waiting one gives up its place at once.
        with self._changed:
            self._queue.remove(generation)

    def stats(self) -> EngineStats:
        """What is going on now."""
        with self._changed:
            running, queued = len(self._running), len(self._queue)
            full = running + queued >= self._n_parallel + self._max_queue
            return EngineStats(
                running=running,
                queued=queued,
                n_parallel=self._n_parallel,
                kv_used_tokens=sum(len(slot.tokens) for slot in self._slots),
                kv_total_tokens=self._kv_tokens,
                prefill_tokens_per_s=self._prefill_rate.per_s,
                decode_tokens_per_s=self._decode_rate.per_s,
                tokens_total=self._tokens_total,
                prompt_tokens_total=self._prompt_tokens_total,
                prefix_hit_tokens=self._prefix_hit_tokens,
                retry_after_s=self._retry_after_s() if full else 0.0,
                decode_steps_total=self._decode_steps_total,
                decoded_rows_total=self._decoded_rows_total,
                gaps=self._gaps.read(),
            )

    def _retry_after_s(self) -> float:
        """How long until one of the requests ends and makes a place free, at the measured rate."""
        completions_per_s = self._completion_rate.per_s
        return 1 / completions_per_s if completions_per_s else UNMEASURED_RETRY_S

    def close(self) -> None:
        """End the thread and fail what is running or waiting; a second call does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._context.close()

    def on_own_thread(self) -> bool:
        """Whether the caller is the engine's thread, which must not call `close`."""
        return threading.current_thread() is self._thread

    def _closed_error(self) -> MecrouteError:
        return TierUnreachableError(
            f"the engine of {self._name} was closed",
            hint="send the request again to another target",
            retryable=True,
            model=self._name,
        )

    # The engine thread's side. Only it touches the context, the slots and the sequences; `_running` it
    # changes under the lock.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        finally:
            # Also when a step raised: nobody may wait for an answer that will not come.
            with self._changed:
                self._closing = True
                left = [sequence.generation for sequence in self._running]
                for sequence in self._running:
                    sequence.close()
                self._running.clear()
                while self._queue.peek() is not None:
                    left.append(self._queue.pop())
            for generation in left:
                generation.fail(self._closed_error())
            wake(left)

    def _wait_for_work(self) -> bool:
        """Admit what fits, waiting until there is something to run; False when closing."""
        with self._changed:
            while True:
                if self._closing:
                    return False
                for sequence in [s for s in self._running if s.generation.cancelled]:
                    self._release(sequence)
                self._expire()
                self._admit()
                if self._running:
                    return True
                self._changed.wait()

    def _expire(self) -> None:
        late = self._queue.expire(time.perf_counter())
        for generation in late:
            error = "the deadline passed while the request waited for other requests"
            generation.fail(DeadlineExceededError(f"{self._name}: {error}", hint="allow more time"))
        if late:
            wake(late)

    def _admit(self) -> None:
        while (generation := self._queue.peek()) is not None and self._prefixes.has_idle():
            room = len(generation.request.prompt) + generation.max_tokens
            if sum(sequence.room for sequence in self._running) + room > self._kv_tokens:
                return
            self._queue.pop()
            self._start(generation)

    def _start(self, generation: Generation) -> None:
        request = generation.request
        prompt = list(request.prompt)
        slot, source, cached = self._prefixes.place(prompt)
        context = self._context
        if source is slot:
            if len(slot.tokens) > cached and not context.keep_prefix(slot.id, cached):
                context.keep_prefix(slot.id, 0)  # removing all of it cannot fail
                cached = 0
        else:
            if slot.tokens:
                context.keep_prefix(slot.id, 0)
            if source is not None:
                context.share_prefix(source.id, slot.id, cached)
        slot.tokens = prompt[:cached]
        slot.busy = True
        self._running.append(
            Sequence(
                generation,
                slot,
                prompt=prompt,
                cached=cached,
                sampler=Sampler(
                    request.sampling,
                    self._model.n_vocab,
                    prompt,
                    Grammar(self._model, request.constraint) if request.constraint is not None else None,
                ),
                now=time.perf_counter(),
            )
        )
        self._prompt_tokens_total += len(prompt)
        self._prefix_hit_tokens += cached
        # What runs is promised its room (shared cells counted twice, to be safe); caches get what is left.
        spare = self._kv_tokens - sum(sequence.room for sequence in self._running)
        held = sum(len(idle.tokens) for idle in self._slots if not idle.busy)
        for victim in self._prefixes.victims():
            if held <= spare:
                break
            held -= len(victim.tokens)
            self._forget(victim)

    def _forget(self, slot: Slot) -> None:
        self._context.keep_prefix(slot.id, 0)
        slot.tokens = []

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        sequence.close()
        sequence.slot.busy = False
        sequence.slot.last_used = self._step_count

    def _step(self) -> None:
        """Decode one batch: a token of every request that generates, and a slice of the prompts."""
        context, running = self._context, self._running
        tokens, positions = context.tokens, context.positions
        sequences, wants_logits = context.sequences, context.wants_logits
        self._step_count += 1
        chosen: list[tuple[Sequence, int]] = []
        rows = 0
        for sequence in running:
            if sequence.next_token != PREFILLING:
                slot = sequence.slot
                tokens[rows] = sequence.next_token
                positions[rows] = len(slot.tokens)
                sequences[rows] = slot.id
                wants_logits[rows] = 1
                chosen.append((sequence, rows))
                rows += 1
        decoding = rows
        prefills: list[tuple[Sequence, int]] = []
        if decoding < len(running):
            waiting = [sequence for sequence in running if sequence.next_token == PREFILLING]
            # The shortest first: they are not held up by a long one, which has its own share of the step.
            waiting.sort(key=left_of_prompt)
            limit = decoding + prefill_rows(
                waiting, decoding=decoding, n_batch=context.n_batch, speed=self._prefill_rate.per_s
            )
            for sequence in waiting:
                if rows < limit:
                    slot = sequence.slot
                    done = len(slot.tokens)
                    count = min(len(sequence.prompt) - done, limit - rows)
                    end = rows + count
                    tokens[rows:end] = sequence.prompt[done : done + count]
                    positions[rows:end] = self._counting[done : done + count]
                    sequences[rows:end] = slot.id
                    wants_logits[rows:end] = 0
                    prefills.append((sequence, count))
                    if done + count == len(sequence.prompt):
                        wants_logits[end - 1] = 1
                        chosen.append((sequence, end - 1))
                    rows = end

        started_at = time.perf_counter()
        status = context.decode(rows)
        if status != 0:
            self._recover(status)
            return
        for sequence, _ in chosen[:decoding]:
            sequence.slot.tokens.append(sequence.next_token)
        for sequence, count in prefills:
            done = len(sequence.slot.tokens)
            sequence.slot.tokens.extend(sequence.prompt[done : done + count])
        self._follow([sequence.generation for sequence, _ in chosen[decoding:]])

        sample, pieces = context.sample, self._pieces
        finished: list[Sequence] = []
        now = started_at
        for sequence, row in chosen:
            constrained = sequence.sampler.constrained
            if constrained is None:
                token = sample(sequence.sampler.handle, row)
            else:
                try:
                    token = constrained.choose(context.logits(row, self._model.n_vocab))
                except InvalidRequestError as error:
                    sequence.generation.fail(error)
                    finished.append(sequence)
                    continue
            piece = pieces[token] if token in pieces else self._learn_piece(token)
            if sequence.top_logprobs is not None and piece is not None:
                logits = context.logits(row, self._model.n_vocab)
                sequence.note(token_logprob(logits, token, sequence.top_logprobs, self._model.spell), piece)
            now = time.perf_counter()
            if sequence.accept(token, piece, now):
                finished.append(sequence)
            if sequence.gap_s is not None:
                self._gaps.add(sequence.gap_s)
        wake([sequence.generation for sequence, _ in chosen])

        self._tokens_total += len(chosen)
        self._decode_steps_total += decoding > 0
        self._decoded_rows_total += decoding
        took = (now if chosen else time.perf_counter()) - started_at
        if self._step_count > 1:  # the first one reads the weights from disk
            self._measure(decoding, rows - decoding, len(finished), took)
        if finished:
            with self._changed:
                for sequence in finished:
                    cut_off = sequence.completed >= sequence.generation.max_tokens
                    self._answer_length.add(sequence.completed, cut_off=cut_off)
                    self._release(sequence)

    def _follow(self, leaders: list[Generation]) -> None:
        """Queue the further answers to requests whose prompt is in memory now."""
        if not any(leader.followers for leader in leaders):
            return
        with self._changed:
            for leader in leaders:
                for follower in leader.followers:
                    if not follower.cancelled:
                        self._queue.push(follower)
                leader.followers = ()
                self._leaders.discard(leader)

    def _measure(self, decoding: int, prefilled: int, finished: int, took_s: float) -> None:
        if decoding:
            self._decode_rate.add(1, took_s)
        if prefilled >= MEASURABLE_PREFILL_ROWS:
            self._prefill_rate.add(prefilled, took_s)
        self._completion_rate.add(finished, took_s)

    def _learn_piece(self, token: int) -> bytes | None:
        piece = None if self._model.is_end(token) else self._model.piece(token)
        self._pieces[token] = piece
        return piece

    def _recover(self, status: int) -> None:
        """After a failed step: make room and try again, or give up what cannot go on."""
        idle = list(self._prefixes.victims())
        if status == 1 and idle:
            for slot in idle:
                self._forget(slot)
            return
        error = TierError(
            f"llama.cpp failed to decode a batch for {self._name} (status {status})",
            hint="send the request again; if it keeps failing, reload the model",
            retryable=True,
            model=self._name,
        )
        with self._changed:
            failed = [sequence.generation for sequence in self._running]
            for sequence in list(self._running):
                self._release(sequence)
            # A failed batch leaves some of its rows in memory: none of it can be trusted to match `tokens`.
            self._context.clear()
            for slot in self._slots:
                slot.tokens = []
        for generation in failed:
            generation.fail(error)
        wake(failed)
