"""The process in which a GGUF file is tried: `python -P -m mecroute.engines.llama._trial_child JOB`.

JOB is a JSON object: `path`, `n_threads`, `memory_bytes` (address space this process may use). The last line
of standard output is a JSON object: `ok`, or `error`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mecroute.engines.llama.engine import GenerationRequest, LlamaEngine
from mecroute.engines.llama.sampling import GREEDY, SamplingParams
from mecroute.engines.trial import report_trial
from mecroute.errors import MecrouteError

#: Every byte and some of what tokenizers treat in a way of its own.
_TEXT = bytes(range(32, 127)).decode() + "\n\t äßé 漢字 😀 \u200b <|im_start|><s></s>"
_CONTEXT = 256
_SAMPLED = SamplingParams(temperature=1.0, top_k=40, top_p=0.9, min_p=0.05, seed=1, repeat_penalty=1.1)


def try_out(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Load the model and do once what a server does with it."""
    path = Path(job["path"])
    with LlamaEngine(path, n_ctx=_CONTEXT, n_parallel=2, n_threads=job["n_threads"]) as engine:
        engine.check_vocabulary()
        text = engine.tokenize(_TEXT)[:32]
        with suppress(MecrouteError):  # a template may refuse a conversation; it must not crash
            engine.tokenize_chat([{"role": "user", "content": _TEXT}])
        for sampling in (GREEDY, _SAMPLED) if engine.generates else ():
            request = GenerationRequest(text or (0,), max_tokens=4, sampling=sampling, top_logprobs=2)
            for _ in engine.submit(request):
                pass
        with suppress(MecrouteError):  # not every model embeds
            if engine.pooling == "rank":
                engine.relevance("a text", ["another"])
            else:
                engine.embed(["a text"])
    return {"ok": True}


if __name__ == "__main__":
    code = report_trial(try_out)
    sys.stdout.flush()
    # No interpreter shutdown: what is to be known is known, and finalizers of a damaged model prove nothing.
    os._exit(code)
