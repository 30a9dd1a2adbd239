"""`tdistill collect`: let the teacher walk once, shard by shard, and keep what it said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from agents.episodes import Episodes
from agents.loading import load_tokenizer as load_student_tokenizer
from envs.candidates import check_top_p
from envs.carried_teacher import CarriedTeacher, in_tokens_of
from envs.carry import Bounds
from envs.errors import InputError
from envs.extras import Extras
from envs.prompts import Prompt, embedded_prompts, fitting, load_prompts, prompt_hash, split_prompts
from envs.rewards import make_reward
from envs.serving import Serving
from envs.teachers import SERVED, Teacher, load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import TEACHER_WALKS, collect, numbers_of
from experiments.config import SetConfig
from experiments.folder import alone, full_disk_is_said
from experiments.protect import check_protection, digest_of, fitting_extras, protects
from experiments.store import carried
from experiments.store.columns import Format
from experiments.store.fingerprint import fingerprint
from experiments.store.shards import (
    MANIFEST,
    UPDATED,
    Manifest,
    arrow,
    check_teacher,
    damage_of,
    write_beside,
    write_shard,
)
from experiments.store.source import PROTECTED

if TYPE_CHECKING:
    from envs.served_teacher import ServedTeacher
    from experiments.store.served import Journal

SPLITS = ("train", "validation", "test", "all")
FREE = {
    "out",
    "rows",
    "json",
    "device",
    "attn_implementation",
    "trust_remote_code",
    "served",
    "teacher_tokenizer",
    "student_tokenizer",
    "carry",
}  # what the episodes do not depend on
EXTRA = "served.extra"
"""Where the settings of a store say what else its server was sent; not there in stores that are older than this."""


@dataclass(frozen=True)
class CollectConfig(SetConfig):
    """Walk the teacher through prompts and store its episodes with their candidate sets, to learn from without it."""

    out: Path
    """Folder of the store; the same command goes on where it stopped and draws damaged shards anew."""
    teacher: str = "embedded"
    """"embedded", "table:NAME", a directory, a hub id, or served:URL, as in served:http://localhost:8000/v1."""
    teacher_tokenizer: str | None = None
    """Of a served teacher: a directory or hub id of its model's tokenizer."""
    served: Serving = field(default_factory=Serving)
    """Of a served teacher: how it is asked."""
    student_tokenizer: str | None = None
    """A directory or hub id of a student's tokenizer, if it is not the teacher's: the store is in its tokens then."""
    carry: Bounds = field(default_factory=Bounds)
    """With a student's tokenizer: how far the teacher is followed."""
    prompts: Path | None = None
    """A .jsonl or text file, or a data set; none: the embedded corpus."""
    prompt_format: str = "prompt"
    """What its records are: prompt, dolly, selfinst or vicuna."""
    prompt_split: str = "train"
    """train, validation or test, as `compare` splits the file, or all of it."""
    count: int | None = None
    """Take the first so many prompts; none: all."""
    skip_bad: bool = False
    """Leave broken lines of the prompts file and prompts without room for a reply out instead of refusing them."""
    responses: int = 1
    """Replies to each prompt."""
    top_p: float = 0.9
    """Mass of the candidate sets, in (0, 1]."""
    max_candidates: int = 64
    max_new_tokens: int = 64
    """Token budget of a reply; it truncates."""
    reward: str = "logprob"
    gamma: float = 1.0
    """For the rewards that need it."""
    teacher_walk: str = "full"
    """What replies are drawn from: "full", the whole softmax, or "set", the candidates renormalised."""
    logp: str = "float16"
    """Type of the log-probabilities: float16 is off by up to .004 nats at 4 to 8 nats; or float32."""
    shard: int = 256
    """Prompts of a shard: what is lost at most when a collection is stopped."""
    seed: int = 0
    rows: int = 64
    """Texts that walk together."""
    json: Path | None = None
    """Write the figures to this file too."""


def draw(config: CollectConfig) -> dict[str, float]:
    """Draw the shards that the store does not hold, whole, yet.

    Returns: figures of the store: prompts, episodes, tokens, bytes per token, and `bytes_over_candidates`, its bytes
        over those of the candidates' ids and log-probabilities alone.
    Raises: InputError: bad settings, or a folder that holds another store or something else.
    """
    _check(config)
    arrow()
    prompts, teacher = _prompts(config), _teacher(config)
    prompts = [prompt for prompt, _ in fitting(prompts, teacher, skip_bad=config.skip_bad)]
    extras = fitting_extras(config, teacher, prompts)
    with (
        full_disk_is_said(config.out),
        _opened(config, teacher, prompts, digest_of(config, extras)) as manifest,
        tqdm(total=len(prompts), desc="collect", unit="prompt") as bar,
    ):
        for number, start in enumerate(range(0, len(prompts), config.shard)):
            name, part = f"shard-{number:05d}.arrow", prompts[start : start + config.shard]
            line = manifest.shards.get(name)
            damage = damage_of(config.out / name, line) if line else ""
            if damage:
                bar.write(f"{name} {damage}; it is drawn anew")
            if damage or not line:
                _draw_shard(config, teacher, part, number, manifest, extras)
            else:
                _asked(config, number).unlink(missing_ok=True)  # stopped after the line, before this
            bar.update(len(part))
    found = figures(manifest, len(prompts)) | _served_figures(config, teacher, manifest)
    return found | carried.figures(manifest.shards.values())


