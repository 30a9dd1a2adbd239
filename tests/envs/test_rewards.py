"""Equation (2) by hand; what the exact solver makes of the same rewards stands in test_exact.py."""

from __future__ import annotations

import math

import pytest
import torch

from envs.candidates import PAD_LOGP, Candidates
from envs.errors import InputError
from envs.exact import solve
from envs.rewards import NAMES, LogProb, Reward, Step, make_reward
from envs.table_teacher import TABLES


def step_of(rows: int = 3) -> Step:
    """Row 0 goes on to candidates of .5 and .25, row 1 ended its text, row 2 was truncated before one of .9."""
    logp = torch.tensor([[0.5, 0.25], [1.0, 1.0], [0.9, 1.0]]).log()
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    after = Candidates(torch.zeros(3, 2).long(), logp.masked_fill(~mask, PAD_LOGP), mask, torch.zeros(3).bool())
    return Step(
        taken_logp=torch.tensor([0.4, 0.2, 0.1]).log(),
        log_mass=torch.tensor([0.8, 0.8, 0.5]).log(),
        terminated=torch.tensor([False, True, False]),
        truncated=torch.tensor([False, False, True]),
        after=after,
        texts=lambda row: (f"prompt {row}", "reply " * row),
    )


HAND = {
    "logprob": [math.log(0.4), math.log(0.2), math.log(0.1)],
    "topp_logprob": [math.log(0.5), math.log(0.25), math.log(0.2)],
    "induced_hard": [math.log(0.4) - 0.5 * math.log(0.5), math.log(0.2), math.log(0.1) - 0.5 * math.log(0.9)],
    "induced_soft": [math.log(0.4) - 0.5 * math.log(0.75), math.log(0.2), math.log(0.1) - 0.5 * math.log(0.9)],
    "sqil": [0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_named_reward_pays_what_was_worked_out_by_hand(name: str) -> None:
    reward = make_reward(name, gamma=0.5)
    paid = reward(step_of())
    assert reward.name == name and paid.dtype == torch.float32 and paid.shape == (3,)
    torch.testing.assert_close(paid, torch.tensor(HAND[name]))
    assert reward.per_candidate == (name in {"logprob", "topp_logprob"})
    assert reward.needs_next == name.startswith("induced") and not reward.needs_text


def test_induced_soft_takes_the_soft_maximum_at_the_learners_temperature() -> None:
    paid = make_reward("induced_soft", gamma=0.5, alpha=2.0)(step_of())
    soft = 2 * math.log(math.sqrt(0.5) + math.sqrt(0.25))
    assert paid[0].item() == pytest.approx(math.log(0.4) - 0.5 * soft, abs=1e-6)


def test_a_score_of_the_reply_is_paid_once_at_the_end_and_at_truncation_too() -> None:
    seen = []

    def score(prompt: str, reply: str) -> float:
        seen.append((prompt, reply))
        return len(reply) / 4

    reward = make_reward(score)
    assert reward.name == "terminal" and reward.needs_text and not reward.per_candidate
    torch.testing.assert_close(reward(step_of()), torch.tensor([0.0, 1.5, 3.0]))
    assert seen == [("prompt 1", "reply "), ("prompt 2", "reply reply ")]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="'reply ' as nan"):
        make_reward(lambda prompt, reply: math.nan)(step_of())


def test_sqil_pays_the_student_nothing_and_says_what_a_teacher_step_is_worth() -> None:
    assert make_reward("sqil").teacher_step == 1.0


@pytest.mark.parametrize("name", ["induced_soft", "induced_hard"])
def test_induced_rewards_of_a_table_are_those_the_exact_solver_inverts(name: str) -> None:
    """The env's reward for every pair of a table, given to the solver, makes log π_T the optimal Q on the set."""
    from envs.candidates import top_p

    teacher, gamma, p = TABLES["toy"](), 0.8, 0.8
    reward = make_reward(name, gamma=gamma)
    logp = torch.from_numpy(teacher.table).float().clamp(min=PAD_LOGP)
    sets = top_p(logp, p)
    states = torch.arange(6).repeat_interleave(6)
    tokens = torch.arange(6).repeat(6)
    after = Candidates(*(field[tokens] for field in sets))  # order 1: the token is the state it leads to
    ended = tokens == 0
    paid = reward(Step(logp[states, tokens], sets.log_mass[states], ended, torch.zeros(36).bool(), after))
    target = "soft" if name == "induced_soft" else "hard"
    solved = solve(teacher, target, top_p=p, gamma=gamma, reward=paid.double().numpy().reshape(6, 6))
    gap = (torch.from_numpy(solved.q) - logp.double())[torch.from_numpy(solved.candidates)].abs().max()
    assert gap < 1e-5
    wrong = solve(teacher, target, top_p=p, gamma=gamma - 0.1, reward=paid.double().numpy().reshape(6, 6))
    gap = (torch.from_numpy(wrong.q) - logp.double())[torch.from_numpy(wrong.candidates)].abs().max()
    assert gap > 0.02, "γ must equal the learner's"


def test_a_reward_of_ones_own_is_taken_as_it_is() -> None:
    class Twice(Reward):
        name = "twice"

        def __call__(self, step: Step) -> torch.Tensor:
            return 2 * step.taken_logp

    mine = Twice()
    assert make_reward(mine) is mine and isinstance(make_reward("logprob"), LogProb)


@pytest.mark.parametrize(
    ("reward", "options", "said"),
    [
        ("log_prob", {}, "did you mean 'logprob'"),
        ("terminal", {}, "pass a function"),
        (3, {}, "int is no reward"),
        ("logprob", {"gamma": 1.5}, "gamma = 1.5 is outside"),
        ("induced_soft", {"alpha": 0.0}, "alpha = 0.0 is not above 0"),
    ],
)
def test_what_is_no_reward_is_refused(reward: object, options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_reward(reward, **options)
