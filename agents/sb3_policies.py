"""The same Hugging Face student inside Stable-Baselines3: its logits at the candidates' token ids, its value head.

Slots are not actions with a meaning of their own: slot 0 is another token in every state. So no policy here has a head
over slots; the student scores its vocabulary and is read at the ids of the observation's candidates. The observation
reaches it as it is: Stable-Baselines3's preprocessing (floats, one-hot lengths, flattening) is left out.

Nothing in these losses sees tokens outside the candidates: the student's leak is measured, not held.
Symbols: N states, K slots, L context; values in nats.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents import objectives
from agents.errors import InputError
from agents.loading import load_tokenizer
from agents.scores import renormalised
from agents.student import Student

try:
    from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from stable_baselines3.common.distributions import CategoricalDistribution
    from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
    from stable_baselines3.dqn.policies import DQNPolicy
except ImportError as error:
    raise InputError(
        f"students inside Stable-Baselines3 need it and sb3-contrib: pip install tdistill[sb3] ({error})"
    ) from error

PADDING = -1e8
"""Logit and Q of a slot without a candidate: finite, and nothing beside any other."""
KEYS = ("context", "length", "ids", "mask")
Observation = dict[str, Tensor]


class StudentSpec:
    """A student for `policy_kwargs`, which Stable-Baselines3 pickles into its zip files.

    Until it is pickled it hands out the student itself, which is trained in place. The pickle holds how to make an
    empty one (model class, configuration, tokenizer files) and no weights: those are in the zip's state dicts. What is
    made from a pickle is all NaN until they are loaded, so that nobody trains it by mistake.

    Args:
        student: the student, or the directory of one.
    Raises: InputError: no student in that directory.
    """

    def __init__(self, student: Student | str | Path) -> None:
        self._student: Student | None = student if isinstance(student, Student) else Student.load(student)
        self._recipe: dict[str, Any] | None = None

    def build(self) -> Student:
        """The student given; of an unpickled spec, a new one without weights."""
        return self._student if self._student is not None else _empty(self.recipe())

    def recipe(self) -> dict[str, Any]:
        """What an empty student is made from."""
        if self._recipe is None:
            assert self._student is not None
            self._recipe = _recipe(self._student)
        return self._recipe

    def __getstate__(self) -> dict[str, Any]:
        return {"_student": None, "_recipe": self.recipe()}

    def __copy__(self) -> StudentSpec:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> StudentSpec:
        twin = object.__new__(StudentSpec)
        twin._student, twin._recipe = copy.deepcopy(self._student, memo), self._recipe
        return twin


def _recipe(student: Student) -> dict[str, Any]:
    model, files = student.model, dict[str, bytes]()
    if student.tokenizer is not None:
        with tempfile.TemporaryDirectory() as folder:
            student.tokenizer.save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    own = getattr(model, "generation_config", None)
    generation = None if own is None else (type(own), own.to_dict())
    config = type(model.config), model.config.to_dict()
    return {"model": type(model), "config": config, "generation": generation, "tokenizer": files}


def _empty(recipe: dict[str, Any]) -> Student:
    kind, settings = recipe["config"]
    with torch.random.fork_rng(devices=[]):
        model = recipe["model"](kind.from_dict(dict(settings)))
    if recipe["generation"] is not None:
        kind, settings = recipe["generation"]
        model.generation_config = kind.from_dict(dict(settings))
    tokenizer = None
    if recipe["tokenizer"]:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in recipe["tokenizer"].items():
                (Path(folder) / name).write_bytes(content)
            tokenizer = load_tokenizer(folder)
    student = Student(model, tokenizer)
    with torch.no_grad():
        for value in student.parameters():
            value.fill_(torch.nan)
    return student


def read(observation: Observation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Context (N, L) int64, length (N,) int64, ids (N, K) int64 and mask (N, K) bool of an observation."""
    context, length, ids, mask = (observation[key] for key in KEYS)
    return context.long(), length.long().reshape(-1), ids.long(), mask.bool()


