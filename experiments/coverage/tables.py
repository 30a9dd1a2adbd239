"""What was found, as Markdown: one page, part by part."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from experiments.cost import price_of_million
from experiments.coverage.advice import Advice, Shares
from experiments.coverage.survey import ALL, Found, Grid, Side
from experiments.report import aligned
from experiments.statistics import Estimate

SHOWN = 12  # words that fall out most often


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts, references and the teacher's replies, ends included; whether each reply ended by itself."""

    prompts: list[int]
    references: list[int]
    replies: list[int]
    ended: list[bool]
    context: int  # tokens that the teacher sees
    budget: int  # max_new_tokens


@dataclass(frozen=True)
class Cost:
    """What the distillation takes."""

    tokens_per_second: float  # that the teacher wrote here
    tokens: float  # that it will write
    candidates: float  # of a state, on average
    bytes_per_token: float  # of a store: a byte, and of each candidate its id and a float16
    planned: str  # `experiments.plan`
    price: float | None  # of an hour

    @property
    def hours(self) -> float:
        """The teacher's walk."""
        return self.tokens / self.tokens_per_second / 3600


@dataclass
class Findings:
    """All that a page says; what is known last is filled in last."""

    teacher: str
    grid: Grid
    prompts: int
    lengths: Lengths
    own: Side  # the teacher's replies
    basis: Side  # what the words are taken from: the references, or the same where there are none
    groups: dict[str, Found]
    shares: dict[str, Shares]  # of those groups that have an occurrence
    kept: Shares = field(init=False)
    cut: Shares = field(init=False)
    missing: list[str] = field(default_factory=list)  # words of the lexicon that do not occur
    stay: dict[float, Estimate] = field(default_factory=dict)
    advice: Advice | None = None
    cost: Cost | None = None

    @property
    def source(self) -> str:
        """What the words are taken from."""
        return "the references" if self.basis is not self.own else "the teacher's own replies"

    @property
    def column(self) -> int:
        """Where the recommended p stands among the masses."""
        assert self.advice is not None
        return self.grid.masses.index(self.advice.top_p)

    def width(self, place: int) -> str:
        """A K as headings name it; the last one is no limit."""
        return "no limit" if place == len(self.grid.widths) - 1 else f"{self.grid.widths[place]:,}"


def lengths(found: Lengths) -> str:
    """Tokens of the texts, and what the budget and the context cut."""
    lines = [["tokens", "texts", "mean", "median", "95 %", "longest"]]
    for name, values in (
        ("prompts", found.prompts),
        ("references", found.references),
        ("teacher's replies", found.replies),
    ):
        if values:
            middle, high = np.quantile(values, [0.5, 0.95])
            own = f"{len(values):,} {fmean(values):,.1f} {middle:,.0f} {high:,.0f} {max(values):,}".split()
            lines.append([name, *own])
    going = 1 - fmean(found.ended)
    said = f"The context holds {found.context:,} tokens. After {found.budget} tokens {100 * going:.1f} % of the "
    said += "teacher's replies go on"
    if found.references:
        longer = 100 * fmean(length > found.budget for length in found.references)
        said += f", {longer:.1f} % of the references are longer"
    return f"## Lengths\n\n{aligned(lines, markdown=True)}\n\n{said} (max_new_tokens)."


def sets(found: Findings) -> str:
    """A line for each p: sizes and mass of the sets along the teacher's replies, and how whole replies fare."""
    heads = [
        "p",
        "candidates",
        "median",
        "95 %",
        "largest",
        "mass kept",
        "−Σ log Z",
        "−log P(stays inside)",
        "replies whole",
    ]
    lines = [heads]
    for place, p in enumerate(found.grid.masses):
        sizes = found.own.sizes[:, place]
        middle, high = np.quantile(sizes, [0.5, 0.95])
        stay = found.stay.get(p)
        lines.append(
            [
                f"{p:g}",
                f"{sizes.mean():,.1f}",
                f"{middle:,.0f}",
                f"{high:,.0f}",
                f"{sizes.max():,}",
                f"{found.kept.value[place, -1]:.4f}",
                f"{abs(found.own.log_kept[:, place, -1].mean()):.2f}",
                "–" if stay is None else _with_half(stay),
                f"{found.basis.whole(p, found.grid.widths[-1]).mean() * 100:.1f} %",
            ]
        )
    said = (
        f"Sizes, mass and −Σ log Z (nats a reply) along the teacher's replies; −log P in nats a reply, by walks inside "
        f"the sets (identity 4b); whole: share of {found.source} that never leave the sets."
    )
    return f"## Candidate sets\n\n{aligned(lines, markdown=True)}\n\n{said}"


