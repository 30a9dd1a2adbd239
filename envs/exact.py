"""Equations (3)-(6) solved on table teachers, numpy float64: the oracles of the agents and of the identities (4).

Written apart from the learners' objectives on purpose: the two share no code, so that neither can hide the other's
mistakes. Two problems are solved, and each function says which:

*infinite horizon*: the n-gram states of a `TableTeacher`, EOS ends a text (value 0 after it), nothing else does:
    `solve`, `teacher_visits`. A learner that bootstraps where its episodes are truncated approaches these.
*finite horizon*: the same, ended with value 0 after H more tokens: `solve_finite`, `stay_probability`.

All values are in nats; S states, V tokens, H steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from envs import exact_conservative
from envs.errors import InputError
from envs.exact_chi2 import Transitions, maximise_chi2
from envs.table_teacher import TableTeacher
from envs.teachers import nearest

Array: TypeAlias = NDArray[np.float64]
TARGETS = ("teacher", "renormalised", "conditioned", "hard", "soft", "conservative", "chi2")
REWARDS = ("logprob", "topp_logprob", "induced_hard", "induced_soft")
SWEEPS = 1000  # between two looks at whether the values still settle


@dataclass(frozen=True)
class Solution:
    """A fixed point; with a horizon every array but `candidates` has a leading axis of steps left, 0 to H."""

    policy: Array  # (S, V), 0 outside the set; NaN in states that `chi2` data never visit
    q: Array  # (S, V) nats, NaN outside the set
    value: Array  # (S,) nats
    candidates: NDArray[np.bool_]  # (S, V), A_p(s) without tokens of probability 0
    horizon: int | None = None  # H, or None: infinite


def candidate_sets(probabilities: Array, top_p: float) -> NDArray[np.bool_]:
    """Equation (1) on a table: the shortest most-probable prefix of mass ≥ p (ties: lower id first), (S, V) bool.

    Raises: InputError: top_p outside (0, 1].
    >>> candidate_sets(np.array([[0.2, 0.5, 0.3]]), 0.6)
    array([[False,  True,  True]])
    """
    if not 0.0 < top_p <= 1.0:
        raise InputError(f"top_p = {top_p} is outside (0, 1]; 0.9 is a usual value, 1 keeps the whole vocabulary")
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, 1)
    before = np.cumsum(ranked, 1) - ranked  # mass of the tokens ranked higher
    kept = np.ones_like(ranked, bool) if top_p == 1.0 else (before < top_p) & (ranked > 0)
    mask = np.zeros_like(kept)
    np.put_along_axis(mask, order, kept, 1)
    return mask


class _Mdp:
    """A table teacher's top-p token MDP as arrays."""

    def __init__(self, teacher: TableTeacher, top_p: float, extra: NDArray[np.bool_] | None = None) -> None:
        self.logp: Array = teacher.table  # (S, V)
        sets = candidate_sets(teacher.probabilities, top_p)
        # At p = 1 the whole vocabulary is in the set; a token of probability 0 pays −∞ and is never taken.
        self.mask = (sets if extra is None else sets | extra) & (teacher.probabilities > 0)
        self.after = teacher.successors()  # (S, V)
        self.goes_on = ~np.isin(np.arange(teacher.vocab_size), sorted(teacher.eos_ids))  # (V,)
        self.inside = np.where(self.mask, teacher.probabilities, 0.0)  # π_T on the set
        self.log_mass: Array = np.log(self.inside.sum(1))  # log Z(s)

    def ahead(self, value: Array) -> Array:
        """V_p(s·a), (S, V); V_p(terminal) = 0."""
        following: Array = np.where(self.goes_on, value[self.after], 0.0)
        return following

    def best(self, q: Array, alpha: float, hard: bool) -> Array:
        """V_p(s) of equation (3), (S,): the soft maximum over the set, or the hard one."""
        scores = np.where(self.mask, q, -np.inf)
        top: Array = scores.max(1)
        soft: Array = top + alpha * np.log(np.exp((scores - top[:, None]) / alpha).sum(1))
        return top if hard else soft

    def policy(self, q: Array, alpha: float, hard: bool) -> Array:
        """π_Q ∝ exp(Q/α) on the set, or the greedy action (ties: lower id)."""
        scores = np.where(self.mask, q, -np.inf)
        if hard:
            greedy: Array = np.eye(scores.shape[1])[scores.argmax(1)]
            return greedy
        weights = np.exp((scores - scores.max(1, keepdims=True)) / alpha)
        shares: Array = weights / weights.sum(1, keepdims=True)
        return shares

    def stays(self) -> tuple[Array, Array]:
        """Chain of the teacher inside the sets: to each next state (S, S), and to the end of the text (S,)."""
        states = len(self.logp)
        chain = np.zeros((states, states))
        rows, tokens = np.nonzero(self.mask & self.goes_on)
        np.add.at(chain, (rows, self.after[rows, tokens]), self.inside[rows, tokens])
        return chain, self.inside[:, ~self.goes_on].sum(1)

    def rewards(self, reward: str | Array, gamma: float, alpha: float) -> Array:
        """Equation (2) for every pair, (S, V); an array is taken as it is."""
        if not isinstance(reward, str):
            return reward
        if reward not in REWARDS:
            raise InputError(f"reward {reward!r} has no exact solution{nearest(reward, REWARDS)}")
        if reward == "logprob":
            return self.logp
        if reward == "topp_logprob":
            return self.logp - self.log_mass[:, None]
        return self.logp - gamma * self.ahead(self.best(self.logp, alpha, reward == "induced_hard"))

    def check_that_texts_end(self) -> None:
        """Raises: InputError: from some state no text ends inside the sets."""
        can_end = np.zeros(len(self.logp), bool)
        for _ in range(len(can_end)):
            can_end[(self.mask & (~self.goes_on | can_end[self.after])).any(1)] = True
        if not can_end.all():
            raise InputError(
                f"from state {int((~can_end).argmax())} no text ends inside the sets, so that the values at γ = 1 are "
                "not finite; take gamma below 1 or a larger top_p"
            )

    def solution(self, q: Array, value: Array, alpha: float, hard: bool = False) -> Solution:
        return Solution(self.policy(q, alpha, hard), np.where(self.mask, q, np.nan), value, self.mask)