def built(student: Any, observation_space: Any, action_space: Any) -> Student:
    """The student of a policy, for spaces that it can serve.

    Raises: InputError: no `StudentSpec`, or spaces that are not those of the token MDP.
    """
    if not isinstance(student, StudentSpec):
        raise InputError(
            f'policy_kwargs["student"] is a {type(student).__name__}; give StudentSpec(student) or '
            "StudentSpec(directory), of which a saved model keeps the shape and not a second copy of the weights"
        )
    known = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
    if missing := [key for key in KEYS if key not in known]:
        raise InputError(f"the observation has no {', '.join(missing)}; a student reads the Dict of envs.TopPVecEnv")
    slots = known["ids"].shape
    if not isinstance(action_space, spaces.Discrete) or slots != (int(action_space.n),):
        raise InputError(f"{action_space} is not one action a candidate; the observation has ids of shape {slots}")
    return student.build()


class HeadFirst(torch.optim.Adam):
    """Adam whose parameter groups have a rate of their own, `scale` times the one that is set from outside.

    Stable-Baselines3 sets one rate for all groups. A value head begins at 0 and has nats to go, which at the rate of a
    cloned trunk takes longer than a run.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group.get("scale", 1.0)
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


def optimiser_of(student: Student, kind: Any, rate: float, head_scale: float, settings: dict[str, Any]) -> Any:
    """An optimiser of a student; its value head learns `head_scale` times as fast, where `kind` knows of it."""
    head = list(student.value_head.parameters())
    groups = [{"params": list(student.model.parameters())}, {"params": head, "scale": head_scale}]
    return kind(groups, lr=rate, **settings)


class _StudentPolicy(BasePolicy):
    """What the policies share: the constructor's arguments, and how they are saved."""

    def _take(self, student: Any, lr_schedule: Any, head_scale: float) -> Student:
        """Keep what a saved policy is made from, and build the student."""
        if head_scale <= 0:
            raise InputError(f"head_scale is {head_scale}; it must be positive")
        self.spec, self.head_scale = student, head_scale
        return built(student, self.observation_space, self.action_space)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"observation_space": self.observation_space, "action_space": self.action_space}
        kwargs = {"optimizer_class": self.optimizer_class, "optimizer_kwargs": self.optimizer_kwargs}
        named = {"lr_schedule": self._dummy_schedule, "student": self.spec, "head_scale": self.head_scale}
        return {**own, **kwargs, **named}


class _ActorCritic(_StudentPolicy):
    """π(k|s) ∝ exp z(s, ids_k) on the candidates, V(s) = v(s); both of one forward."""

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        lr_schedule: Any,
        use_sde: bool = False,
        *,
        student: StudentSpec,
        head_scale: float = 30.0,
        shared_trunk: bool = False,
        optimizer_class: Any = HeadFirst,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if use_sde:
            raise InputError("use_sde is for continuous actions; candidates are discrete")
        # The constructors between build networks over a flattened observation.
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            normalize_images=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.use_sde, self.shared_trunk = False, shared_trunk
        self.student = self._take(student, lr_schedule, head_scale)
        self.optimizer = optimiser_of(
            self.student, self.optimizer_class, lr_schedule(1), head_scale, self.optimizer_kwargs
        )

    def _distribution(self, logits: Tensor) -> Any:
        return CategoricalDistribution(int(self.action_space.n)).proba_distribution(action_logits=logits)

    def scores(self, obs: Observation) -> tuple[Tensor, Tensor]:
        """Logits at the candidates' ids, PADDING off them, and v(s).  # (N, K), (N,)"""
        context, length, ids, mask = read(obs)
        logits, value = self.student.at_ids(context, length, ids, detach=not self.shared_trunk)
        return torch.where(mask, logits, PADDING), value

    def forward(
        self, obs: Observation, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Slots (N,), values (N, 1) and log-probabilities (N,)."""
        logits, value = self.scores(obs)
        distribution = _masked(self._distribution(logits), action_masks)
        slots = distribution.get_actions(deterministic=deterministic)
        return slots, value[:, None], distribution.log_prob(slots)

    def evaluate_actions(
        self, obs: Observation, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values (N, 1), log-probabilities of the slots (N,), and entropies on the candidates (N,)."""
        logits, value = self.scores(obs)
        distribution = _masked(self._distribution(logits), action_masks)
        return value[:, None], distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Observation, action_masks: Any = None) -> Any:
        """The distribution over slots."""
        return _masked(self._distribution(self.scores(obs)[0]), action_masks)

    def predict_values(self, obs: Observation) -> Tensor:
        """v(s), the vocabulary head left out.  # (N, 1)"""
        return self.student.value_of(obs["context"].long(), obs["length"].long().reshape(-1))[:, None]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "shared_trunk": self.shared_trunk}


