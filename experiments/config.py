"""What a run is told: frozen dataclasses that are the command line and the YAML files alike."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from envs.errors import InputError
from envs.teachers import Loading

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PRESETS = Path(__file__).parent / "presets"
WARM_START_NAME = "warm-start"
ABSENT = "none"
"""The teacher of a run that learns from a store alone."""


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How the models of a command are loaded."""

    device: str = "cpu"
    """Where teacher and students compute: "cpu", "cuda" or "cuda:N"; in several processes "cuda" is one for each."""
    teacher_dtype: str = "float32"
    """Of the teacher's weights: float32, bfloat16 or float16."""
    attn_implementation: str | None = None
    """Of teacher and student, as transformers names them: eager, sdpa, flash_attention_2, …; none: its own choice."""
    trust_remote_code: bool = False
    """Run the model code that comes with a directory or from the hub."""
    chat_template: bool = False
    """Wrap each prompt as a user's turn of the tokenizer's chat template."""

    @property
    def loading(self) -> Loading:
        """Of the teacher. Raises: InputError: a type of number or a device that is not there."""
        return Loading(
            self.teacher_dtype, self.device, self.attn_implementation, self.trust_remote_code, self.chat_template
        )

    @property
    def student_loading(self) -> Loading:
        """Of a student that is only read: its weights are float32."""
        return replace(self.loading, dtype="float32", chat_template=False)


@dataclass(frozen=True, kw_only=True)
class SetConfig(LoadConfig):
    """What joins the candidate sets beside the nucleus."""

    protect: Path | None = None
    """A lexicon, one word or phrase a line: its tokens are candidates wherever one may begin or go on, whatever their
    probability; `max_candidates` must hold them."""
    copy_prompt: bool = False
    """Tokens of the prompt are candidates everywhere in the reply."""
    rare_within: int | None = None
    """Tokens that are rare in the training prompts and references are candidates wherever they are among the teacher's
    so many most probable."""