def solve(
    teacher: TableTeacher,
    target: str,
    *,
    top_p: float = 1.0,
    gamma: float = 1.0,
    alpha: float = 1.0,
    c: float = np.inf,
    weight: float = 0.0,
    reward: str | Array = "logprob",
    visits: Array | None = None,
    extra: NDArray[np.bool_] | None = None,
) -> Solution:
    """The fixed point of a learner on a table teacher; infinite horizon.

        teacher       π_T over the whole vocabulary (top_p does not apply)
        renormalised  π_T^A(a|s) = π_T(a|s) / Z(s)
        conditioned   π_T(a|s) P(stays inside from s·a) / P(stays inside from s), from linear equations
        hard          greedy in Q = r + γ max_{A_p} Q(s', ·)
        soft          exp(Q/α) on the set, Q = r + γ V_p(s'): equation (3)
        conservative  `soft` with the penalty of conservative Q-learning on teacher data: see `exact_conservative`
        chi2          the optimum of equation (5): see `exact_chi2.maximise_chi2`

    Source: equations (1)-(6) of the design.
    Args:
        top_p: p of equation (1), in (0, 1].
        gamma: discount, in [0, 1]; read by hard, soft, conservative, chi2.
        alpha: entropy temperature > 0; read by soft, conservative, chi2.
        c: width of φ(x) = x − x²/(4c) in equation (5), > 0; read by chi2.
        weight: of the conservative penalty, ≥ 0 nats; read by conservative.
        reward: one of `REWARDS`, or (S, V) nats; read by hard, soft, conservative.
        visits: what the data of `chi2` hold, up to scale: (S,) how often each state is met by teacher walks, or (S, V)
            how often each token was taken in each state.
        extra: (S, V) tokens that join the nuclei, as `envs.extras` has them join; not read by teacher. None adds none.
    Raises: InputError: an unknown target or reward, a parameter out of range, or values that do not exist (at γ = 1 a
        state from which no text ends inside the sets).
    """
    if target not in TARGETS:
        raise InputError(f"target {target!r} is not known{nearest(target, TARGETS)}")
    _check(gamma, alpha, c, weight)
    if target == "teacher":
        mdp = _Mdp(teacher, 1.0)
        return mdp.solution(mdp.logp, np.zeros(len(mdp.logp)), 1.0)
    mdp = _Mdp(teacher, top_p, extra)
    if target == "renormalised":
        return mdp.solution(mdp.logp - mdp.log_mass[:, None], np.zeros(len(mdp.logp)), 1.0)
    if target == "conditioned":
        chain, ends = mdp.stays()
        mdp.check_that_texts_end()
        stay = np.linalg.solve(np.eye(len(ends)) - chain, ends)
        return mdp.solution(mdp.logp + mdp.ahead(np.log(stay)), np.log(stay), 1.0)
    if target == "chi2":
        return _chi2(mdp, gamma, alpha, c, visits)
    if gamma == 1.0:
        mdp.check_that_texts_end()
    pays = mdp.rewards(reward, gamma, alpha)
    if target == "conservative":
        return _conservative(mdp, pays, gamma, alpha, weight)
    q, value = _iterate(mdp, pays, gamma, lambda q: mdp.best(q, alpha, target == "hard"))
    return mdp.solution(q, value, alpha, target == "hard")


