"""Import time of mecroute against its peers, and the CLI's start against Typer's own import.

Each command runs in a fresh process, alternating; medians are printed with their ratio.

    python benchmarks/imports.py [--runs 15] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

PYTHON = sys.executable
CLI = str(Path(PYTHON).with_name("mecroute"))
COMPARISONS = (
    (
        "import mecroute",
        [PYTHON, "-c", "import mecroute"],
        "import openai",
        [PYTHON, "-c", "import openai"],
        "openai",
    ),
    (
        "make a mecroute.Client",
        [PYTHON, "-c", "from mecroute import Client, Config; Client(Config())"],
        "make an openai.OpenAI",
        [PYTHON, "-c", "import openai; openai.OpenAI(api_key='x')"],
        "openai",
    ),
    ("mecroute --help", [CLI, "--help"], "import typer", [PYTHON, "-c", "import typer"], "typer"),
)


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def compare(ours: list[str], theirs: list[str], runs: int, floor: float) -> tuple[float, float]:
    """Median seconds of each over the bare interpreter's start, run in turn."""
    seconds(ours), seconds(theirs)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    return tuple(statistics.median(times) - floor for times in zip(*pairs, strict=True))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    bare = statistics.median(seconds([PYTHON, "-c", "pass"]) for _ in range(args.runs))
    for our_name, ours, their_name, theirs, package in COMPARISONS:
        if find_spec(package) is None:
            print(f"{their_name}: install '{package}' to compare", file=sys.stderr)
            continue
        # A command's start is compared whole; an import without what the interpreter itself takes.
        floor = 0.0 if ours[0] == CLI else bare
        a, b = compare(ours, theirs, args.runs, floor)
        rows.append(
            {"ours": our_name, "theirs": their_name, "ours_ms": a * 1e3, "theirs_ms": b * 1e3, "ratio": a / b}
        )
    if args.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['ours']:24} {row['ours_ms']:7.1f} ms   {row['theirs']:24} {row['theirs_ms']:7.1f} ms   "
            f"ratio {row['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
