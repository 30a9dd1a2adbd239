"""A mask is kept, and a potential leaves every optimum where it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.errors import InputError
from envs.exact import solve
from envs.ruled import RuledVectorEnv, narrowed
from envs.table_teacher import EOS, TableTeacher, second_order, toy
from envs.vector_env import TopPTokenVectorEnv

HEIGHTS = np.array([0.0, 1.5, -2.0, 0.7, 3.1, -0.4])  # Φ of the toy's six states


def height(prompt: str, reply: list[int]) -> float:
    """Φ of a text of the toy teacher: of its last token."""
    return float(HEIGHTS[reply[-1] if reply else int(prompt.split()[-1])])


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("teacher", [toy(), second_order()])
def test_shaping_leaves_the_optimal_policy_and_shifts_values_by_the_potential(
    teacher: TableTeacher, gamma: float, hard: bool
) -> None:
    potential = np.random.default_rng(0).normal(size=teacher.states) * 3
    ends = np.isin(np.arange(teacher.vocab_size), sorted(teacher.eos_ids))
    ahead = np.where(ends, 0.0, potential[teacher.successors()])  # Φ(terminal) = 0
    shaped = teacher.table + gamma * ahead - potential[:, None]
    settings: dict[str, Any] = {"top_p": 0.8, "gamma": gamma}
    plain, other = (
        solve(teacher, "hard" if hard else "soft", reward=reward, **settings) for reward in (teacher.table, shaped)
    )
    np.testing.assert_allclose(other.policy, plain.policy, atol=1e-9)
    np.testing.assert_allclose(other.value, plain.value - potential, atol=1e-9)
    np.testing.assert_allclose(other.q, plain.q - potential[:, None], atol=1e-9)
    wrong = solve(teacher, "hard" if hard else "soft", reward=shaped + gamma * ends * 3.0, **settings)
    if gamma == 0.6 and not hard:  # a potential of 3 at the end is another problem
        assert np.abs(wrong.policy - plain.policy).max() > 0.01


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_returns_differ_by_minus_the_potential_of_the_start(mode: str) -> None:
    gamma, settings = 0.9, {"teacher": "table:toy", "prompts": [[1], [2], [3]], "top_p": 0.9, "max_new_tokens": 5}
    plain = TopPTokenVectorEnv(8, **settings, gamma=gamma, autoreset_mode=mode)
    ruled = RuledVectorEnv(8, **settings, gamma=gamma, autoreset_mode=mode, potential=height)
    rng, seen = np.random.default_rng(0), {"terminated": 0, "truncated": 0}
    first, _ = plain.reset(seed=3)
    second, _ = ruled.reset(seed=3)
    total, age, start = np.zeros(8), np.zeros(8), HEIGHTS[first["context"][:, 0]]
    for _ in range(60):
        sizes = np.maximum(first["mask"].sum(1), 1)
        slots = rng.integers(0, sizes)
        first, paid, over, cut, infos = plain.step(slots)
        second, shaped, *_ = ruled.step(slots)
        assert all((first[key] == second[key]).all() for key in first)
        total += np.where(age >= 0, gamma ** np.maximum(age, 0) * (shaped - paid), 0.0)
        age += 1
        for row in (over | cut).nonzero()[0]:
            # A text that ended leaves −Φ(s0); one that was cut, the potential of where it was cut too.
            seen["terminated" if over[row] else "truncated"] += 1
            reached = (
                0.0 if over[row] else HEIGHTS[(infos if mode == "next_step" else infos["final_info"])["token"][row]]
            )
            assert total[row] == pytest.approx(gamma ** age[row] * reached - start[row], abs=1e-5)
            total[row], age[row] = 0.0, -1 if mode == "next_step" else 0
        begun = age == (-1 if mode == "next_step" else 0)
        if mode == "same_step":
            start = np.where(begun, HEIGHTS[first["context"][:, 0]], start)
        else:
            begun = infos["token"] < 0
            start, age = np.where(begun, HEIGHTS[first["context"][:, 0]], start), np.where(begun, 0, age)
    assert min(seen.values()) > 5


def test_masked_tokens_are_no_candidates_and_the_others_keep_their_order() -> None:
    def allow(prompt: str, reply: list[int]) -> np.ndarray[Any, Any]:
        return np.array([True, False, True, False, True, True]) if not reply else np.zeros(6, dtype=bool)

    env = RuledVectorEnv(2, teacher="table:toy", prompts=[[1]], top_p=1.0, max_new_tokens=4, allow=allow)
    seen, infos = env.reset(seed=0)
    assert seen["ids"][0].tolist() == [EOS, 4, 2, 5, 0, 0] and seen["mask"][0].tolist() == [1, 1, 1, 1, 0, 0]
    assert np.exp(seen["logp"][0, :4]) == pytest.approx([0.3, 0.02, 0.01, 0.01]) and not infos["unruled"].any()
    assert infos["lost_mass"] == pytest.approx(0.66) and (infos["action_mask"] == seen["mask"]).all()
    seen, _, _, _, infos = env.step(np.array([1, 2]))
    assert infos["unruled"].all() and seen["mask"].any(1).all()  # a mask that leaves nothing leaves all
    before = env.candidates
    assert (narrowed(before, before.mask).ids == before.ids).all()


def test_bad_masks_and_potentials_are_refused() -> None:
    settings: dict[str, Any] = {"teacher": "table:toy", "prompts": [[1]]}
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        RuledVectorEnv(1, **settings, allow=lambda prompt, reply: np.ones(2, dtype=bool)).reset(seed=0)
    with pytest.raises(InputError, match="potential of a state is nan"):
        RuledVectorEnv(1, **settings, potential=lambda prompt, reply: float("nan")).reset(seed=0)