def _draw_shard(
    config: CollectConfig,
    teacher: Teacher,
    prompts: list[Prompt],
    number: int,
    manifest: Manifest,
    extras: Extras | None,
) -> None:
    """Draw a shard, write it, and then its line; of a served teacher what was paid for a damaged one stays counted."""
    name = f"shard-{number:05d}.arrow"
    if not config.teacher.startswith(SERVED):
        with carried.counting(teacher) as lost:
            episodes = _shard(config, teacher, prompts, number, extras=extras)
            line = write_shard(config.out / name, episodes, manifest.form)
        line |= lost
    else:
        from envs.served_teacher import ServedTeacher
        from experiments.store import served

        assert isinstance(teacher, ServedTeacher)
        before = manifest.shards.get(name, {})
        with served.journal(teacher, _asked(config, number)) as own:
            make = _shard if config.teacher_walk == "set" else _asked_shard
            episodes = make(config, teacher, prompts, number, own)
            line = write_shard(config.out / name, episodes, manifest.form)
            spent = {count: more + before.get(count, 0) for count, more in own.spent.items()}
            line |= served.line_of(episodes, config.top_p, spent)
    manifest.shards[name] = line
    manifest.write(config.out)
    _asked(config, number).unlink(missing_ok=True)


def _asked(config: CollectConfig, number: int) -> Path:
    """What a server has said of a shard so far."""
    return config.out / f"asked-{number:05d}.jsonl"


def _teacher(config: CollectConfig) -> Teacher:
    """Raises: InputError: a served teacher without a tokenizer, or a tokenizer for one that has its own."""
    if not config.teacher.startswith(SERVED):
        if config.teacher_tokenizer is not None:
            raise InputError(f"--teacher-tokenizer is for served:URL, teacher {config.teacher!r} has its own")
        teacher = load_teacher(config.teacher, config.loading)
        if config.student_tokenizer is None:
            return teacher
        if protects(config):
            raise InputError(
                "protected words are the teacher's tokens, --student-tokenizer draws another's; leave out one of them"
            )
        tokenizer = load_student_tokenizer(config.student_tokenizer, config.trust_remote_code)
        return in_tokens_of(teacher, tokenizer, config.carry)
    if config.student_tokenizer is not None:
        raise InputError(
            "--student-tokenizer wants whole distributions, a server returns its most probable tokens; take a teacher "
            "that is here, or leave it out"
        )
    if config.teacher_tokenizer is None:
        raise InputError(f"teacher {config.teacher!r} is only served; give its tokenizer with --teacher-tokenizer DIR")
    if config.top_p == 1.0:
        raise InputError("top_p = 1 wants whole vocabularies, a server returns its most probable tokens; lower top_p")
    if protects(config):
        raise InputError(
            f"teacher {config.teacher!r} is only served and says nothing of tokens outside its most probable ones; "
            "leave out --protect, --copy-prompt and --rare-within"
        )
    from envs.served_teacher import ServedTeacher

    return ServedTeacher(config.teacher, config.teacher_tokenizer, config.served, chat_template=config.chat_template)


def _served_figures(config: CollectConfig, teacher: Teacher, manifest: Manifest) -> dict[str, float]:
    """What asking took, what belongs to no shard included: the first words of a command that found nothing to draw."""
    if not config.teacher.startswith(SERVED):
        return {}
    from envs.served_teacher import ServedTeacher
    from experiments.store import served

    assert isinstance(teacher, ServedTeacher)
    with served.journal(teacher, config.out / "asked.jsonl") as rest:
        return served.figures([*manifest.shards.values(), rest.spent], config.served)


def _asked_shard(
    config: CollectConfig, teacher: ServedTeacher, prompts: list[Prompt], number: int, own: Journal
) -> Episodes:
    """As `_shard`, of whole replies of a server; those that the journal holds are not asked for again."""
    from experiments.store import served

    texts = [text for prompt in prompts for text in [teacher.encode(prompt.text)] * config.responses]
    replies = served.ask(teacher, texts, config.max_new_tokens, _seed(config, number), own)
    sets = (config.top_p, config.max_candidates)
    return served.episodes_of(teacher, texts, replies, *sets, config.reward, config.gamma)


def _seed(config: CollectConfig, number: int) -> int:
    return int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])