def _with_half(found: Estimate) -> str:
    """A mean with half of its interval, which one prompt alone does not give."""
    half = found.value - found.low
    return f"{found.value:.2f}" if math.isnan(half) else f"{found.value:.2f}±{half:.2f}"


def words_by_width(found: Findings) -> str:
    """Words lost at every p and K."""
    shares, every = found.shares[ALL], range(len(found.grid.widths))
    lines = [
        ["p", *(f"K = {found.width(k)}" if k == 0 else found.width(k) for k in every), "95 % interval", "words gone"]
    ]
    gone = words_gone(found.groups[ALL], found.grid)
    for place, p in enumerate(found.grid.masses):
        whole = shares.at(place)
        cells = [f"{100 * shares.value[place, k]:.2f} %" for k in every]
        lines.append([f"{p:g}", *cells, f"{100 * whole.low:.2f}–{100 * whole.high:.2f}", f"{gone[place]:,}"])
    said = (
        f"Share of the {len(found.groups[ALL]):,} words of {found.source} that fall out: any of a word's tokens is no "
        f"candidate where it stands. Without a limit: the interval, over {found.prompts:,} prompts, and how many of "
        f"{len(set(found.groups[ALL].words)):,} different words are gone, falling out wherever they stand."
    )
    return f"## Words lost at each p and K\n\n{aligned(lines, markdown=True)}\n\n{said}"


def words_gone(words: Found, grid: Grid) -> list[int]:
    """Different words that fall out at every occurrence, at each p without a limit on K."""
    least: dict[str, float] = {}
    for word, before in zip(words.words, words.before.tolist(), strict=True):
        least[word] = min(before, least.get(word, before))
    return [0 if p == 1.0 else sum(before >= p for before in least.values()) for p in grid.masses]


def words_by_group(found: Findings) -> str:
    """Words lost in each group at every p below 1, no K."""
    masses = [(place, p) for place, p in enumerate(found.grid.masses) if p < 1.0]
    lines = [["group", "words", *(f"p = {p:g}" for _, p in masses)]]
    for name, shares in found.shares.items():
        cells = [
            f"{e.value * 100:.2f} ({e.low * 100:.2f}–{e.high * 100:.2f})" for e in (shares.at(k) for k, _ in masses)
        ]
        lines.append([name, f"{len(found.groups[name]):,}", *cells])
    said = (
        "Per cent with 95 % intervals over prompts, without a limit on K; an interval of nothing lost among few words "
        "says little. Said n times: in the references of all prompts and the teacher's replies; checks: what a "
        "good reply must contain."
    )
    if found.missing:
        said += f" Of the lexicon, {found.source} never have: {', '.join(found.missing)}."
    return f"## Words lost by kind\n\n{aligned(lines, markdown=True)}\n\n{said}"


def lost_words(found: Findings) -> str:
    """The words that fall out most often, at the recommended p; where it loses none, at the largest p that does."""
    place = found.column
    every = found.groups[ALL]
    while place and not every.lost(found.grid)[:, place, -1].any():
        place -= 1
    lines = [["word", "occurs", "falls out", "share", "largest p that loses it"]]
    lines += most_lost(every, found.grid, place)
    if len(lines) == 1:
        return "## Words lost most often\n\nNo word falls out at any p that was looked at."
    said = f"At p = {found.grid.masses[place]:g}; at any p above the last column no occurrence falls out."
    return f"## Words lost most often\n\n{aligned(lines, markdown=True)}\n\n{said}"


