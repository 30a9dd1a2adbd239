"""`tdistill coverage`: what every p and K would keep, lose and cost, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.candidates import check_top_p
from envs.decode import decode
from envs.errors import InputError
from envs.prompts import Prompt, fitting, load_prompts
from envs.teachers import Teacher, load_teacher
from experiments.config import WARM_START_NAME, CompareConfig, LoadConfig
from experiments.cost import check_price
from experiments.coverage import advice, tables
from experiments.coverage.survey import (
    ALL,
    CHECKED,
    LEXICON,
    Found,
    Grid,
    Side,
    by_group,
    spellings,
    survey,
    word_counts,
)
from experiments.coverage.tables import Cost, Findings, Lengths
from experiments.coverage.words import read_lexicon
from experiments.evaluate import ROWS, Rule
from experiments.metrics import mean_and_interval
from experiments.references import end_of, tokens_of
from experiments.statistics import Estimate

GUARDED = (ALL, CHECKED + "required", LEXICON)
"""What must not be lost: all words, phrases that a critical reply needs, and the user's own."""


@dataclass(frozen=True)
class CoverageConfig(LoadConfig):
    """Look before training: what the candidate sets of a teacher would keep, lose and cost at every p and K."""

    teacher: str = "embedded"
    """"embedded", "table:NAME", a directory, or a hub id."""
    prompts: Path | None = None
    """A .jsonl or text file, or a data set; none: the embedded training split."""
    prompt_format: str = "prompt"
    """What its records are: prompt, dolly, selfinst or vicuna."""
    skip_bad: bool = False
    """Leave broken lines and prompts that are too long out instead of refusing the file."""
    count: int = 256
    """Look at the first so many prompts; words are counted in the references of all of them."""
    lexicon: Path | None = None
    """A text file of words that must not be lost, one word or phrase a line."""
    top_p: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
    """Masses of the candidate sets, each in (0, 1]."""
    max_candidates: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    """Most candidates of a state; no limit is looked at too."""
    max_new_tokens: int = 64
    """Token budget of the teacher's replies; references are read whole, as far as the context goes."""
    walks: int = 4
    """Replies inside the sets to each of `walk_prompts` prompts, for −log P(stays inside); 0: none."""
    walk_prompts: int = 32
    """The first so many different prompts."""
    max_lost_words: float = 0.01
    """Share of the words that may fall out, of those that must not be lost also."""
    max_cut: float = 0.001
    """Share of the mass that max_candidates may cut off the sets, on average."""
    student: str = ""
    """For the costs: as in `compare`; none: the warm start of the embedded teacher, a tiny one of any other."""
    agents: tuple[str, ...] = ("soft_q",)
    """For the costs: the arms to train."""
    seeds: int = 1
    """For the costs, as `updates`, `episodes` and `batch_size`."""
    updates: int = 300
    episodes: int = 1024
    batch_size: int = 16
    price: float | None = None
    """What an hour of this machine costs, in any currency."""
    seed: int = 0
    """Of the teacher's replies and of the intervals."""
    out: Path = Path("runs/coverage")
    """Folder of the page, its figures and coverage.json."""
    json: Path | None = None
    """Write the figures to this file too."""


def coverage(config: CoverageConfig) -> Iterator[str]:
    """The parts of the page, each as soon as it is known; the files come last.

    Raises: InputError: a setting, a prompt, a reference or a word of the lexicon that cannot be used.
    """
    from experiments.coverage.page import write_all

    check(config)
    teacher = load_teacher(config.teacher, config.loading)
    lexicon = read_lexicon(config.lexicon, teacher) if config.lexicon is not None else []
    every = load_prompts(config.prompts, skip_bad=config.skip_bad, prompt_format=config.prompt_format)
    chosen = fitting(every, teacher, skip_bad=config.skip_bad, most=config.count)
    prompts, ids = [prompt for prompt, _ in chosen], [text for _, text in chosen]
    planned_at(config, config.top_p[0], config.max_candidates[0], 1)  # refused now rather than after the work
    grid = grid_of(config, teacher)
    given = references_of(prompts, ids, teacher)
    drawn, speed = replies_of(teacher, ids, config)
    ended = [reply[-1] in teacher.eos_ids for reply in drawn]
    counts = [len(text) for text in ids], [len(reply) for _, reply in given], [len(reply) for reply in drawn]
    lengths = Lengths(*counts, ended, teacher.context_limit, config.max_new_tokens)
    yield tables.lengths(lengths)
    own = survey(teacher, ids, list(enumerate(drawn)), grid, "the teacher's replies")
    basis = survey(teacher, ids, given, grid, "references") if given else own
    weights = advice.draws(len(prompts), config.seed)
    groups = grouped(basis, own, teacher, prompts, every, lexicon)
    shares = {name: advice.lost(part, grid, weights) for name, part in groups.items() if len(part)}
    if ALL not in shares:
        raise InputError("no word stands in any reply; is the teacher one of text? Give other prompts, or references")
    found = Findings(config.teacher, grid, len(prompts), lengths, own, basis, groups, shares)
    found.kept, found.cut = advice.mass_kept(own, weights), advice.mass_cut(own, weights)
    if lexicon:
        found.missing = [word for word in lexicon if word.lower() not in groups[LEXICON].words]
    yield tables.words_by_width(found)
    yield tables.words_by_group(found)
    found.stay = stay_inside(teacher, ids, config, grid)
    yield tables.sets(found)
    guarded = {name: shares[name] for name in GUARDED if name in shares}
    found.advice = advice.advise(guarded, found.cut, grid, advice.Limits(config.max_lost_words, config.max_cut))
    yield tables.lost_words(found)
    found.cost = cost_of(config, found, teacher, speed)
    yield tables.costs(found)
    yield tables.recommendation(found)
    yield write_all(found, config)