def _shard(
    config: CollectConfig,
    teacher: Teacher,
    prompts: list[Prompt],
    number: int,
    own: Journal | None = None,
    extras: Extras | None = None,
) -> Episodes:
    """The episodes of these prompts, those of a prompt together; they depend on the seed and the shard's number."""
    texts = [teacher.encode(prompt.text) for prompt in prompts]
    env = TopPTokenVectorEnv(
        min(config.rows, len(texts) * config.responses),
        teacher=teacher,
        prompts=[text for text in texts for _ in range(config.responses)],
        top_p=config.top_p,
        max_candidates=config.max_candidates,
        max_new_tokens=config.max_new_tokens,
        reward=config.reward,
        gamma=config.gamma,
        extras=extras,
    )
    seed = _seed(config, number)
    found = collect(env, len(texts) * config.responses, seed=seed, teacher_walk=config.teacher_walk)
    return found.select(np.argsort(numbers_of(found, texts), kind="stable").tolist())


@contextmanager
def _opened(config: CollectConfig, teacher: Teacher, prompts: list[Prompt], protected: str) -> Iterator[Manifest]:
    """The store of this very collection, this command's alone.

    Raises: InputError: another store, something else, or another command that writes there.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give another --out")
    begun = {".lock", f"{MANIFEST}.partial"}  # by a command that was killed before it had a manifest
    if out.exists() and {path.name for path in out.iterdir()} - begun and not (out / MANIFEST).is_file():
        raise InputError(f"{out} is not empty and holds no {MANIFEST}, so it is no store; give another --out")
    with alone(out, "writing to"):
        manifest = _manifest(out, _settings(config, teacher, prompts, protected), fingerprint(teacher))
        write_beside(out, getattr(teacher, "tokenizer", None), (prompt_hash(prompt.text) for prompt in prompts))
        yield manifest


def _manifest(out: Path, settings: dict[str, Any], found: dict[str, Any]) -> Manifest:
    """The one that is there, if it is of this very collection; or a new one, written."""
    if (out / MANIFEST).is_file():
        manifest = Manifest.read(out)
        usual = {field.name: field.default for field in fields(CollectConfig)} | {PROTECTED: "", UPDATED: "", EXTRA: {}}
        for name, ours in settings.items():
            if (theirs := manifest.settings.get(name, usual.get(name))) != ours:
                raise InputError(
                    f"{out} holds a store with {name} = {theirs!r}, this one has {ours!r}; give another --out"
                )
        check_teacher(manifest, found, out)
        return manifest
    manifest = Manifest(settings, found, {})
    manifest.write(out)
    return manifest


def _settings(config: CollectConfig, teacher: Teacher, prompts: list[Prompt], protected: str) -> dict[str, Any]:
    """What the episodes depend on, besides the teacher; one that is served is named by its model, not its address."""
    own = {
        name: value
        for name, value in asdict(config).items()
        if name not in FREE | {"prompts", "prompt_format", "skip_bad", "protect", "copy_prompt", "rare_within"}
    }
    if config.teacher.startswith(SERVED):
        own |= {"teacher": teacher.name, "logprobs": config.served.logprobs, EXTRA: config.served.more}
    if isinstance(teacher, CarriedTeacher):
        own["carry"] = asdict(config.carry)
    texts = prompt_hash("\n".join(prompt.text for prompt in prompts))
    return own | {"temperature": 1.0, "prompts": texts, PROTECTED: protected, UPDATED: ""}


def _prompts(config: CollectConfig) -> list[Prompt]:
    split = config.prompt_split
    if config.prompts is None:
        names = SPLITS[:3] if split == "all" else (split,)
        found = [prompt for name in names for prompt in embedded_prompts(name)]
    else:
        found = load_prompts(config.prompts, skip_bad=config.skip_bad, prompt_format=config.prompt_format)
        found = found if split == "all" else getattr(split_prompts(found), split)
    return found[: config.count]


def _check(config: CollectConfig) -> None:
    check_top_p(config.top_p, config.max_candidates)
    check_protection(config)
    for name, value, known in (
        ("prompt_split", config.prompt_split, SPLITS),
        ("teacher_walk", config.teacher_walk, TEACHER_WALKS),
    ):
        if value not in known:
            raise InputError(f"{name} = {value!r} must be one of {', '.join(known)}")
    Format(2, config.logp)
    make_reward(config.reward, config.gamma)  # before anything is drawn, or paid for
    for name in ("count", "responses", "max_new_tokens", "shard", "rows"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} = {value} is below 1")
    if config.seed < 0:
        raise InputError(f"seed = {config.seed} is below 0; any other number will do")


def figures(manifest: Manifest, prompts: int) -> dict[str, float]:
    """What a store holds and takes."""
    total = {
        name: float(sum(line[name] for line in manifest.shards.values()))
        for name in ("episodes", "tokens", "bytes", "candidate_bytes")
    }
    return {
        "prompts": float(prompts),
        "episodes": total["episodes"],
        "tokens": total["tokens"],
        "bytes_per_token": total["bytes"] / total["tokens"],
        "bytes_over_candidates": total["bytes"] / total["candidate_bytes"],
    }
