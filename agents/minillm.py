"""MiniLLM: the reverse KL between whole texts, by policy gradient with its single step taken exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from agents import objectives
from agents.base import Agent, FixedPoint, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.search import Range, Search
from agents.walks import WalkConfig


@dataclass(frozen=True)
class MiniLLMConfig(WalkConfig):
    """Settings of `minillm`."""

    teacher_mix: float = 0.2
    """Share of the teacher in the mixture that each token of a walk is drawn from: α of the paper."""
    length_norm: bool = True
    """Reward per token that follows, not their sum."""
    ratio_clip: float = 0.2
    """ε by which an importance weight may leave 1; ∞ for any weight."""

    SEARCH: ClassVar[Search] = {**WalkConfig.SEARCH, "teacher_mix": Range(0.0, 0.5)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "ratio_clip", self.ratio_clip > 0, "must be positive")


class MiniLLM(Agent[MiniLLMConfig]):
    """KL(π_S‖π_T) at every state walked to, and a policy gradient for what the token taken there leads to.

        ∇ E_S[log P_S − log P_T] = E_S Σ_t [ ∇ KL(π_S(·|s_t)‖π_T(·|s_t)) − R_{t+1} ∇ log π_S(a_t|s_t) ]

    R_{t+1} = Σ_{t'>t} log π_T/π_S of the tokens that follow. Walks come from the mixture of teacher and student; the
    weight of a token is π_S/b of that token alone, the paper's truncation of the product, and PPO clips it. Over more
    than one step that is biased, as is the length norm; so no fixed point is declared.

    Source: Gu et al. (2024), arXiv:2306.08543, section 2.2; its code (microsoft/LMOps) for the clip of ratio and weight
    together. Departures: R_{t+1} leaves out the token's own reward, as in the paper (the code has R_t); it is not
    whitened, as in the paper (the code does, which keeps the future loud however near the teacher is: on a table it
    ends far off); the single-step part carries no importance weight, as in the code (its mean is 1); the mean is over
    steps; no language-model loss on other text; rewards are neither scaled nor clipped.
    """

    name: ClassVar[str] = "minillm"
    Config: ClassVar[type[MiniLLMConfig]] = MiniLLMConfig
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "student"
    identity: ClassVar[str | None] = (
        "with every two-step walk, and neither norm nor clip, its gradient is that of the reverse KL between texts"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher_logits"})

    @property
    def depends_on_top_p(self) -> bool:
        return False

    @property
    def fixed_point(self) -> FixedPoint | None:
        return None

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        weights = batch.step_weights
        scores = self.student.scores(batch, full=True)
        assert batch.teacher_logp is not None and scores.logp is not None
        teacher, policy, inside = objectives.shared_vocabulary(batch.teacher_logp, scores.logp[:, :-1])
        single = average(objectives.reverse_kl(teacher, policy) - inside, weights)
        later, long = self.future(batch, scores.logp_taken)
        logs = {
            "reverse_kl": single,
            "later_reward": average(later, weights),
            "log_inside": average(scores.log_inside[:, :-1], weights),
        }
        return single + long, logs

    def future(self, batch: Episodes, logp_taken: Tensor) -> tuple[Tensor, Tensor]:
        """R_{t+1} (B, T), and the policy gradient of it as a scalar loss."""
        config, weights = self.config, batch.step_weights
        rewards = batch.teacher_logp_taken - logp_taken.detach()
        later = objectives.later_rewards(rewards, batch.steps, config.length_norm)
        loss = objectives.clipped_importance(logp_taken, batch.behaviour_logp, later, config.ratio_clip)
        return later, average(loss, weights)
