"""Continuous batching: one thread that decodes all running requests together, one step at a time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from mecroute.engines.llama.admission import AnswerLength, Promise, Work, check_deadline
from mecroute.engines.llama.batch import Batch
from mecroute.engines.llama.choosing import TokenChooser
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.errands import Errands
from mecroute.engines.llama.free_places import FreePlaces
from mecroute.engines.llama.gaps import GapHistogram
from mecroute.engines.llama.generation import Generation, GenerationRequest, wake
from mecroute.engines.llama.grammar import Grammar
from mecroute.engines.llama.kv_memory import Resident
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.pace import MEASURABLE_PREFILL_ROWS, PaceMeter
from mecroute.engines.llama.prefill import PrefillSlices
from mecroute.engines.llama.rates import Rate
from mecroute.engines.llama.request_queue import FairQueue
from mecroute.engines.llama.residency import Residency
from mecroute.engines.llama.sampling import Sampler
from mecroute.engines.llama.sequence import PREFILLING, Sequence
from mecroute.engines.llama.speculation import Speculator
from mecroute.engines.llama.stats import EngineStats
from mecroute.engines.llama.threads import give_way
from mecroute.errors import (
    ContextLengthError,
    DeadlineExceededError,
    InvalidRequestError,
    MecrouteError,
    OverloadedError,
    TierError,
    TierUnreachableError,
)

_T = TypeVar("_T")


class Scheduler:
    """Runs requests on one context. At every step each running request gets one token, and prompts that
    are not computed yet get what is left of the batch; requests join and leave between steps.

    Args:
        model: the weights, which must outlive this.
        context: closed with this.
        name: names the engine in errors.
        n_ctx: tokens a request may have, prompt and answer together.
        n_parallel: requests that run at a time.
        residency: what the context's KV cells hold; used by this alone from now on.
        lock: held whenever `residency` is used, which lets go of it while it copies what cells hold.
        max_queue: requests that may wait.
        speculator: drafts tokens; closed with this. None: every token takes a step of its own.

    Thread-safe.
    """

    def __init__(
        self,
        model: LlamaModel,
        context: DecodeContext,
        residency: Residency,
        lock: threading.Condition,
        *,
        name: str,
        n_ctx: int,
        n_parallel: int,
        max_queue: int,
        speculator: Speculator | None = None,
    ) -> None:
        self._model = model
        self._context = context
        self._name = name
        self._n_ctx = n_ctx
        self._n_parallel = n_parallel
        self._max_queue = max_queue
        self._residency = residency
        self._memory = residency.memory
        self._running: list[Sequence] = []
        self._queue = FairQueue()
        self._errands = Errands()
        self._answer_length = AnswerLength()
        #: First answers of requests for several, until the others have been queued.
        self._leaders: set[Generation] = set()
        self._changed = lock
        #: Whether something has come since the engine's thread last looked for it.
        self._has_news = False
        #: The request that is on its way from the queue to those that run or wait in a slot.
        self._starting: Generation | None = None
        self._closing = False
        self._gaps = GapHistogram()
        self._chooser = TokenChooser(model, context, self._gaps, speculator=speculator)
        self._speculator = speculator
        self._step_count = 0
        self._slices = PrefillSlices()
        self._prefill_rate = Rate()
        self._pace = PaceMeter()
        self._places = FreePlaces(n_parallel + max_queue)
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
        length, room = request.prompt_tokens, self._n_parallel + self._max_queue
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
            request,
            max_tokens=min(request.max_tokens, self._n_ctx - len(request.prompt) - len(request.again)),
            cancel=self._cancel,
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
            self._tell()
        return generation

    def _check_room(self, leader: Generation, answers: int) -> None:
        """Raise if a request that has just been queued is one too many; another may have to give way."""
        self._leaders = {other for other in self._leaders if not (other.cancelled or other.done)}
        held = sum(len(other.followers) for other in self._leaders)
        over = len(self._queue) + self._in_slots() + held + answers - 1 - self._n_parallel - self._max_queue
        if over > 0:
            self._make_room_for(leader, over)

    def _make_room_for(self, generation: Generation, places: int) -> None:
        overloaded = OverloadedError(
            f"{self._name} has {self._in_slots()} requests running and {len(self._queue) - 1} waiting",
            retry_after_s=self._places.come_back_after_s(),
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
            now = time.perf_counter()
            line = list(self._queue)
            place = next(at for at, other in enumerate(line) if other is generation)
            check_deadline(
                self._work_of(generation),
                name=self._name,
                left_s=deadline_at - now,
                running=[
                    *(
                        Promise(self._work_left(one), one.generation.request.submitter.left_s(now))
                        for one in self._running
                    ),
                    *(self._promise(other, now) for other in self._about_to_run()),
                ],
                ahead=[self._promise(other, now) for other in line[:place]],
                slots=self._n_parallel,
                pace=self._pace.pace,
                behind=[self._promise(other, now) for other in line[place + 1 :]],
            )

    def _promise(self, generation: Generation, now: float) -> Promise:
        return Promise(self._work_of(generation), generation.request.submitter.left_s(now))

    def _work_of(self, generation: Generation) -> Work:
        # The engine's thread may be adding to a slot's tokens meanwhile: the estimate is a token older then.
        prefill = self._residency.left_to_compute(generation)
        return Work(prefill, self._answer_length.expected(generation.max_tokens))

    def _about_to_run(self) -> list[Generation]:
        """Requests that have left the queue and do not run yet."""
        starting = () if self._starting is None else (self._starting,)
        return [*self._residency.waiting, *starting]

    def _in_slots(self) -> int:
        return len(self._running) + len(self._about_to_run())

    def _work_left(self, sequence: Sequence) -> Work:
        prefill = len(sequence.prompt) - len(sequence.slot.tokens)
        limit = sequence.generation.max_tokens
        return Work(
            max(0, prefill) if sequence.next_token == PREFILLING else 0,
            self._answer_length.expected_left(limit, sequence.completed),
        )

    def _prefill_left(self) -> int:
        # What the cache holds of a waiting prompt would take a walk through it: as much as of the others.
        waiting = [*self._about_to_run(), *self._queue]
        computed = 1 - self._prefix_hit_tokens / self._prompt_tokens_total if self._prompt_tokens_total else 1
        left = sum(
            max(0, len(one.prompt) - len(one.slot.tokens))
            for one in self._running
            if one.next_token == PREFILLING
        )
        return left + round(computed * sum(len(one.request.prompt) for one in waiting))

    def _tell(self) -> None:
        self._has_news = True
        self._changed.notify()

    def _cancel(self, generation: Generation) -> None:
        # A running one is seen at the next step; a waiting one gives up its place at once.
        with self._changed:
            self._queue.remove(generation)
            self._tell()

    def stats(self) -> EngineStats:
        """What is going on now."""
        with self._changed:
            running, queued = self._in_slots(), len(self._queue)
            used = self._memory.used_tokens()
            full = running + queued >= self._n_parallel + self._max_queue
            pace = self._pace.pace
            return EngineStats(
                running=running,
                queued=queued,
                n_parallel=self._n_parallel,
                kv_used_tokens=used,
                kv_cached_tokens=used - self._memory.pinned_tokens(),
                kv_total_tokens=self._memory.kv_tokens,
                prefill_tokens_per_s=1 / pace.prompt_s if pace else self._prefill_rate.per_s,
                decode_tokens_per_s=pace.growth / pace.of_step(1) if pace else None,
                decode_slowdown=pace.answer_s / pace.of_step(1) if pace else None,
                prefill_left_tokens=self._prefill_left(),
                tokens_total=self._tokens_total,
                prompt_tokens_total=self._prompt_tokens_total,
                prefix_hit_tokens=self._prefix_hit_tokens,
                prefix_evictions=self._memory.evictions,
                prefix_recalls=self._residency.spill.recalls,
                prefix_ram_bytes=self._residency.spill.ram_bytes,
                disk_hits=self._residency.spill.disk_hits,
                disk_hit_tokens=self._residency.spill.disk_hit_tokens,
                retry_after_s=self._places.next_s() if full else 0.0,
                decode_steps_total=self._decode_steps_total,
                decoded_rows_total=self._decoded_rows_total,
                gaps=self._gaps.read(),
                drafted_tokens=self._speculator.drafted if self._speculator else 0,
                accepted_tokens=self._speculator.accepted if self._speculator else 0,
            )

    def on_engine(self, work: Callable[[], _T]) -> Future[_T]:
        """Have `work` done on the engine's thread between two steps, where it may use context and memory."""
        with self._changed:
            if self._closing:
                raise self._closed_error()
            future = self._errands.leave(work)
            self._tell()
        return future

    def look_again(self) -> None:
        """Something that a waiting request waits for may have happened."""
        with self._changed:
            self._tell()

    def residents(self) -> list[Resident]:
        """The conversations in memory, the one used last first."""
        with self._changed:
            return self._residency.residents()

    def close(self) -> None:
        """End the thread and fail what is running or waiting; a second call does nothing."""
        with self._changed:
            self._closing = True
            self._tell()
        self._thread.join()
        self._context.close()
        if self._speculator is not None:
            self._speculator.close()

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
        give_way()  # before the first step, which starts the threads that compute with this one
        try:
            with self._changed:
                self._residency.spill.prepare()
            while self._wait_for_work():
                self._step()
            with self._changed:
                self._residency.spill.keep_all()
        finally:
            # Also when a step raised: nobody may wait for an answer that will not come.
            with self._changed:
                self._closing = True
                self._errands.refuse(self._closed_error())
                left = [sequence.generation for sequence in self._running]
                for sequence in self._running:
                    sequence.close()
                self._running.clear()
                left += self._about_to_run()
                self._starting = None
                self._residency.abandon()
                while self._queue.peek() is not None:
                    left.append(self._queue.pop())
            for generation in left:
                generation.fail(self._closed_error())
            wake(left)

    def _wait_for_work(self) -> bool:
        """Admit what fits, waiting until there is something to run; False when closing."""
        with self._changed:
            while True:
                self._has_news = False
                if self._closing:
                    return False
                for sequence in [s for s in self._running if s.generation.cancelled]:
                    self._release(sequence)
                self._errands.do()
                # At most steps nobody waits, and each microsecond here is one that all cores wait for.
                if self._queue or self._residency.has_waiting:
                    self._residency.drop_cancelled()
                    self._expire()
                    self._admit()
                if self._running:
                    self._residency.make_room(self._running, self._context.n_batch)
                    self._residency.line_up(self._running)
                    return True
                # What came while the lock was free for a copy has told nobody.
                if not self._has_news:
                    self._changed.wait(self._residency.patience_s)

    def _expire(self) -> None:
        now = time.perf_counter()
        late = self._queue.expire(now) + self._residency.expire(now)
        for generation in late:
            error = "the deadline passed while the request waited for other requests"
            generation.fail(DeadlineExceededError(f"{self._name}: {error}", hint="allow more time"))
        if late:
            wake(late)

    def _admit(self) -> None:
        speed = self._prefill_rate.per_s
        for awaiting in self._residency.ended():
            self._starting = awaiting.generation
            if self._residency.may_resume(awaiting, prefill_tokens_per_s=speed):
                self._start(awaiting.generation)
            self._starting = None
        while (generation := self._queue.peek()) is not None and self._in_slots() < self._n_parallel:
            if not self._residency.fits(generation, self._running):
                return
            self._starting = self._queue.pop()
            if self._residency.may_start(generation, prefill_tokens_per_s=speed):
                self._start(generation)
            self._starting = None

    def _start(self, generation: Generation) -> None:
        request = generation.request
        prompt = list(request.prompt)
        slot = self._residency.place(generation)
        cached = len(slot.tokens)
        self._running.append(
            Sequence(
                generation,
                slot,
                prompt=prompt,
                cached=cached,
                sampler=Sampler(
                    request.sampling,
                    self._model,
                    prompt,
                    Grammar(self._model, request.constraint) if request.constraint is not None else None,
                    again=request.again,
                ),
                now=time.perf_counter(),
            )
        )
        self._prompt_tokens_total += len(prompt)
        self._prefix_hit_tokens += cached

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        sequence.close()
        self._memory.release(sequence.slot)

    def _step(self) -> None:
        """Decode one batch, and give every request in it that can have one its next token."""
        self._step_count += 1
        if self._speculator is not None:
            self._speculator.draft(self._running)
        # Alone there is nobody whom a long step would hold up.
        speed = self._prefill_rate.per_s if self._n_parallel > 1 else math.inf
        batch = Batch(self._context, self._running, speed=speed, owed=self._slices.owed)
        started_at = time.perf_counter()
        status = self._context.decode(batch.rows)
        if status != 0:
            self._recover(status)
            return
        batch.decoded()
        self._follow([sequence.generation for sequence in batch.prompts_complete])
        finished, chosen = self._chooser.choose(batch)
        self._tokens_total += chosen
        self._decode_steps_total += batch.decoding > 0
        self._decoded_rows_total += batch.decoding
        if self._step_count > 1:  # the first one reads the weights from disk
            self._measure(batch, chosen, len(finished), time.perf_counter() - started_at)
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

    def _measure(self, batch: Batch, chosen: int, finished: int, took_s: float) -> None:
        if batch.generating:
            self._slices.took(took_s, sliced=batch.sliced)
            if self._speculator is not None and not batch.prefilled:
                self._speculator.measured(batch.rows, took_s)
        if not batch.scored:  # which takes longer than to read a prompt
            if batch.prefilled >= MEASURABLE_PREFILL_ROWS:
                self._prefill_rate.add(batch.prefilled, took_s)
            self._pace.add(
                answers=batch.generating,
                prompt_tokens=batch.prefilled,
                seconds=took_s,
                grown=chosen - len(batch.choices) + batch.generating,
            )
        self._places.completed(finished, took_s)

    def _recover(self, status: int) -> None:
        """After a failed step: make room and try again, or give up what cannot go on."""
        if status == 1:
            with self._changed:
                if self._memory.evict():
                    return
        error = TierError(
            f"llama.cpp failed to decode a batch for {self._name} (status {status})",
            hint="send the request again; if it keeps failing, reload the model",
            retryable=True,
            model=self._name,
        )
        with self._changed:
            failed = [sequence.generation for sequence in self._running]
            for sequence in self._running:
                sequence.close()
            self._running.clear()
            # A failed batch leaves some of its rows in memory: none of it can be trusted to match `tokens`.
            self._memory.clear()
        for generation in failed:
            generation.fail(error)
        wake(failed)
