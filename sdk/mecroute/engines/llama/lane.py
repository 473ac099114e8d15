"""A context with its KV memory and its scheduler: for the model itself, or for a combination of adapters."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mecroute.engines.llama.context import Adapters, DecodeContext
from mecroute.engines.llama.draft_model import DraftModel
from mecroute.engines.llama.kv_memory import MAX_SEQUENCES, KvMemory, sequences_for
from mecroute.engines.llama.kv_spill import KvSpill
from mecroute.engines.llama.kv_transfer import KvTransfer
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.prefix_disk import PrefixDisk, PrefixDiskOptions
from mecroute.engines.llama.prefix_ram import PrefixRam
from mecroute.engines.llama.residency import Residency
from mecroute.engines.llama.scheduler import Scheduler
from mecroute.engines.llama.sessions import ModelFile, Sessions
from mecroute.engines.llama.speculation import MAX_DRAFT_ROWS, Speculation, Speculator
from mecroute.engines.llama.turns import Turns
from mecroute.engines.llama.unlocked import UnlockedContext
from mecroute.engines.steps import STEP_ROWS

#: Rows of a step whose logits may be had: a prompt that is to be scored is computed in pieces of so many.
MIN_OUTPUTS = 32


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """What all lanes of an engine have in common; see `LlamaEngine`.

    Args:
        kv_tokens: KV cells of each lane.
        turns: shared by lanes that compute in turn; None: there is but one.
    """

    name: str
    n_ctx: int
    n_parallel: int
    n_threads: int
    kv_tokens: int
    max_queue: int
    turns: Turns | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    """The lane of the model itself.

    Attributes:
        sessions: takes conversations out of the KV memory and in again.
        disk: where conversations are that have left memory; None: nowhere.
        generates: whether the model generates text at all; a mere encoder has no KV memory, and does not.
    """

    scheduler: Scheduler
    sessions: Sessions
    disk: PrefixDisk | None
    generates: bool


def open_speculator(
    model: LlamaModel,
    options: LaneOptions,
    *,
    speculation: Speculation,
    draft_model: Path | None,
    n_gpu_layers: int,
) -> Speculator | None:
    """What guesses tokens ahead; None where nothing may be, or can be with this model's memory.

    Raises:
        InvalidModelFileError: the draft model cannot be loaded, or has another vocabulary.
    """
    if speculation == "off" or not model.can_drop_suffix:
        return None
    drafter = None
    if draft_model is not None:
        drafter = DraftModel(
            Path(draft_model),
            target=model,
            n_ctx=options.n_ctx,
            kv_tokens=options.kv_tokens,
            n_sequences=sequences_for(options.n_parallel, options.kv_tokens),
            n_threads=options.n_threads,
            n_gpu_layers=n_gpu_layers,
        )
    return Speculator(drafter)


def open_lane(
    model: LlamaModel,
    path: Path,
    options: LaneOptions,
    *,
    ram_bytes: int,
    disk_options: PrefixDiskOptions | None,
    speculator: Speculator | None,
) -> Lane:
    """Make the lane of the model itself, which then owns `speculator`.

    Raises:
        InvalidModelFileError: llama.cpp cannot make such a context.
    """
    try:
        layout = _kv_layout(model, options, speculates=speculator is not None)
        context = _context(model, options, layout, speculates=speculator is not None)
    except BaseException:
        if speculator is not None:
            speculator.close()
        raise
    lock = threading.Condition()
    unlocked = UnlockedContext(context, lock)
    memory, ram = _memory(model, unlocked, layout), PrefixRam(ram_bytes)
    sharing_any = model.prefix_sharing == "any"
    transfer = KvTransfer(unlocked, memory, ram, n_ctx=options.n_ctx, sharing_any=sharing_any)
    disk = None
    if disk_options is not None:
        disk = PrefixDisk(disk_options, n_vocab=model.n_vocab)
    residency = Residency(memory, KvSpill(memory, transfer, ram, disk))
    scheduler = _scheduler(model, context, lock, options, residency, speculator)
    sessions = Sessions(ModelFile(path), transfer, scheduler.on_engine, model.n_vocab)
    if disk is not None:
        disk.start(prepare=sessions.fit_and_layout, on_fetched=scheduler.look_again)
    return Lane(scheduler, sessions, disk, context.has_memory)


def open_adapter_lane(model: LlamaModel, options: LaneOptions, applied: Adapters) -> Scheduler:
    """Make the scheduler of one combination of adapters: nothing outlives its KV memory.

    Raises:
        InvalidModelFileError: llama.cpp cannot make such a context.
    """
    layout = _kv_layout(model, options, speculates=False)
    context = _context(model, options, layout, applied=applied)
    lock = threading.Condition()
    unlocked = UnlockedContext(context, lock)
    memory, ram = _memory(model, unlocked, layout), PrefixRam(0)
    transfer = KvTransfer(unlocked, memory, ram, n_ctx=options.n_ctx, sharing_any=False)
    residency = Residency(memory, KvSpill(memory, transfer, ram, None))
    return _scheduler(model, context, lock, options, residency, None)


class _KvLayout(NamedTuple):
    n_sequences: int
    kv_tokens: int
    streams: bool


def _kv_layout(model: LlamaModel, options: LaneOptions, *, speculates: bool) -> _KvLayout:
    """One memory for all sequences, or a stream of cells for each.

    Attention that passes over everybody's cells takes time with each sequence: 12% of a step with 16
    sequences of 100 tokens on a model of 135 million parameters, 4% with 8, nothing with one. Streams need
    all the room that requests may come to have, and sequences that can be copied and cut; drafts of different
    lengths would be decoded one after another.
    """
    n_streams = min(MAX_SEQUENCES, options.kv_tokens // options.n_ctx)
    if model.prefix_sharing == "any" and not speculates and 1 < options.n_parallel <= n_streams:
        return _KvLayout(n_streams, n_streams * options.n_ctx, streams=True)
    return _KvLayout(sequences_for(options.n_parallel, options.kv_tokens), options.kv_tokens, streams=False)


def _context(
    model: LlamaModel,
    options: LaneOptions,
    layout: _KvLayout,
    *,
    applied: Adapters = (),
    speculates: bool = False,
) -> DecodeContext:
    n_sequences = layout.n_sequences
    return DecodeContext(
        model,
        n_ctx=layout.kv_tokens,
        n_seq_max=n_sequences,
        streams=layout.streams,
        n_batch=max(STEP_ROWS, options.n_parallel + MAX_DRAFT_ROWS),
        # llama.cpp reserves at least one for each sequence.
        n_outputs=max(n_sequences, MIN_OUTPUTS, options.n_parallel + MAX_DRAFT_ROWS if speculates else 0),
        n_threads=options.n_threads,
        adapters=applied,
        turns=options.turns,
    )


def _memory(model: LlamaModel, context: UnlockedContext, layout: _KvLayout) -> KvMemory:
    return KvMemory(
        context,
        n_slots=layout.n_sequences,
        kv_tokens=layout.kv_tokens,
        sharing=model.prefix_sharing,
        streams=layout.streams,
    )


def _scheduler(
    model: LlamaModel,
    context: DecodeContext,
    lock: threading.Condition,
    options: LaneOptions,
    residency: Residency,
    speculator: Speculator | None,
) -> Scheduler:
    return Scheduler(
        model,
        context,
        residency,
        lock,
        name=options.name,
        n_ctx=options.n_ctx,
        n_parallel=options.n_parallel,
        max_queue=options.max_queue,
        speculator=speculator,
    )
