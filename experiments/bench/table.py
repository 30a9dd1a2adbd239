"""The figures of a benchmark as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]
ARMS = {"env": "tdistill", "raw_hf": "raw HF decode", "generate": "generate(top_p)", "naive": "naive env"}
RATIOS = {
    "over_raw_hf": "env over raw HF decode",
    "over_generate": "env over generate(top_p)",
    "over_naive": "env over naive env",
    "single_over_naive": "single env over naive env",
    "refill_over_fixed": "refilling over lock-step",
    "sb3_over_env": "SB3 adapter over env",
}
PARTS = ("forward", "candidates", "bookkeeping")


STORE = {
    "gkd_over_store": "store over live GKD on the whole vocabulary",
    "gkd_over_sampled": "store, an eighth of the vocabulary sampled, over the same",
    "trl_over_store": "store over TRL's GKD trainer",
    "live_over_store": "store over candidates of a live teacher",
    "loading_over_memory": "store over batches in memory",
    "step_over_trunk": "step time over the layers' alone",
    "adamw_over_resting": "step time, AdamW on all rows over resting rows",
    "memory_ratio": "peak memory, GKD over store",
}
WALKERS = ("lockstep", "raw teacher", "raw student")


def of_env(figures: Sequence[Figure]) -> str:
    """Steps per second by arm, with peak memory and where the time goes; then every ratio with its interval."""
    places = list(dict.fromkeys((figure["V"], figure["N"]) for figure in figures if figure["name"] == "share_of_time"))
    speeds = [["V", "N", *ARMS.values(), *PARTS, "MB risen: env", "raw HF"]]
    for width, rows in places:
        here = [figure for figure in figures if (figure["V"], figure["N"]) == (width, rows)]
        rates = [_one(here, "steps_per_second", arm=arm) for arm in ARMS]
        shares = [_one(here, "share_of_time", part=part) for part in PARTS]
        peaks = [_one(here, "peak_memory_mb", arm=arm) for arm in ("env", "raw_hf")]
        speeds.append(
            [
                f"{width:,}",
                str(rows),
                *(f"{rate['value']:,.0f}" for rate in rates),
                *(f"{share['value']:.0%}" for share in shares),
                *(f"{peak['value']:,.0f}" for peak in peaks),
            ]
        )
    ratios = [["ratio", "V", "N", "median", "interval"]]
    for name, label in RATIOS.items():
        for figure in figures:
            if figure["name"] == name:
                interval = f"{figure['low']:.2f} – {figure['high']:.2f}"
                ratios.append([label, f"{figure['V']:,}", str(figure["N"]), f"{figure['value']:.2f}", interval])
    return "\n\n".join(["steps per second; where the time of a step goes", _table(speeds), _table(ratios)])


def of_memory(figures: Sequence[Figure]) -> str:
    """Where memory began and ended, and by how much it rose."""
    rise, *points = figures
    first, last = points[len(points) // 10]["value"], points[-1]["value"]
    return (
        f"{rise['steps']:,} steps of {rise['N']} rows: {first:.0f} MB after a tenth, {last:.0f} MB at the end, "
        f"{rise['value']:+.1f} MB from the first half to the second"
    )


def of_learn(figures: Sequence[Figure]) -> str:
    """Transitions per second, their ratio, and how long each arm took to the same divergence from the teacher."""
    lines = [
        ["V", "student", "sequence/s", "transition/s", "ratio", "interval", "KL from → to", "seconds", "and", "ratio"]
    ]
    for ratio in figures:
        if ratio["name"] != "sequence_over_transition":
            continue
        here = [figure for figure in figures if figure["V"] == ratio["V"]]
        rates = [_one(here, "transitions_per_second", arm=arm)["value"] for arm in ("sequence", "transition")]
        line = [f"{ratio['V']:,}", ratio["student"], *(f"{rate:,.0f}" for rate in rates), f"{ratio['value']:.1f}"]
        line.append(f"{ratio['low']:.1f} – {ratio['high']:.1f}")
        if any(figure["name"] == "seconds_to_equal_kl" for figure in here):
            first, then = (_one(here, "seconds_to_equal_kl", arm=arm) for arm in ("sequence", "transition"))
            more = "> " if then["capped"] else ""
            line += [f"{first['kl_start']:.2f} → {first['kl']:.2f}", f"{first['value']:.0f}"]
            line += [f"{more}{then['value']:.0f}", f"{more}{then['value'] / first['value']:.1f}"]
        lines.append([*line, *[""] * (len(lines[0]) - len(line))])
    text = "one update on whole sequences, over the same on single transitions\n\n" + _table(lines)
    walks = [["V", "texts", "walk, tokens/s", "teacher alone", "student alone", "walk over both", "interval"]]
    for ratio in figures:
        if ratio["name"] == "lockstep_over_raw":
            here = [figure for figure in figures if figure["V"] == ratio["V"]]
            rates = [_one(here, "tokens_per_second", arm=arm)["value"] for arm in WALKERS]
            line = [f"{ratio['V']:,}", str(ratio["N"]), *(f"{rate:,.0f}" for rate in rates), f"{ratio['value']:.2f}"]
            walks.append([*line, f"{ratio['low']:.2f} – {ratio['high']:.2f}"])
    if len(walks) > 1:
        text += f"\n\na student's walk in lockstep, over raw decoding of both, one after the other\n\n{_table(walks)}"
    ratios = [["ratio", "V", "allocator", "median", "interval"]]
    for figure in figures:
        if label := STORE.get(figure["name"]):
            interval = f"{figure['low']:.2f} – {figure['high']:.2f}" if "low" in figure else ""
            ratios.append([label, f"{figure['V']:,}", figure["allocator"], f"{figure['value']:.2f}", interval])
    return text if len(ratios) == 1 else f"{text}\n\nlearning from the teacher store\n\n{_table(ratios)}"


def of_served(figures: Sequence[Figure]) -> str:
    """Episodes per second of every arm, what a served one has of the local one's, and requests of an episode."""
    lines = [["arm", "episodes/s", "interval", "over the process", "interval", "requests of an episode"]]
    for rate in (figure for figure in figures if figure["name"] == "episodes_per_second"):
        line = [rate["arm"], f"{rate['value']:.2f}", f"{rate['low']:.2f} – {rate['high']:.2f}"]
        here = [figure for figure in figures if figure["arm"] == rate["arm"]]
        if any(figure["name"] == "served_over_local" for figure in here):
            ratio, asked = _one(here, "served_over_local"), _one(here, "requests_per_episode")
            line += [f"{ratio['value']:.2f}", f"{ratio['low']:.2f} – {ratio['high']:.2f}", f"{asked['value']:.2f}"]
        lines.append([*line, *[""] * (len(lines[0]) - len(line))])
    return "replies of the embedded teacher over HTTP on the loopback\n\n" + _table(lines)


def _one(figures: Sequence[Figure], name: str, **more: str) -> Figure:
    wanted = {"name": name, **more}
    return next(figure for figure in figures if all(figure.get(key) == value for key, value in wanted.items()))


def _table(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]])