def _masked(distribution: Any, action_masks: Any) -> Any:
    """The observation's own mask is in the logits; masks from outside can only take more away."""
    if action_masks is not None:
        distribution.apply_masking(action_masks)
    return distribution


class StudentActorCriticPolicy(_ActorCritic, ActorCriticPolicy):
    """The student as the policy of A2C and PPO; the observation's own `mask` is what masks it.

    Args (of `policy_kwargs`):
        student:      a `StudentSpec`; trained in place.
        head_scale:   how many times faster the value head learns.
        shared_trunk: whether the values' errors reach the trunk; they are many nats at first, and undo a clone.
    Raises: InputError: no `StudentSpec`, another observation than the token MDP's, or use_sde.
    """


class MaskableStudentActorCriticPolicy(_ActorCritic, MaskableActorCriticPolicy):
    """The student as the policy of sb3-contrib's MaskablePPO; right without `action_masks` too.

    Args and Raises: as `StudentActorCriticPolicy`.
    """

    def _distribution(self, logits: Tensor) -> Any:
        return MaskableCategoricalDistribution(int(self.action_space.n)).proba_distribution(action_logits=logits)


class StudentQNetwork(nn.Module):
    """Q(s, k) = v(s) + α log π_S^A(k|s) of a student, PADDING off the candidates (equation 6)."""

    def __init__(self, student: Student, alpha: float) -> None:
        super().__init__()
        self.student, self.alpha = student, alpha

    def forward(self, obs: Observation) -> Tensor:
        """(N, K)"""
        context, length, ids, mask = read(obs)
        logits, value = self.student.at_ids(context, length, ids)
        q = objectives.levelled_q(value, renormalised(logits, mask)[0], self.alpha)
        return torch.where(mask, q, PADDING)

    def set_training_mode(self, mode: bool) -> None:
        """There is no dropout to turn on."""


class StudentQPolicy(_StudentPolicy, DQNPolicy):
    """The student as the policy of DQN, `MaskableDQN` and `SoftDQN`; the target network is a frozen copy.

        Q(s, k) = v(s) + α log π_S^A(k|s)

    Source: equation (6) of the design: a cloned student's arbitrary level is no error to be unlearned.
    Args (of `policy_kwargs`):
        student:    a `StudentSpec`; trained in place.
        alpha:      temperature > 0 of Q, nats; that of `SoftDQN`.
        head_scale: how many times faster the value head learns.
    Raises: InputError: no `StudentSpec`, another observation than the token MDP's, or a setting out of range.
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        lr_schedule: Any,
        *,
        student: StudentSpec,
        alpha: float = 1.0,
        head_scale: float = 30.0,
        optimizer_class: Any = HeadFirst,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if alpha <= 0:
            raise InputError(f"alpha is {alpha}; it must be positive")
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            normalize_images=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        online = self._take(student, lr_schedule, head_scale)
        self.alpha = alpha
        self.q_net = StudentQNetwork(online, alpha)
        self.q_net_target = StudentQNetwork(online.copy(), alpha)
        self.optimizer = optimiser_of(online, self.optimizer_class, lr_schedule(1), head_scale, self.optimizer_kwargs)

    @property
    def student(self) -> Student:
        """The student that learns."""
        return self.q_net.student

    def _predict(self, obs: Observation, deterministic: bool = True) -> Tensor:
        """The best candidate's slot.  # (N,)"""
        best: Tensor = self.q_net(obs).argmax(1)
        return best

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "alpha": self.alpha}


def export(model: Any, directory: str | Path, card: dict[str, object] | None = None) -> None:
    """Write the student of a Stable-Baselines3 model as a plain Hugging Face directory.

    Raises: InputError: the model's policy is no student.
    """
    student = getattr(model.policy, "student", None)
    if not isinstance(student, Student):
        raise InputError(f"the policy is a {type(model.policy).__name__}; only a student's policy is exported")
    student.save(directory, card)