def most_lost(words: Found, grid: Grid, place: int) -> list[list[str]]:
    """Word, occurrences, how many fall out at a p, their share, and the largest p that loses one."""
    gone = words.lost(grid)[:, place, -1]
    count: dict[str, list[float]] = {}
    for word, lost, before in zip(words.words, gone.tolist(), words.before.tolist(), strict=True):
        own = count.setdefault(word, [0, 0, 0.0])
        own[0], own[1], own[2] = own[0] + 1, own[1] + lost, max(own[2], before)
    order = sorted((word for word, own in count.items() if own[1]), key=lambda w: (-count[w][1], count[w][0], w))
    rows = [(word, count[word]) for word in order[:SHOWN]]
    return [[word, f"{n:,.0f}", f"{lost:,.0f}", f"{100 * lost / n:.0f} %", f"{p:.4f}"] for word, (n, lost, p) in rows]


def costs(found: Findings) -> str:
    """What the distillation takes at the recommended p and K."""
    cost = found.cost
    assert cost is not None and found.advice is not None
    said = [
        f"the teacher writes {cost.tokens:,.0f} tokens, which at the {cost.tokens_per_second:,.0f} tokens/s that it "
        f"reached here takes {60 * cost.hours:,.1f} minutes",
        f"a state has {cost.candidates:.1f} candidates, a stored token {cost.bytes_per_token:.0f} bytes, all of them "
        f"{cost.bytes_per_token * cost.tokens / 1e6:,.1f} MB (prompts apart)",
    ]
    if cost.price is not None:
        million = price_of_million(cost.price, cost.tokens_per_second)
        said.append(
            f"a million of the teacher's tokens cost {million:,.2f}, those above {cost.price * cost.hours:,.2f}"
        )
    heading = f"## Cost at p = {found.advice.top_p:g}, K = {found.advice.max_candidates:,}"
    return "\n\n".join([heading, "\n\n".join(said), cost.planned])


def recommendation(found: Findings) -> str:
    """The advice, and the settings that follow it."""
    at = found.advice
    assert at is not None
    width = "" if at.top_p == 1.0 else f" --max-candidates {at.max_candidates}"
    said = "" if at.met else " No p that was looked at keeps within the limit: look at larger ones, or raise it."
    return f"## Recommended\n\n--top-p {at.top_p:g}{width}\n\n{at.reason}.{said}"


def figures(found: Findings) -> list[dict[str, Any]]:
    """Every figure by name, as `--json` has them; shares in [0, 1]."""
    grid, rows = found.grid, list[dict[str, Any]]()

    def add(name: str, value: float | Estimate, **where: Any) -> None:
        own = {"value": value} if not isinstance(value, Estimate) else vars(value)
        known = {key: float(number) for key, number in own.items() if not math.isnan(number)}
        rows.append({"name": name, **known, **where})

    gone = words_gone(found.groups[ALL], grid)
    for place, p in enumerate(grid.masses):
        sizes = found.own.sizes[:, place]
        add("words_gone", gone[place], top_p=p)
        add("mean_candidates", sizes.mean(), top_p=p)
        for share in (0.5, 0.95):
            add("candidates", np.quantile(sizes, share), top_p=p, quantile=share)
        add("minus_sum_log_z", abs(found.own.log_kept[:, place, -1].mean()), top_p=p)
        add("replies_whole", found.basis.whole(p, grid.widths[-1]).mean(), top_p=p)
        if p in found.stay:
            add("minus_log_p_stays_inside", found.stay[p], top_p=p)
        for k, width in enumerate(grid.widths):
            add("mass_kept", found.kept.at(place, k), top_p=p, max_candidates=width)
            add("mass_cut", found.cut.at(place, k), top_p=p, max_candidates=width)
            for name, shares in found.shares.items():
                add("words_lost", shares.at(place, k), top_p=p, max_candidates=width, group=name)
    for name, words in found.groups.items():
        add("words", len(words), group=name)
    for name, values in (("prompt", found.lengths.prompts), ("reference", found.lengths.references)):
        if values:
            add(f"{name}_tokens", fmean(values))
            add(f"longest_{name}", max(values))
    add("reply_tokens", fmean(found.lengths.replies))
    add("replies_ended", fmean(found.lengths.ended))
    if found.cost is not None:
        add("teacher_tokens_per_second", found.cost.tokens_per_second)
        add("teacher_tokens", found.cost.tokens)
        add("bytes_per_token", found.cost.bytes_per_token)
    if found.advice is not None:
        add("recommended_top_p", found.advice.top_p)
        add("recommended_max_candidates", found.advice.max_candidates)
        add("within_limits", found.advice.met)
    return rows
