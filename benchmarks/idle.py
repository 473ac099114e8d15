"""Memory of an idle node over that of the model itself.

The model's own is what a bare interpreter that has llama.cpp and numpy loaded grows by when it loads the
model, makes a context of the same size and computes a few tokens. What the node has beyond that is the
server: Python, the libraries, HTTP, and what it keeps for requests.

    make bench-idle DATA=model.gguf
    python benchmarks/idle.py model.gguf [--ctx 2048] [--parallel 8]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from load import Sample, ask, client
from servers import mecroute, running

GOAL_MB = 150

BARE = """
import sys
from pathlib import Path
import numpy, psutil
from mecroute.engines.llama import native
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.model import LlamaModel
native.llama()
me = psutil.Process()
before = me.memory_info().rss
model = LlamaModel(Path(sys.argv[1]))
ctx, parallel, threads = map(int, sys.argv[2:])
ctx = min(ctx, model.n_ctx_train or ctx)
context = DecodeContext(model, n_ctx=ctx * parallel, n_seq_max=parallel, n_batch=512, n_outputs=parallel,
                        n_threads=threads)
for step in range(3):
    rows = 64 if step == 0 else 1
    for row in range(rows):
        context.tokens[row] = 5
        context.positions[row] = row if step == 0 else 63 + step
        context.sequences[row] = 0
        context.wants_logits[row] = row == rows - 1
    assert context.decode(rows) == 0
print(me.memory_info().rss - before, before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.model.is_file():
        parser.error(f"no model at {args.model}")
    sizes = (str(args.ctx), str(args.parallel), str(args.threads))
    out = subprocess.run(
        [sys.executable, "-c", BARE, str(args.model), *sizes], check=True, capture_output=True, text=True
    ).stdout
    own, bare = (int(word) / 1e6 for word in out.split())
    server = mecroute(args.model, context=args.ctx, parallel=args.parallel, threads=args.threads)
    with running(server) as process:
        time.sleep(5)
        node = psutil.Process(process.pid)
        idle = node.memory_info().rss / 1e6
        children = len(node.children(recursive=True))

        async def some_work() -> None:
            async with client(server.url) as http:
                prompt = [{"role": "user", "content": "Tell a story."}]
                await asyncio.gather(
                    *(ask(http, server.model, prompt, Sample(), max_tokens=16) for _ in range(8))
                )

        asyncio.run(some_work())
        time.sleep(2)
        after = node.memory_info().rss / 1e6
    row = {
        "model_own_mb": own, "bare_interpreter_mb": bare, "idle_mb": idle, "after_work_mb": after,
        "idle_over_model_mb": idle - own, "after_work_over_model_mb": after - own, "children": children,
    }  # fmt: skip
    if args.json:
        print(json.dumps(row))
        return
    for name, value in row.items():
        print(f"{name:26} {value:8.1f}")
    print(f"goal: idle_over_model_mb below {GOAL_MB}: {'met' if idle - own < GOAL_MB else 'missed'}")


if __name__ == "__main__":
    main()