def solve_finite(
    teacher: TableTeacher,
    *,
    horizon: int,
    top_p: float = 1.0,
    gamma: float = 1.0,
    alpha: float = 1.0,
    hard: bool = False,
    reward: str | Array = "logprob",
    extra: NDArray[np.bool_] | None = None,
) -> Solution:
    """Equation (3) with H tokens left and value 0 after them; finite horizon: the problem of the identities (4).

        V_0 = 0,   Q_h(s, a) = r(s, a) + γ V_{h−1}(s·a),   V_h(s) = soft or hard maximum of Q_h over the set

    Source: equation (3) of the design, by backward induction.

    Args: as `solve`; `hard` takes the maximum in place of the soft one.
    Returns: Solution with arrays (H + 1, S, V) and (H + 1, S); index = steps left; at 0 the policy is 0, q NaN.
    Raises: InputError: as `solve`; horizon below 1.
    """
    _check(gamma, alpha)
    if horizon < 1:
        raise InputError(f"horizon = {horizon} is below 1; give the number of tokens a text may have")
    mdp = _Mdp(teacher, top_p, extra)
    pays = mdp.rewards(reward, gamma, alpha)
    value = np.zeros((horizon + 1, len(pays)))
    q = np.full((horizon + 1, *pays.shape), np.nan)
    policy = np.zeros_like(q)
    for left in range(1, horizon + 1):
        scores = pays + gamma * mdp.ahead(value[left - 1])
        value[left] = mdp.best(scores, alpha, hard)
        policy[left] = mdp.policy(scores, alpha, hard)
        q[left] = np.where(mdp.mask, scores, np.nan)
    return Solution(policy, q, value, mdp.mask, horizon)


def stay_probability(teacher: TableTeacher, top_p: float, horizon: int) -> Array:
    """P_T(the teacher's next tokens all lie in the sets), (H + 1, S): from each state, for 0 to H tokens.

        P_0 = 1,   P_h(s) = Σ_{a ∈ A_p(s)} π_T(a|s) P_{h−1}(s·a),   1 after EOS

    Source: the right-hand side of identity (4b); finite horizon.
    Raises: InputError: top_p outside (0, 1].
    """
    chain, ends = _Mdp(teacher, top_p).stays()
    stay = np.ones((horizon + 1, len(ends)))
    for left in range(1, horizon + 1):
        stay[left] = chain @ stay[left - 1] + ends
    return stay


def teacher_visits(
    teacher: TableTeacher, prompts: Sequence[Sequence[int]], top_p: float = 1.0, *, horizon: int | None = None
) -> Array:
    """How often a teacher walk meets each state before it ends or leaves the sets, (S,), a mean over the prompts.

        d(s') = μ₀(s') + Σ_s Σ_{a ∈ A_p(s): s·a = s'} d(s) π_T(a|s)

    The walk is cut where the token taken lies outside the set: the state in which it was taken counts, what follows
    does not. top_p = 1 gives the visits of whole walks, for data that are masked at such tokens but not cut.

    Source: own derivation; the data distribution of equation (5). Infinite horizon; with `horizon`, the states in
    which the first H tokens are taken.
    Args:
        prompts: token ids of the texts that walks begin from, equally often.
    Raises: InputError: no prompts; top_p outside (0, 1].
    """
    if not prompts:
        raise InputError("0 prompts start no walk; give at least 1")
    chain, _ = _Mdp(teacher, top_p).stays()
    start = np.bincount([teacher.state_of(prompt) for prompt in prompts], minlength=len(chain)) / len(prompts)
    if horizon is None:
        return np.asarray(np.linalg.solve(np.eye(len(chain)) - chain.T, start), np.float64)
    total, now = np.zeros(len(chain)), start
    for _ in range(horizon):
        total += now
        now = np.asarray(now @ chain, np.float64)
    return total