@dataclass(frozen=True)
class RunConfig(SetConfig):
    """What every training run shares."""

    teacher: str = "embedded"
    """"embedded", "table:NAME", a directory, or a hub id; "none" with a store: nothing is measured against it then."""
    store: Path | None = None
    """A store of `tdistill collect` to learn from; none: the teacher walks as the run begins."""
    dtype: str = "float32"
    """Of the products in the student's forwards while it learns: float32, or bfloat16 by autocast; its weights and the
    optimiser's moments are float32."""
    gradient_checkpointing: bool = False
    """Keep nothing of a layer of the student but its input, and run it again for its gradients: less memory."""
    student: str = WARM_START_NAME
    """Where students start: "warm-start", a directory, a hub id, or a size name (tiny, small, …)."""
    warm_start: str = ""
    """Have the student of each seed trained by this agent, as kd, until it stops improving on the validation prompts,
    before any arm begins; none: begin with the student as it is."""
    warm_start_rounds: int = 8
    """Most rounds of `updates` updates of a warm-up."""
    prompts: Path | None = None
    """A .jsonl or text file, a folder that `datasets` can read or OWNER/NAME[:SPLIT] of the hub, split 80/10/10 by
    hash; none: the embedded corpus."""
    prompt_format: str = "prompt"
    """What its records are: "prompt" (with reference, tags and checks), "dolly", "selfinst" or "vicuna"."""
    skip_bad: bool = False
    """Leave broken lines of the prompts file and prompts without room for a reply out instead of refusing them."""
    max_candidates: int = 64
    """Most candidates of a state."""
    max_prompt_tokens: int | None = None
    """Refuse longer prompts; none: the longest prompt sets it."""
    max_new_tokens: int = 64
    """Token budget of a reply; it truncates."""
    reward: str = "logprob"
    """logprob, topp_logprob, induced_hard or induced_soft."""
    gamma: float = 1.0
    """Discount of the agents that look ahead, and of the rewards that need it."""
    episodes: int = 1024
    """Teacher episodes that all agents of a seed share, drawn from its full softmax; a store has its own number.
    Agents that walk by themselves (sb3:…) take as many steps as these, or a budget of teacher tokens, have instead;
    sb3:ppo.steps=N sets another number."""
    targets: str = "teacher"
    """Whose replies these are: "teacher", or "references", those of the prompts, as supervised fine-tuning takes them;
    the teacher still gives their candidates and rewards, and their probability is taken to be its own."""
    teacher_walk: str = "full"
    """What the teacher's episodes are drawn from: "full", its whole softmax, or "set", its candidates renormalised."""
    rules: Path | None = None
    """A rules file (as of `tdistill generate`) that masks the sets while episodes are walked; needs --teacher-walk set.
    It is copied beside the students."""
    rules_potential: float = 0.0
    """Nats of potential for each phrase that the rules ask for: shaping that pays as a phrase is said, and changes no
    optimum. 0: none."""
    updates: int = 300
    """Updates of each agent; with another `budget` the most of them."""
    budget: str = "updates"
    """What every arm may spend alike: updates, teacher_tokens, flops or seconds. Agents that walk by themselves (sb3:…)
    count no flops, and their own schedules follow their steps."""
    budget_size: float = 0.0
    """How much of it; of updates, `updates` says so. A run by seconds is not bit-reproducible."""
    batch_size: int = 16
    """Episodes an update."""
    micro_batch: int = 0
    """Episodes that go through the student at a time; 0: all of a batch. The update is the same, for less memory and
    the time of one more forward; scores over the whole vocabulary, which kd and gkd ask for, are kept all the same."""
    lora: int = 0
    """Rank of low-rank adapters on every linear layer, which learn in place of the weights and are merged into them in
    the end; 0: all weights learn. Needs the extra `lora`."""
    shard: bool = False
    """Spread the student's weights, gradients and moments, and the teacher's weights, over the processes of a launcher
    (FSDP); one process alone spreads nothing. For agents that learn from given episodes and keep no target network, as
    bc and kd do."""
    agent_config: tuple[str, ...] = ()
    """Settings of single agents, in all their arms, as in soft_q.lr=3e-4 or sb3:ppo.n_epochs=4."""
    head: str = "auto"
    """Rows of the student's vocabulary head that are computed while it learns: "all", "candidates" (those of a state's
    episode, and the negatives), or "auto": candidates where these are at most half of the vocabulary."""
    negatives: int = 1024
    """Tokens sampled beside the candidates; from them the log-partition, and so the leak, is estimated. 0: no leak is
    seen, which only agents without a leak term may want."""
    resting_rows: bool = False
    """Let the vocabulary's rows rest that a batch does not touch, where AdamW would move them on by the momentum of
    earlier batches: faster at a wide vocabulary, another optimiser. Agents that walk by themselves (sb3:…) do not."""
    eval_prompts: int = 128
    """Held-out prompts of every measure."""
    eval_every: int = 100
    """Updates between two measures on the validation split."""
    checkpoint_seconds: float = 20.0
    """Time between two checkpoints of a training run."""
    threads: int | None = None
    """CPU threads of a process; none: the cores divided by the jobs."""
    price: float | None = None
    """What an hour of this machine costs, in any currency: results then say what a million tokens cost."""
    out: Path = Path("runs/run")
    """Folder of the run; the same command goes on where it stopped and recomputes nothing."""
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Distil the teacher with one agent and one seed."""

    agent: str = "soft_q"
    """bc, bc_filtered, kd, gkd, minillm, q_learning, soft_q, cql, sqil, actor_critic, ppo, sac, bellman_distill,
    bellman_distill_released, value_tilt, sb3:dqn, sb3:soft_dqn, sb3:a2c, sb3:ppo, sb3:maskable_ppo, or module:Class;
    with settings behind an @, as soft_q@n=3."""
    seed: int = 0
    top_p: float = 0.9
    """Mass of the candidate sets, in (0, 1]."""
    out: Path = Path("runs/distill")


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """Distil the teacher with several agents and seeds on equal terms, and compare what they reach."""

    agents: tuple[str, ...] = ("bc", "kd", "q_learning", "soft_q", "bellman_distill")
    """Agents by name, or as module:Class. sb3:… are Stable-Baselines3's, on the training prompts, for as many teacher
    labels as the others get. An agent stands for several arms with settings of their own behind an @:
    soft_q soft_q@gamma=0 soft_q@shuffle=true,n=3."""
    seeds: int = 2
    """How many seeds, from 0 on; seed k has its own teacher episodes. 0: only search settings, see `trials`."""
    top_p: tuple[float, ...] = (0.9,)
    """One or several masses of the candidate sets, each in (0, 1]."""
    sweep: tuple[str, ...] = ()
    """Settings to compare several values of, in every combination, as in top_p=0.5,0.9 gamma=0,0.9,1: top_p sets the
    masses, any other name makes an arm for each value, as soft_q@gamma=0, of every agent that has this setting."""
    trials: int = 0
    """Settings to try for each arm on the validation prompts, with a seed of its own, the given ones first; 0: none."""
    sampler: str = "grid"
    """Where they come from: "grid", drawn from the few values that an agent declares, or "tpe", sampled from its ranges
    where earlier trials did well (Optuna's tree-structured Parzen estimator). tpe needs the extra `search`."""
    select: str = "forward_kl"
    """The validation measure that a search goes by: forward_kl and leak the lower the better, others the higher."""
    reference: str = ""
    """The arm that the others are compared with, paired by seed; none: the first."""
    jobs: int = 1
    """Worker processes."""
    retries: int = 2
    """How often a cell whose process dies is tried again, from its checkpoint; after that it has failed."""
    ray: str = ""
    """Run the cells on Ray instead: "local", "auto" (the cluster of this machine) or its ADDRESS. All its machines must
    see --out, the prompts and the models under the same paths. Needs the extra `ray`."""
    cell_cpus: float = 1.0
    """CPU cores that Ray sets aside for a cell, and its threads unless --threads says so."""
    cell_gpus: float = 0.0
    """GPUs that Ray sets aside for a cell; a fraction shares one."""
    share: str = ""
    """A path or URL that other machines with the same command share, by fsspec: each cell is run by one of them, and
    its results are taken over by all. Credentials belong into the backend's own settings."""
    resume: bool = False
    """Go on with a run that was begun before, and refuse a folder that holds none; without it either is taken."""
    out: Path = Path("runs/compare")


@dataclass(frozen=True)
class EvaluateConfig(SetConfig):
    """Measure a student (or a teacher) directory on held-out prompts."""

    student: str
    """A directory or a hub id."""
    teacher: str = "embedded"
    expert: bool = False
    """Measure the student with the expert that lies beside it (`tdistill expert`) mixed in; latency, memory and
    operations a token are those of the student alone."""
    prompts: Path | None = None
    """A .jsonl or text file, or a data set; none: the embedded corpus."""
    prompt_format: str = "prompt"
    """What its records are: prompt, dolly, selfinst or vicuna."""
    prompt_split: str | None = None
    """validation or test, as `compare` splits the file; none: the whole file, or the embedded test split."""
    skip_bad: bool = False
    """Leave broken lines of the prompts file and prompts without room for a reply out instead of refusing them."""
    top_p: float = 0.9
    """Mass of the candidate sets that the leak is measured on."""
    max_candidates: int = 64
    max_new_tokens: int = 64
    eval_prompts: int = 256
    """Use at most that many prompts."""
    price: float | None = None
    """What an hour of this machine costs, in any currency: the figures then say what a million tokens cost."""
    gate: Path | None = None
    """A YAML file of conditions on the figures; the exit code is 1 if one of them is not met."""
    junit: Path | None = None
    """With a gate: write its conditions and the critical cases to this file as JUnit XML."""
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass(frozen=True)
class GenerateConfig(LoadConfig):
    """Talk to a student side by side with the teacher."""

    student: str
    """A directory or a hub id."""
    teacher: str = "embedded"
    prompt: tuple[str, ...] = ()
    """Answer these and stop; none: read prompts from the terminal."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    max_new_tokens: int = 96
    seed: int = 0
    expert: bool = False
    """Mix in the expert that lies beside the student (`tdistill expert`)."""
    rules: str = "beside"
    """Phrases that the student's replies must or must not say: a YAML file; "beside": rules.yaml in its directory, if
    there is one; "none"."""


C = TypeVar("C", bound="DataclassInstance")


def from_mapping(kind: type[C], values: Mapping[str, Any], source: str) -> C:
    """A config from YAML's plain values; lists become tuples, strings paths where the field wants them.

    Raises: InputError: a key that the config does not have, or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    converted = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{source}: {kind.__name__} has no setting {key!r}{hint}")
        converted[key] = _converted(hints[key], value, f"{source}: {key}")
    return kind(**converted)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises: InputError: no such file, or no mapping in it.
    """
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise InputError(f"settings file {str(path)!r} does not exist (presets: {known})")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of settings, not {type(values).__name__}")
    return values


def dump(config: Any) -> str:
    """A config as YAML; `from_mapping` reads it back to an equal one."""
    return yaml.safe_dump({key: plain(value) for key, value in asdict(config).items()}, sort_keys=False)


def _converted(hint: Any, value: Any, who: str) -> Any:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_converted(choices[0], item, who) for item in items)
    kinds = choices or (hint,)
    if value is None and type(None) in kinds:
        return None
    if Path in kinds and isinstance(value, (str, Path)):
        return Path(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise InputError(f"{who} is {value!r}; it must be {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def plain(value: Any) -> Any:
    """A setting as YAML has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