def replies_of(teacher: Teacher, ids: list[list[int]], config: CoverageConfig) -> tuple[list[list[int]], float]:
    """A reply of the teacher's to each prompt, from its full softmax, and how many tokens a second it wrote."""
    begin = time.perf_counter()
    drawn = decode(
        teacher,
        ids,
        eos_ids=teacher.eos_ids,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        rows=ROWS,
        vocabulary=teacher.vocab_size,
        progress="the teacher's replies",
    )
    return drawn, sum(map(len, drawn)) / (time.perf_counter() - begin)


def check(config: CoverageConfig) -> None:
    """Raises: InputError: a setting outside its limits."""
    if not config.top_p or not config.max_candidates:
        raise InputError("top_p and max_candidates must name one value or several")
    for p in config.top_p:
        check_top_p(p)
    for width in config.max_candidates:
        check_top_p(0.9, width)
    for name in ("count", "max_new_tokens", "walk_prompts", "seeds", "updates", "episodes", "batch_size"):
        if (value := getattr(config, name)) < 1:
            raise InputError(f"{name} = {value} is below 1")
    if config.seed < 0:
        raise InputError(f"seed = {config.seed} is below 0; any other number will do")
    if config.walks < 0:
        raise InputError(f"walks = {config.walks} is below 0; 0 walks none")
    check_price(config.price)
    for name in ("max_lost_words", "max_cut"):
        if not 0.0 <= (value := getattr(config, name)) <= 1.0:
            raise InputError(f"{name} = {value:g} is outside [0, 1]; it is a share, 0.01 is one in a hundred")
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"{config.out} is a file; give another --out")


def grid_of(config: CoverageConfig, teacher: Teacher) -> Grid:
    """The masses and widths, each once, ascending; widths below V, and V."""
    widths = {width for width in config.max_candidates if width < teacher.vocab_size}
    return Grid(tuple(sorted(set(config.top_p))), (*sorted(widths), teacher.vocab_size))


def references_of(prompts: list[Prompt], ids: list[list[int]], teacher: Teacher) -> list[tuple[int, list[int]]]:
    """The references as tokens with their end, and which prompt each answers; cut where the context ends."""
    end = end_of(teacher)
    return [
        (number, [*tokens_of(reference, teacher), end][: teacher.context_limit - len(ids[number])])
        for number, prompt in enumerate(prompts)
        for reference in prompt.references
    ]


def grouped(
    basis: Side, own: Side, teacher: Teacher, prompts: list[Prompt], every: list[Prompt], lexicon: list[str]
) -> dict[str, Found]:
    """The words of the references, or of the teacher's replies where there are none, in groups.

    How often a word is said is counted in the references of all prompts of the file and in the teacher's replies.
    """
    texts = spellings(basis, teacher)
    said = [text.text for text in (texts if basis is own else spellings(own, teacher))]
    corpus = word_counts([*said, *(reference for prompt in every for reference in prompt.references)])
    return by_group(basis, texts, prompts, corpus, lexicon)


def stay_inside(teacher: Teacher, ids: list[list[int]], config: CoverageConfig, grid: Grid) -> dict[float, Estimate]:
    """−log P(the teacher never leaves its sets) of a prompt, nats, by walks inside them; p -> mean over prompts.

    Sets are cut to the widest K that was asked for.
    """
    from experiments.studies.stay_inside import gap

    if not config.walks:
        return {}
    texts = [list(text) for text in dict.fromkeys(map(tuple, ids))][: config.walk_prompts]
    found = {1.0: Estimate(0.0, 0.0, 0.0)} if 1.0 in grid.masses else {}
    for p in grid.masses:
        if p < 1.0:
            rule = Rule(p, max(config.max_candidates), config.max_new_tokens)
            mean, half = mean_and_interval((-gap(teacher, texts, config.walks, rule, config.seed).log_stay).tolist())
            found[p] = Estimate(mean, mean - half, mean + half)
    return found


def cost_of(config: CoverageConfig, found: Findings, teacher: Teacher, speed: float) -> Cost:
    """What the whole distillation takes at the recommended p and K: measured where the teacher writes, else planned."""
    assert found.advice is not None
    at = found.advice
    place = found.grid.masses.index(at.top_p)
    candidates = float(np.minimum(found.own.sizes[:, place], at.max_candidates).mean())
    token = int(np.min_scalar_type(teacher.vocab_size - 1).itemsize)
    tokens = config.episodes * config.seeds * float(found.own.lengths.mean())
    planned = planned_at(config, at.top_p, at.max_candidates, max(found.lengths.prompts))
    return Cost(speed, tokens, candidates, 1 + candidates * (token + 2), planned, config.price)


def planned_at(config: CoverageConfig, top_p: float, max_candidates: int, longest: int) -> str:
    """What `--dry-run` says of the distillation.

    Raises: InputError: an agent or a student that cannot be used.
    """
    from experiments.plan import plan

    given: dict[str, Any] = {name: getattr(config, name) for name in SHARED}
    run = CompareConfig(
        **given,
        student=config.student or (WARM_START_NAME if config.teacher == "embedded" else "tiny"),
        top_p=(top_p,),
        max_candidates=max_candidates,
        max_prompt_tokens=longest,
    )
    return "a table has no weights to plan with" if config.teacher.startswith("table:") else plan(run)


SHARED = "teacher seeds updates episodes batch_size max_new_tokens agents teacher_dtype trust_remote_code".split()
"""Settings that the planned run has of this command."""
