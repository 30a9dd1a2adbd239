"""What the settings of a run may be."""

from __future__ import annotations

from collections.abc import Sequence

from agents.vocabulary import Head
from envs.candidates import check_top_p
from envs.errors import InputError
from envs.rewards import Sqil, make_reward
from experiments.budget import check_budget
from experiments.collect import TEACHER_WALKS
from experiments.config import RunConfig
from experiments.protect import check_protection
from experiments.references import TARGETS
from experiments.rules.run import check_rules
from experiments.samplers import GRID, SAMPLERS

PRECISIONS = ("float32", "bfloat16")  # of a student's forwards
COUNTS = ("max_new_tokens", "episodes", "updates", "batch_size", "eval_prompts", "eval_every", "warm_start_rounds")


def check_limits(config: RunConfig, masses: Sequence[float]) -> None:
    """Raises: InputError: a setting outside its limits; it names the value, the limit and the remedy."""
    for top_p in masses:
        check_top_p(top_p, config.max_candidates)
    make_reward(config.reward, config.gamma)
    check_protection(config)
    check_budget(config)
    if config.dtype not in PRECISIONS:
        raise InputError(
            f"dtype = {config.dtype!r} must be one of {', '.join(PRECISIONS)}; float16 would lose small gradients"
        )
    Head(config.head, config.negatives, config.resting_rows)
    if config.reward == Sqil.name:
        raise InputError(f"reward {config.reward!r} tells the student's steps from the teacher's, who walks alone here")
    if not masses or len(set(masses)) < len(masses):
        raise InputError(f"top_p = {list(masses)} must name one mass or several different ones")
    if config.teacher_walk not in TEACHER_WALKS:
        raise InputError(f"teacher_walk = {config.teacher_walk!r} must be one of {', '.join(TEACHER_WALKS)}")
    check_rules(config)
    if config.targets not in TARGETS:
        raise InputError(f"targets = {config.targets!r} must be one of {', '.join(TARGETS)}")
    if (sampler := getattr(config, "sampler", GRID)) not in SAMPLERS:
        raise InputError(f"sampler = {sampler!r} must be one of {', '.join(SAMPLERS)}")
    if sampler != GRID and not getattr(config, "trials", 0):
        raise InputError(f"sampler = {sampler!r} samples nothing of 0 trials; give --trials N, or leave it out")
    if config.targets == "references" and config.store is not None:
        raise InputError("a store holds the teacher's replies; learn from references without --store")
    for name in (*COUNTS, "jobs"):
        value = getattr(config, name, 1)
        if value < 1:
            raise InputError(f"{name} = {value} is below 1")
    if (cores := getattr(config, "cell_cpus", 1.0)) <= 0:
        raise InputError(f"cell_cpus = {cores} must be above 0; 1 is a core for each cell")
    if config.shard and config.lora:
        raise InputError(f"lora = {config.lora} leaves little to spread; leave --shard out")
    if config.shard and config.micro_batch:
        raise InputError(
            f"micro_batch = {config.micro_batch} of weights that are spread would be fetched unequally often; take "
            "--gradient-checkpointing, or leave --shard out"
        )
    free = {"seeds": "0 compares nothing", "trials": "0 searches nothing"}
    free |= {"retries": "0 tries each cell once", "cell_gpus": "0 sets none aside"}
    free |= {"micro_batch": "0 takes whole batches", "lora": "0 learns all weights"}
    free |= {"seed": "any other number will do"}
    for name, nothing in free.items():
        if (value := getattr(config, name, 0)) < 0:
            raise InputError(f"{name} = {value} is below 0; {nothing}")
    for name in ("threads", "max_prompt_tokens"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} = {value} is below 1; leave it out for the default")
