"""A request while it runs: its slot, its sampler, and how far it has come."""

from __future__ import annotations

from mecroute.engines.llama.generation import FinishReason, Generation, GenerationEvent, Usage
from mecroute.engines.llama.kv_slot import Slot
from mecroute.engines.llama.logprobs import TokenLogprob
from mecroute.engines.llama.sampling import Sampler
from mecroute.engines.llama.text import TextStream

#: `Sequence.next_token` while the prompt is being computed.
PREFILLING = -1


class Sequence:
    """A request that owns a slot.

    Args:
        generation: where its text goes.
        slot: holds the first `cached` tokens of the prompt.
        cached: tokens of the prompt that need not be computed.
        sampler: closed with `close`.
        now: time.perf_counter() at which work on it starts.

    Attributes:
        prompt: its tokens.
        next_token: chosen, and to be decoded at the next step; `PREFILLING` before there is one.
        draft: tokens that are guessed to follow `next_token`; they are decoded with it, and verified.
        room: KV cells it may come to hold.
        gap_s: from the token before to the newest one; None after the first.
        top_logprobs: as the request has it; unless None, `note` is called before `accept`.
        scores_prompt: as the request has it; if so, `note_prompt` is called for each of the prompt's tokens.

    Not thread-safe.
    """

    __slots__ = (
        "_again", "_cached", "_completed", "_first_token_at", "_last_token_at", "_logprobs", "_max_tokens",
        "_noted_bytes", "_prompt_logprobs", "_shown_bytes", "_started_at", "_text", "_unreported", "draft",
        "gap_s", "generation", "next_token", "prompt", "room", "sampler", "scores_prompt", "slot",
        "top_logprobs",
    )  # fmt: skip

    def __init__(
        self,
        generation: Generation,
        slot: Slot,
        *,
        prompt: list[int],
        cached: int,
        sampler: Sampler,
        now: float,
    ) -> None:
        self.generation = generation
        self.slot = slot
        self.prompt = prompt
        self.sampler = sampler
        self.next_token = PREFILLING
        self.draft: list[int] = []
        self._max_tokens = generation.max_tokens
        self.room = generation.room
        self._again = generation.request.again
        self._cached = cached
        self._text = TextStream(generation.request.stop)
        self._completed = 0
        self._unreported = 0
        self.top_logprobs = generation.request.top_logprobs
        self.scores_prompt = generation.request.scores_prompt
        self._prompt_logprobs: list[TokenLogprob] = []
        self._logprobs: list[tuple[int, TokenLogprob]] = []
        self._noted_bytes = 0
        self._shown_bytes = 0
        self._started_at = now
        self._first_token_at = now
        self._last_token_at = now
        self.gap_s: float | None = None

    def note(self, logprob: TokenLogprob, piece: bytes) -> None:
        """Keep the probability of a token until the first of its text is shown."""
        piece = piece[len(self._again) :]
        if self._again and not piece:
            return  # the caller has it already
        self._logprobs.append((self._noted_bytes, logprob))
        self._noted_bytes += len(piece)

    def note_prompt(self, logprob: TokenLogprob) -> None:
        """Keep the probability of the prompt's next token until the answer begins."""
        self._prompt_logprobs.append(logprob)

    def accept(self, token: int, piece: bytes | None, now: float) -> bool:
        """Take the token that was chosen.

        Args:
            token: its id.
            piece: its bytes, or None for a token that ends the answer.
            now: time.perf_counter().

        Returns:
            Whether the answer is complete; its last event has then been pushed.
        """
        self.next_token = token
        if self._again and piece is not None:
            said, self._again = self._again, self._again[len(piece) :]
            piece = piece[len(said) :]
            if not piece:
                return False
        self._completed += 1
        self._unreported += 1
        if self._completed == 1:
            self._first_token_at = now
        else:
            self.gap_s = now - self._last_token_at
        self._last_token_at = now
        reason: FinishReason | None = None
        if piece is None:
            text, reason = self._text.finish(), "stop"
        else:
            text = self._text.feed(piece)
            if self._text.stopped:
                reason = "stop"
            elif self._completed >= self._max_tokens:
                text, reason = text + self._text.finish(), "length"
        if reason is not None:
            # What a stop string cut off is not part of the answer, nor are its tokens.
            logprobs = self._take_logprobs(text, all=not self._text.stopped)
            usage, met = self._usage(now), self._text.met
            self.generation.push(
                GenerationEvent(
                    text, self._unreported, reason, usage, logprobs, stop_met=met, prompt=self._take_prompt()
                )
            )
            return True
        if text:
            logprobs = self._take_logprobs(text, all=False)
            self.generation.push(
                GenerationEvent(text, self._unreported, logprobs=logprobs, prompt=self._take_prompt())
            )
            self._unreported = 0
        return False

    def _take_logprobs(self, text: str, *, all: bool) -> tuple[TokenLogprob, ...]:
        """Those noted of the tokens that have begun with `text`, or all that are left."""
        if not self._logprobs:
            return ()
        self._shown_bytes += len(text.encode())
        kept = [(start, entry) for start, entry in self._logprobs if start >= self._shown_bytes and not all]
        begun, self._logprobs = self._logprobs[: len(self._logprobs) - len(kept)], kept
        return tuple(entry for _, entry in begun)

    def _take_prompt(self) -> tuple[TokenLogprob, ...]:
        if not self._prompt_logprobs:
            return ()
        taken, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        return taken

    @property
    def completed(self) -> int:
        """Tokens generated so far."""
        return self._completed

    @property
    def left(self) -> int:
        """Tokens that may still be generated."""
        return self._max_tokens - self._completed

    def _usage(self, now: float) -> Usage:
        return Usage(
            prompt_tokens=self.generation.request.prompt_tokens,
            completion_tokens=self._completed,
            cached_tokens=self._cached,
            ttft_ms=(self._first_token_at - self.generation.submitted_at) * 1e3,
            prefill_ms=(self._first_token_at - self._started_at) * 1e3,
            decode_ms=(now - self._first_token_at) * 1e3,
        )

    def close(self) -> None:
        """Free the sampler; a second call does nothing."""
        self.sampler.close()