def value_bound(min_mass: float, gamma: float, steps_left: float = np.inf) -> float:
    """The least that V_p* can be with `logprob` and α = 1: identity (4d).

        V_p*(s) ≥ log(min Z) · (1 − γ^h) / (1 − γ),   h steps left; h · log(min Z) at γ = 1

    Source: (4d) of the design; own derivation: each step costs at most −log(min Z).
    Args:
        min_mass: min Z over the states, in (0, 1], dimensionless; top_p is a lower bound of it.
    Returns: nats, ≤ 0.
    >>> round(value_bound(0.5, 0.5, 2), 4)  # log .5 · 1.5
    -1.0397
    """
    steps = steps_left if gamma == 1.0 else (1.0 - gamma**steps_left) / (1.0 - gamma)
    return float(np.log(min_mass) * steps) if min_mass < 1.0 else 0.0


def gap_bound(top_p: float, gamma: float) -> float:
    """The published bound on what leaving out tokens costs: sup |Q* − Q_p*| ≤ −γ/(1 − γ) · log p, nats.

    Source: (4d) of the design; arXiv:2505.20335. The measured gap is usually far below it.
    >>> round(gap_bound(0.8, 0.99), 1)
    22.1
    """
    return -gamma * value_bound(top_p, gamma)


def _chi2(mdp: _Mdp, gamma: float, alpha: float, c: float, visits: Array | None) -> Solution:
    if visits is None:
        raise InputError("target 'chi2' depends on the data; give visits, as `teacher_visits` computes them")
    taken = visits if visits.ndim == 2 else visits[:, None] * mdp.inside
    weights = np.where(mdp.mask, taken, 0.0)
    rows, tokens = np.nonzero(weights)
    pairs = Transitions(
        states=len(weights),
        state=rows,
        after=np.where(mdp.goes_on[tokens], mdp.after[rows, tokens], -1),
        weight=weights[rows, tokens],
    )
    q = np.full(weights.shape, np.nan)
    q[rows, tokens] = maximise_chi2(pairs, gamma=gamma, alpha=alpha, c=c)
    met = weights.sum(1) > 0
    supported = np.where(np.isnan(q), -np.inf, q)
    value = np.full(len(weights), np.nan)
    value[met] = alpha * np.logaddexp.reduce(supported[met] / alpha, axis=1)
    policy = np.full(weights.shape, np.nan)
    policy[met] = np.exp((supported[met] - value[met, None]) / alpha)
    return Solution(policy, q, value, mdp.mask)


def _conservative(mdp: _Mdp, pays: Array, gamma: float, alpha: float, weight: float) -> Solution:
    """Q = the minimum of the penalised loss around r + γ V_p(s'), V_p its soft value; the data are the teacher's."""
    data = mdp.inside / mdp.inside.sum(1, keepdims=True)

    def penalised(target: Array) -> Array:
        return exact_conservative.conservative_q(target, data, weight=weight, alpha=alpha)

    target, value = _iterate(mdp, pays, gamma, lambda q: mdp.best(penalised(q), alpha, False))
    return mdp.solution(penalised(target), value, alpha)


def _iterate(mdp: _Mdp, pays: Array, gamma: float, back_up: Callable[[Array], Array]) -> tuple[Array, Array]:
    """r + γV and V = back_up(r + γV), by sweeps until nothing moves: equation (3) where back_up is its V_p."""
    value, before = np.zeros(len(pays)), np.inf
    while True:
        for _ in range(SWEEPS):
            q = pays + gamma * mdp.ahead(value)
            new = back_up(q)
            moved = float(np.abs(new - value).max())
            value = new
            if moved <= 1e-14 * (1.0 + float(np.abs(value).max())):
                return q, value
        if not moved < 0.999 * before:
            raise InputError(f"the values at γ = {gamma} have no limit: long texts pay too well; take smaller ones")
        before = moved


def _check(gamma: float, alpha: float, c: float = np.inf, weight: float = 0.0) -> None:
    if not 0.0 <= gamma <= 1.0:
        raise InputError(f"gamma = {gamma} is outside [0, 1]; 0.99 is a usual value")
    if not 0.0 < alpha < np.inf:
        raise InputError(f"alpha = {alpha} is not above 0; 1 is the teacher's own temperature")
    if not c > 0.0:
        raise InputError(f"c = {c} is not above 0; 0.1 is the published value, infinity switches χ² off")
    if not 0.0 <= weight < np.inf:
        raise InputError(f"weight = {weight} is below 0 or not finite; 1 is a usual value, 0 leaves the soft optimum")
