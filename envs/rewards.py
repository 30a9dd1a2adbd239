"""Equation (2): what a step pays. A registry of names; a function that scores a finished reply is accepted as well."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from envs.candidates import Candidates
from envs.errors import InputError
from envs.teachers import nearest

Score: TypeAlias = Callable[[str, str], float]  # (prompt text, reply text) -> what the whole reply is worth


class Step(NamedTuple):
    """What N rows did in one step of the vector env; rows that did not act may hold anything finite."""

    taken_logp: Tensor  # (N,) float32, nats, log π_T(a|s) of the full softmax, inside the set or not; ≥ PAD_LOGP
    log_mass: Tensor  # (N,) float32, nats, log Z(s) of the state the token was taken in
    terminated: Tensor  # (N,) bool, the token ended the text
    truncated: Tensor  # (N,) bool, the budget or the context ended the episode; never together with `terminated`
    after: Candidates | None = None  # (N, K), the candidates of the state reached; only if `needs_next`
    texts: Callable[[int], tuple[str, str]] | None = None  # row -> (prompt, reply); only if `needs_text`


class Reward(ABC):
    """A reward of equation (2): what it needs, and what N steps pay."""

    name: str
    per_candidate = False  # known for every candidate of a state, not just for the token taken
    needs_next = False  # reads `Step.after`
    needs_text = False  # reads `Step.texts` of rows that end

    @abstractmethod
    def __call__(self, step: Step) -> Tensor:
        """What each row is paid, (N,) float32; nats where the reward is a log-probability."""


class LogProb(Reward):
    """The teacher's log-probability: its soft optimum is the teacher conditioned on staying inside (γ = 1).

        r(s, a) = log π_T(a|s)

    Source: equation (2), `logprob`; the maximum-entropy view of the KL divergence, identities (4).
    """

    name = "logprob"
    per_candidate = True

    def __call__(self, step: Step) -> Tensor:
        return step.taken_logp.float()


class TopPLogProb(Reward):
    """The log-probability renormalised on the set: V* ≡ 0 at α = 1, so TD has nothing to propagate.

        r(s, a) = log π_T(a|s) − log Z(s)

    Source: equation (2), `topp_logprob`; the control arm.
    """

    name = "topp_logprob"
    per_candidate = True

    def __call__(self, step: Step) -> Tensor:
        return (step.taken_logp - step.log_mass).float()


class Induced(Reward):
    """The reward for which the teacher's scores f are already the optimal Q: the inverse Bellman equation.

        hard: r(s, a) = f(s, a) − γ max_{a' ∈ A_p(s')} f(s', a')
        soft: r(s, a) = f(s, a) − γ α log Σ_{a' ∈ A_p(s')} exp(f(s', a') / α)          s' = s·a; nothing after EOS

    f = log π_T: the teacher's logits up to a level per state. On the set Q* = f for the γ (and α) given here: they must
    equal the learner's. At p = 1, α = 1 the soft one is `logprob` itself.

    Source: equation (2); hard: Hao et al., LLMR (arXiv:2409.12500); soft: the inverse of equation (3).
    """

    needs_next = True

    def __init__(self, gamma: float, alpha: float, *, soft: bool) -> None:
        self.name = "induced_soft" if soft else "induced_hard"
        self.gamma, self.alpha, self.soft = gamma, alpha, soft

    def __call__(self, step: Step) -> Tensor:
        assert step.after is not None, "this reward reads the state reached: needs_next"
        scores = step.after.logp.masked_fill(~step.after.mask, -torch.inf)  # (N, K)
        value = self.alpha * torch.logsumexp(scores / self.alpha, -1) if self.soft else scores.max(-1).values  # (N,)
        # Where, never a product: a text that ended has no candidates, a value of −∞.
        value = torch.where(step.terminated, 0.0, value)
        return (step.taken_logp - self.gamma * value).float()


class Sqil(Reward):
    """Soft Q imitation: the student's own steps pay 0; whoever lets the teacher walk pays its steps 1 instead.

        r = 1 on teacher transitions, 0 on student transitions

    Not a function of (s, a): it has no exact optimum, and since every teacher step pays it favours long texts (survival
    bias). An env is stepped by a student, so it pays 0; `teacher_step` is what a collector writes over it.

    Source: equation (2), `sqil`; Reddy et al. (2020), arXiv:1905.11108.
    """

    name = "sqil"
    teacher_step = 1.0

    def __call__(self, step: Step) -> Tensor:
        return torch.zeros_like(step.taken_logp, dtype=torch.float32)


class Terminal(Reward):
    """A score of the whole reply, paid with its last step, whether the text terminated or was truncated.

        r_t = score(prompt, reply) at the last step, 0 before

    Source: equation (2), `terminal`.
    Raises (when called): InputError: the score of a reply is not a finite number.
    """

    name = "terminal"
    needs_text = True

    def __init__(self, score: Score) -> None:
        self.score = score

    def __call__(self, step: Step) -> Tensor:
        assert step.texts is not None, "this reward reads the reply: needs_text"
        paid = torch.zeros_like(step.taken_logp, dtype=torch.float32)  # (N,)
        for row in (step.terminated | step.truncated).nonzero()[:, 0].tolist():
            prompt, reply = step.texts(row)
            worth = float(self.score(prompt, reply))
            if not math.isfinite(worth):
                raise InputError(f"the reward scored the reply {reply[:60]!r} as {worth}; return a finite number")
            paid[row] = worth
        return paid


NAMES: dict[str, Callable[[float, float], Reward]] = {
    "logprob": lambda gamma, alpha: LogProb(),
    "topp_logprob": lambda gamma, alpha: TopPLogProb(),
    "induced_hard": lambda gamma, alpha: Induced(gamma, alpha, soft=False),
    "induced_soft": lambda gamma, alpha: Induced(gamma, alpha, soft=True),
    "sqil": lambda gamma, alpha: Sqil(),
}


def make_reward(reward: str | Reward | Score, gamma: float = 1.0, alpha: float = 1.0) -> Reward:
    """A reward by name, from a function that scores a reply (`terminal`), or a `Reward` as it is.

    Args:
        reward: one of `NAMES`; a function (prompt text, reply text) -> float; or a `Reward`.
        gamma: the learner's discount, in [0, 1]; read by the induced rewards.
        alpha: the learner's entropy temperature > 0; read by `induced_soft`.
    Raises: InputError: an unknown name (the nearest one is given), gamma or alpha out of range.
    >>> make_reward("induced_soft", gamma=0.9).needs_next
    True
    """
    if not 0.0 <= gamma <= 1.0:
        raise InputError(f"gamma = {gamma} is outside [0, 1]; 0.99 is a usual value")
    if not alpha > 0.0:
        raise InputError(f"alpha = {alpha} is not above 0; 1 is the teacher's own temperature")
    if isinstance(reward, str):
        if reward == "terminal":
            raise InputError(
                "reward 'terminal' needs the score itself: pass a function of (prompt, reply) in place of the name"
            )
        if reward not in NAMES:
            raise InputError(f"reward {reward!r} does not exist{nearest(reward, {**NAMES, 'terminal': None})}")
        return NAMES[reward](gamma, alpha)
    if isinstance(reward, Reward):
        return reward
    if not callable(reward):
        raise InputError(f"{type(reward).__name__} is no reward; give a name or a function of (prompt, reply)")
    return Terminal(reward)
