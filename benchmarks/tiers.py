"""Four tiers and a mixed workload: does `auto` choose better than any one tier, or than chance?

    make bench-tiers DATA=folder MODELS=folder
    python benchmarks/tiers.py DATA MODELS [--out .bench/tiers] [--docs docs]

DATA holds `clinc150`, `hellaswag` and `arc_challenge` (see `tiers_workload.py`). MODELS holds GGUF files of
SmolLM2-135M, Qwen2.5-Coder-0.5B and -1.5B (found by their names), and a folder of all-MiniLM-L6-v2.
Everything is collected first, once (about 40 minutes of a machine that does nothing else; it goes on where
it was stopped), then the product's own decisions are replayed over it, which takes some minutes.

    single tiers      every request to the same one
    mixing            each request to one of two tiers by chance: any point between theirs
    by hand           intents to the encoder, and for each other set the mix that turned out best
    threshold         what the trained predictor finds hardest to the largest model, as RouteLLM does
    auto              the agents' decisions under several policies, decision time included
    oracle            the fastest tier that is right: what nobody can reach

A tier that cannot do a request at all (the encoder can only tell intents apart) is not among the single ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mecroute.config.cascade import CascadeConfig
from mecroute.config.schema import Weighting
from mecroute.predict.difficulty import difficulty_source
from tiers_answers import Answer, read_answers
from tiers_front import Difference, Run, front, hull, less, oracle, over_mix, spread
from tiers_plot import Series, draw
from tiers_replay import Answers, Replay
from tiers_workload import Item, Set, read_workload

HERE = Path(__file__).parent
MODEL_PATTERNS = {"device": "*135M*.gguf", "mec": "*0.5b*.gguf", "cloud": "*1.5b*.gguf"}
NAMES = {"encoder": "int8 encoder", "device": "SmolLM2-135M", "mec": "Qwen 0.5B", "cloud": "Qwen 1.5B"}
LANGUAGE_MODELS = ("device", "mec", "cloud")
BUILT_IN = ("latency-first", "balanced", "quality-first")
#: Weights of quality in policies between these; the rest is that of latency.
QUALITY_WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
#: Shares of wrong answers that a cascade may keep.
ERROR_RATES = (0.1, 0.3, 0.5)
_THRESHOLDS = 21


def single_tiers(items: Sequence[Item], answers: Answers) -> dict[str, Run]:
    """Every request to the same language model."""
    return {tier: _run(NAMES[tier], [answers[item.id, tier] for item in items]) for tier in LANGUAGE_MODELS}


def by_hand(items: Sequence[Item], answers: Answers) -> list[Run]:
    """What somebody who knows the sets could fix: intents to the encoder, and each other set to one language
    model, in every combination. Mixing these mixes each set by itself."""
    return [
        _run(
            f"endings {NAMES[endings]}, science {NAMES[science]}",
            [
                answers[item.id, {"intents": "encoder", "endings": endings, "science": science}[item.set]]
                for item in items
            ],
        )
        for endings in LANGUAGE_MODELS
        for science in LANGUAGE_MODELS
    ]


def thresholds(items: Sequence[Item], answers: Answers, weak: str) -> list[Run]:
    """The hardest requests to the largest model, for several shares of them."""
    difficulty = difficulty_source("shipped")
    assert difficulty is not None
    found = np.array([difficulty(item.text) for item in items])
    order = np.argsort(-found, kind="stable")
    runs = []
    for share in np.linspace(0, 1, _THRESHOLDS):
        hard = set(order[: round(share * len(items))].tolist())
        chosen = [answers[item.id, "cloud" if at in hard else weak] for at, item in enumerate(items)]
        runs.append(_run(f"threshold {share:.2f}", chosen))
    return runs


def evaluate(items: Sequence[Item], answers: Answers) -> dict[str, Any]:
    """Everything that is reported, as JSON types, and the picture under `svg`.

    Args:
        items: all requests; those to be measured need an answer of every tier that can give one.
    """
    measured = [item for item in items if item.part == "measured"]
    policies = {f"quality-{w:g}": Weighting(quality=w, latency=1 - w) for w in QUALITY_WEIGHTS}
    replay = Replay(items, answers, policies=policies)
    singles = single_tiers(measured, answers)
    hand = by_hand(measured, answers)
    routellm = {weak: thresholds(measured, answers, weak) for weak in ("device", "mec")}
    autos = {name: replay.run(measured, name, name) for name in (*BUILT_IN, *policies)}
    cascades = {}
    for rate in ERROR_RATES:
        config = CascadeConfig(enabled=True, tiers=("device", "mec"), max_error_rate=rate)
        with_cascade = Replay(items, answers, cascade=config)
        for name in ("balanced", "quality-first"):
            named = f"{name}, cascade {rate:g}"
            cascades[named] = with_cascade.run(measured, named, name)
    masks = {name: np.array([item.set == name for item in measured]) for name in get_args(Set)}
    best = max(singles.values(), key=lambda run: run.accuracy)
    rows = []
    for name, (run, chosen) in (autos | cascades).items():
        rows.append(
            {
                **_figures(run),
                "shares": {tier: chosen.count(tier) / len(chosen) for tier in NAMES},
                "over_mixing": _told(over_mix(run, list(singles.values()))),
                "over_by_hand": _told(over_mix(run, hand)),
                "over_threshold": _told(over_mix(run, [*routellm["device"], *routellm["mec"]])),
                "over_best_tier": _told(less(run, best)),
                "sets": {
                    at: {**_figures(run.of(mask)), "shares": _shares(chosen, mask)}
                    for at, mask in masks.items()
                },
                "policy": name,
            }
        )
    gains = {name: _gain(measured, answers, mask, name) for name, mask in masks.items()}
    best_run = _run_oracle(measured, answers)
    found: dict[str, Any] = {
        "requests": len(measured),
        "calibration": len(items) - len(measured),
        "profiles": {
            tier: {
                "prefill_tokens_per_s": round(one.prefill_tokens_per_s, 1),
                "decode_tokens_per_s": one.decode_tokens_per_s and round(one.decode_tokens_per_s, 1),
                "accuracy": round(one.accuracy, 4),
            }
            for tier, one in replay.profiles.items()
        },
        "tiers": {
            tier: {
                **_figures(run),
                "sets": {at: _figures(run.of(mask)) for at, mask in masks.items()},
            }
            for tier, run in singles.items()
        },
        "encoder": _figures(
            _run(NAMES["encoder"], [answers[i.id, "encoder"] for i in measured if i.set == "intents"])
        ),
        "by_hand": [_figures(run) for run in hand],
        "threshold": {weak: [_figures(run) for run in runs] for weak, runs in routellm.items()},
        "auto": rows,
        "oracle": _figures(best_run),
        "per_set": gains,
    }
    found["svg"] = _picture(singles, hand, routellm["device"], [run for run, _ in autos.values()], best_run)
    return found


def _gain(items: Sequence[Item], answers: Answers, mask: Any, name: str) -> dict[str, Any]:
    """What routing could gain within one set: the best tier, an oracle among all, and mixing."""
    chosen = [item for item, inside in zip(items, mask, strict=True) if inside]
    tiers = (*(("encoder",) if name == "intents" else ()), *LANGUAGE_MODELS)
    runs = {tier: _run(NAMES[tier], [answers[item.id, tier] for item in chosen]) for tier in tiers}
    best, most = max(runs.values(), key=lambda run: run.accuracy), oracle(runs)
    return {
        "requests": len(chosen),
        "tiers": {tier: _figures(run) for tier, run in runs.items()},
        "best_tier": best.name,
        "oracle": _figures(most),
        "could_gain": _told(less(most, best)),
        "nobody_right": round(1 - most.accuracy, 4),
    }


def _run_oracle(items: Sequence[Item], answers: Answers) -> Run:
    right, took = [], []
    for item in items:
        known = [answers[item.id, tier] for tier in NAMES if (item.id, tier) in answers]
        best = min(known, key=lambda one: (not one.right, one.latency_ms))
        right.append(best.right)
        took.append(best.latency_ms)
    return Run("oracle", np.array(right, float), np.array(took))


def _run(name: str, chosen: Sequence[Answer]) -> Run:
    return Run(
        name, np.array([one.right for one in chosen], float), np.array([one.latency_ms for one in chosen])
    )


def _figures(run: Run) -> dict[str, Any]:
    interval = spread(run.right)
    return {
        "name": run.name,
        "accuracy": round(run.accuracy, 4),
        "accuracy_low": round(interval.low, 4),
        "accuracy_high": round(interval.high, 4),
        "mean_ms": round(run.mean_ms, 1),
        "p95_ms": round(run.p95_ms, 1),
    }


def _told(difference: Difference) -> dict[str, float]:
    return {name: round(getattr(difference, name), 4) for name in ("value", "low", "high")}


def _shares(chosen: Sequence[str], mask: Any) -> dict[str, float]:
    inside = [tier for tier, one in zip(chosen, mask, strict=True) if one]
    return {tier: round(inside.count(tier) / len(inside), 4) for tier in NAMES if tier in inside}


def _picture(
    singles: Mapping[str, Run], hand: Sequence[Run], routellm: Sequence[Run], autos: Sequence[Run], best: Run
) -> str:
    def points(runs: Sequence[Run]) -> list[tuple[float, float]]:
        return [(run.mean_ms, run.accuracy) for run in runs]

    best_autos = front(autos)
    intervals = [spread(run.right) for run in best_autos]
    return draw(
        [
            Series("single tiers", "#888", points(list(singles.values())), "", [NAMES[t] for t in singles]),
            Series("random mixing of them", "#888", points(hull([*singles.values()])), "dashed", dots=False),
            Series("threshold on difficulty", "#c2703d", points(routellm), "dashed", dots=False),
            Series("by hand: a mix for each set", "#3d7ac2", points(hull(hand)), "dashed"),
            Series(
                "auto (95% intervals)", "#1b7f4b", points(best_autos), "solid",
                bars=[(one.low, one.high) for one in intervals],
            ),
            Series("oracle", "#a33", points([best]), ""),
        ],
        "Right answers against mean latency",
    )  # fmt: skip


def report(found: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    lines = ["| | right | mean ms | p95 ms | intents | endings | science |", "|---|---|---|---|---|---|---|"]
    for row in (*found["tiers"].values(), *found["auto"]):
        sets = " | ".join(f"{row['sets'][name]['accuracy']:.1%}" for name in get_args(Set))
        shown = f"auto, {row['policy']}" if "policy" in row else row["name"]
        lines.append(f"| {shown} | {_plain(row)} | {sets} |")
    row = found["oracle"]
    lines.append(f"| oracle | {_plain(row)} | | | |")
    lines += [
        "",
        "| auto less …, in points | best mix of two tiers | by hand | threshold | best tier |",
        "|---|---|---|---|---|",
    ]
    for row in found["auto"]:
        told = " | ".join(
            f"{d['value'] * 100:+.1f} ({d['low'] * 100:+.1f} to {d['high'] * 100:+.1f})"
            for d in (row[k] for k in ("over_mixing", "over_by_hand", "over_threshold", "over_best_tier"))
        )
        lines.append(f"| {row['policy']} | {told} |")
    lines += [
        "",
        "| set | best tier | right | oracle | could gain, points | nobody right |",
        "|---|---|---|---|---|---|",
    ]
    for name, gain in found["per_set"].items():
        best = next(one for one in gain["tiers"].values() if one["name"] == gain["best_tier"])
        more = gain["could_gain"]
        lines.append(
            f"| {name} | {gain['best_tier']} | {best['accuracy']:.1%} | {gain['oracle']['accuracy']:.1%} | "
            f"{more['value'] * 100:.1f} ({more['low'] * 100:.1f} to {more['high'] * 100:.1f}) | "
            f"{gain['nobody_right']:.1%} |"
        )
    return "\n".join(lines)


def _plain(row: Mapping[str, Any]) -> str:
    """Accuracy with its interval, mean and p95, as cells of a table."""
    accuracy = f"{row['accuracy']:.1%} ({row['accuracy_low']:.1%} to {row['accuracy_high']:.1%})"
    return f"{accuracy} | {row['mean_ms']:.0f} | {row['p95_ms']:.0f}"


def read_all(out: Path) -> dict[tuple[str, str], Answer]:
    """Everything that was collected, by request and tier."""
    found = [*read_answers(out / "answers.jsonl"), *read_answers(out / "encoder.jsonl")]
    return {(one.id, one.tier): one for one in found}


def model_files(models: Path) -> dict[str, Path]:
    """The GGUF file of each tier.

    Raises:
        SystemExit: one is missing or several are there; says which.
    """
    found = {tier: sorted(models.glob(pattern)) for tier, pattern in MODEL_PATTERNS.items()}
    for tier, files in found.items():
        if len(files) != 1:
            sys.exit(f"{models} has {len(files)} files like {MODEL_PATTERNS[tier]}, and one is needed")
    return {tier: files[0] for tier, files in found.items()}


def collect(data: Path, models: Path, out: Path) -> None:
    """Ask the encoder and the three language models whatever is not known yet.

    Raises:
        SystemExit: a model is missing; says which.
    """
    named = [part for tier, file in model_files(models).items() for part in ("--model", f"{tier}={file}")]
    encoders = sorted(models.glob("**/model.safetensors"))
    if len(encoders) != 1:
        sys.exit(f"{models} has {len(encoders)} files model.safetensors below it, and one is needed")
    for command in (
        [HERE / "tiers_encoder.py", data, encoders[0].parent, out],
        [HERE / "tiers_collect.py", data, out, *named],
    ):
        subprocess.run([sys.executable, *map(str, command)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of clinc150, hellaswag and arc_challenge")
    parser.add_argument("models", type=Path, nargs="?", help="folder of the models; default: only evaluate")
    parser.add_argument("--out", type=Path, default=Path(".bench/tiers"), help="where answers are kept")
    parser.add_argument("--docs", type=Path, help="folder to write tiers.svg and tiers.json to")
    args = parser.parse_args()
    if args.models is not None:
        collect(args.data, args.models, args.out)
    items, answers = read_workload(args.data), read_all(args.out)
    asked = [item for item in items if all((item.id, tier) in answers for tier in LANGUAGE_MODELS)]
    if len(asked) < len(items):
        print(f"only {len(asked)} of {len(items)} requests were answered so far", file=sys.stderr)
    found = evaluate(asked, answers)
    svg = found.pop("svg")
    if args.docs is not None:
        (args.docs / "tiers.svg").write_text(svg)
        (args.docs / "tiers.json").write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))


if __name__ == "__main__":
    main()
