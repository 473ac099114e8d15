"""What a decision takes with a text encoder that reads the prompts, and without; in turns, in one process.

    python benchmarks/encoder.py FOLDER [PROMPTS.txt]

FOLDER holds an ONNX encoder and its tokenizer (`benchmarks/minilm.py` writes one); PROMPTS.txt one prompt a
line, each used once; without it, questions of 8 to 20 common words. Whole decisions are timed, from the
caller's arguments to the ranked targets: nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from mecroute import AsyncClient, Config
from mecroute.config import (
    CloudConfig,
    DeviceConfig,
    RegistryConfig,
    RouterConfig,
    StateConfig,
    TextModelConfig,
)
from overhead import percentile

_TEXT = (
    "how what should bread rent river market train apple window doctor summer paper music garden water "
    "letter happen change explain choose before after during small large early never often which between"
)
_WORDS = tuple(_TEXT.split())
_WARM_UP = 20


def made_up(count: int) -> list[str]:
    dice = random.Random(7)
    return [" ".join(dice.choices(_WORDS, k=dice.randint(8, 20))) + "?" for _ in range(count)]


def config(folder: Path, encoder: Path | None, threads: int) -> Config:
    models = () if encoder is None else (TextModelConfig(name="encoder", path=encoder),)
    return Config(
        registry=RegistryConfig(path=folder / "registry"),
        state=StateConfig(enabled=False, path=folder / "state.sqlite3"),
        device=DeviceConfig(text_models=models, text_threads=threads),
        cloud=tuple(
            CloudConfig(name=f"c{n}", base_url="http://127.0.0.1:9/v1", model=f"m{n}") for n in range(3)
        ),
        router=RouterConfig(encoder="encoder" if encoder is not None else None),
    )


async def decide_ms(client: AsyncClient, prompt: str) -> tuple[float, str | None]:
    begun = time.perf_counter()
    decision = await client.route(messages=[{"role": "user", "content": prompt}])
    return (time.perf_counter() - begun) * 1e3, decision.features.kind


async def measure(encoder: Path, prompts: list[str], threads: int) -> dict[str, dict[str, float]]:
    took: dict[str, list[float]] = {"without": [], "with, new prompt": [], "with, known prompt": []}
    encoded = 0
    with tempfile.TemporaryDirectory() as folder:
        plain = AsyncClient(config(Path(folder), None, threads))
        reading = AsyncClient(config(Path(folder), encoder, threads))
        async with plain, reading:
            for _ in range(600):
                _, kind = await decide_ms(reading, "Is it there?")
                if kind is not None and kind.startswith("topic-encoder-"):
                    break
                await asyncio.sleep(0.05)
            for number, prompt in enumerate(prompts):
                without, _ = await decide_ms(plain, prompt)
                new, kind = await decide_ms(reading, prompt)
                known, _ = await decide_ms(reading, prompt)
                if number >= _WARM_UP:
                    encoded += kind is not None and kind.startswith("topic-encoder-")
                    for name, ms in zip(took, (without, new, known), strict=True):
                        took[name].append(ms)
    found = {
        name: {"p50": statistics.median(times), "p95": percentile(times, 0.95)}
        for name, times in took.items()
    }
    return {**found, "encoded in time": {"share": encoded / len(took["without"])}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompts", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    prompts = made_up(asked.count)
    if asked.prompts is not None:
        lines = asked.prompts.read_text(encoding="utf-8").splitlines()
        prompts = [line for line in dict.fromkeys(lines) if line.strip()][: asked.count]
    print(json.dumps(asyncio.run(measure(asked.folder, prompts, asked.threads)), indent=2))


if __name__ == "__main__":
    main()
