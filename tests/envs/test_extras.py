"""What joins a nucleus: sets by hand, what makes room, every face of the environment, and the exact optimum."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from agents.objectives import levelled_q
from agents.scores import on_candidates
from agents.table_student import TableStudent
from envs.candidates import PAD_LOGP, top_p
from envs.errors import InputError
from envs.exact import candidate_sets, solve, solve_finite
from envs.extras import Extras, fitting, hybrid, texts_along
from envs.lexicon import Lexicon, compiled
from envs.table_teacher import TABLES, toy
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import collect
from experiments.oracle import train
from experiments.table_data import build, candidates, complete_paths, digits

FLAGS = np.ones(6, dtype=bool)


def protecting(*phrases: str, table: str = "toy") -> Extras:
    lexicon = compiled(TABLES[table](), phrases)
    return Extras(lexicon, lexicon.most)


def sets_of(extras: Extras | None, texts: Sequence[list[int]], p: float = 0.5, slots: int = 6) -> list[list[int]]:
    rows = torch.from_numpy(toy().table).float()[[text[-1] for text in texts]]
    found = hybrid(rows, p, slots, extras=extras, texts=[(text, 1) for text in texts])
    return [ids[mask].tolist() for ids, mask in zip(found.ids, found.mask, strict=True)]


def test_sets_by_hand() -> None:
    """Rows of `toy` at p = .5: nuclei {3, 0}, {0} and {0}; "4 2" begins with 4 anywhere and goes on with 2 after 4.

    From 2 and 4 the teacher never says 4, which does not join there.
    """
    assert sets_of(None, [[1], [2], [4]]) == [[3, 0], [0], [0]]
    assert sets_of(protecting("4 2"), [[1], [2], [4]]) == [[3, 0, 4], [0], [0, 2]]
    found = hybrid(
        torch.from_numpy(toy().table).float()[[1, 4]], 0.5, 4, extras=protecting("4 2"), texts=[([1], 1), ([4], 1)]
    )
    assert found.logp[0].exp().tolist() == pytest.approx([0.44, 0.30, 0.02, 0.0])
    assert found.lost_mass.tolist() == pytest.approx([0.24, 0.05], abs=1e-6)
    assert found.logp[1, 2:].tolist() == [PAD_LOGP] * 2
    assert not found.cut.any()


def test_tokens_of_the_prompt_and_rare_ones_by_hand() -> None:
    copied = FLAGS.copy()
    copied[0] = False  # the end of a text is not copied
    rows = torch.from_numpy(toy().table).float()[[1, 1]]
    found = hybrid(rows, 0.5, 6, extras=Extras(copied=copied), texts=[([5, 0, 5, 1], 3), ([5, 0, 2, 1], 3)])
    assert found.ids.tolist() == [[3, 0, 5, 0, 0, 0], [3, 0, 2, 5, 0, 0]]
    rare = np.array([False, True, True, False, False, True])
    # Of row 1, ranked 3 0 1 4 2 5 (the tie of 2 and 5 at .01 goes to the lower id), the four first hold one rare token.
    for within, expected in (
        (2, [3, 0]),
        (3, [3, 0, 1]),
        (5, [3, 0, 1, 2]),
        (6, [3, 0, 1, 2, 5]),
        (99, [3, 0, 1, 2, 5]),
    ):
        assert sets_of(Extras(rare=rare, within=within), [[1]]) == [expected]
    both = Extras(protecting("5").follow, 1, copied, rare, 4)
    assert sets_of(both, [[4, 1]], slots=6) == [[3, 0, 1, 4, 5]] and both.room(2) == 7


def test_the_tail_of_the_nucleus_makes_room_and_the_most_probable_token_stays() -> None:
    rows = torch.from_numpy(toy().table).float()[[0]]  # 1: .30, 3: .26, 2: .22, 0: .10, 4: .08, 5: .04
    for slots, expected, cut in ((6, [1, 3, 2, 0, 5], False), (4, [1, 3, 2, 5], True), (2, [1, 5], True)):
        found = hybrid(rows, 0.85, slots, extras=protecting("5"), texts=[([0], 1)])
        assert found.ids[found.mask].tolist() == expected and found.cut.tolist() == [cut]
        assert found.lost_mass.item() == pytest.approx(1 - toy().probabilities[0, expected].sum(), abs=1e-6)
    # What is protected and in the nucleus too takes one slot, and stays where a likelier token goes.
    found = hybrid(rows, 0.85, 3, extras=protecting("0 5"), texts=[([0], 1)])
    assert found.ids.tolist() == [[1, 0, 5]]
    with pytest.raises(InputError, match="max_candidates = 1 does not hold the 1 tokens"):
        hybrid(rows, 0.85, 1, extras=protecting("5"), texts=[([0], 1)])


def test_what_may_not_fit_is_refused_at_construction() -> None:
    extras = protecting("4 2")
    with pytest.raises(InputError, match=r"max_candidates = 2 does not hold .*\(lexicon: 2\); give at least 3"):
        TopPTokenVectorEnv(2, teacher="table:toy", prompts=[[1]], max_candidates=2, extras=extras)
    with pytest.raises(InputError, match=r"prompt of 3 tokens: 3, rare tokens: 1\); give at least 5"):
        fitting(Extras(copied=FLAGS, rare=FLAGS, within=1), 4, 6, 3)
    assert fitting(Extras(copied=FLAGS, rare=FLAGS, within=9), 6, 6, 3) is not None  # all of the vocabulary fits
    with pytest.raises(InputError, match="rare_within = 0 is below 1"):
        Extras(rare=FLAGS)
    with pytest.raises(InputError, match="most = -1 is below 0"):
        Extras(most=-1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.sampled_from([0.3, 0.5, 0.8, 0.95]),
)
def test_what_is_protected_is_always_offered(phrases: list[list[int]], text: list[int], p: float) -> None:
    extras = protecting(*(" ".join(map(str, phrase)) for phrase in phrases))
    rows = torch.from_numpy(toy().table).float()[[text[-1]]]
    due = {phrase[0] for phrase in phrases}
    for phrase in phrases:
        due |= {phrase[cut] for cut in range(1, len(phrase)) if text[-cut:] == phrase[:cut]}
    assert set(extras.ids((text, 1)).tolist()) == due and len(due) <= extras.most
    due = {token for token in due if rows[0, token] > -torch.inf}
    slots = min(extras.most + 1, 6)
    found, bare = hybrid(rows, p, slots, extras=extras, texts=[(text, 1)]), top_p(rows, p)
    inside = found.ids[found.mask].tolist()
    assert due <= set(inside) and bare.ids[0, 0] in inside and len(set(inside)) == len(inside)
    assert set(inside) - due <= set(bare.ids[bare.mask].tolist())
    order = [(-float(rows[0, token].clamp(min=PAD_LOGP)), token) for token in inside]
    assert order == sorted(order)
    assert bool(found.cut) == (not set(bare.ids[bare.mask].tolist()) <= set(inside))


def test_without_extras_and_at_p_1_sets_are_the_nuclei_to_the_bit() -> None:
    rows = torch.randn(9, 300, generator=torch.Generator().manual_seed(0)) * 3
    norm = rows.logsumexp(-1)
    none = Extras(Lexicon({}, *(np.zeros(0, np.int64),) * 2, np.ones(300, bool)))
    for p, slots in ((0.9, 40), (0.99, 8), (1.0, 8)):
        bare = top_p(rows, p, slots, log_norm=norm)
        for extras in (None, none):
            texts = [([0], 1)] * 9
            found = hybrid(rows, p, slots, log_norm=norm, extras=extras, texts=texts)
            assert all(torch.equal(a, b) for a, b in zip(found, bare, strict=True)), (p, extras)
    assert sets_of(protecting("5"), [[1]], 1.0) == sets_of(None, [[1]], 1.0)


def test_states_along_a_reply() -> None:
    found = texts_along([7, 8, 3, 4], 2, 2)
    assert [(text.tolist(), prompt) for text, prompt in found] == [([7, 8], 2), ([7, 8, 3], 2)]


def test_a_vector_env_offers_and_pays_what_is_protected() -> None:
    env = TopPTokenVectorEnv(
        2, teacher="table:toy", prompts=[[1], [2]], top_p=0.5, max_new_tokens=4, extras=protecting("4 2")
    )
    observations, infos = env.reset(seed=0, options={"prompts": [[1], [2]]})
    assert observations["ids"][:, :3].tolist() == [[3, 0, 4], [0, 0, 0]]
    assert observations["mask"].sum(1).tolist() == [3, 1]
    assert infos["lost_mass"].tolist() == pytest.approx([0.24, 0.36], abs=1e-6)
    observations, rewards, _, _, infos = env.step(np.array([2, 0]))
    assert infos["token"].tolist() == [4, 0] and infos["in_set"].all()
    assert rewards.tolist() == pytest.approx([np.log(0.02), np.log(0.64)])
    assert observations["ids"][0, :3].tolist() == [0, 2, 0] and not observations["mask"][1].any()
    _, rewards, _, _, infos = env.step_tokens(np.array([2, 0]))
    assert rewards[0] == pytest.approx(np.log(0.02)) and infos["in_set"][0]


def test_the_single_env_and_same_step_rows_have_the_same_sets() -> None:
    extras = protecting("4 2")
    env = gymnasium.make(
        "tdistill/TopPToken-v0", teacher="table:toy", prompts=[[1]], top_p=0.5, max_new_tokens=3, extras=extras
    )
    observation, info = env.reset(seed=0)
    assert observation["ids"][:3].tolist() == [3, 0, 4] and info["action_mask"].sum() == 3
    observation = env.step(2)[0]
    assert observation["ids"][:3].tolist() == [0, 2, 0]
    rows = envs.TopPTokenVectorEnv(
        2, teacher="table:toy", prompts=[[1]], top_p=0.5, max_new_tokens=3, autoreset_mode="same_step", extras=extras
    )
    rows.reset(seed=0)
    observations, *_ = rows.step(np.array([1, 2]))  # the first row ends and begins anew
    assert observations["ids"][:, :3].tolist() == [[3, 0, 4], [0, 2, 0]]


def test_walks_hold_the_enlarged_sets() -> None:
    env = TopPTokenVectorEnv(4, teacher="table:toy", prompts=[[1], [2]], top_p=0.5, extras=protecting("1"))
    episodes = collect(env, 40, seed=0)
    bare = collect(TopPTokenVectorEnv(4, teacher="table:toy", prompts=[[1], [2]], top_p=0.5), 40, seed=0)
    assert torch.equal(episodes.tokens, bare.tokens)  # the same walks, of which more is inside
    assert int(episodes.in_set.sum()) > int(bare.in_set.sum())
    assert episodes.in_set[episodes.taken == 1].all() and not bare.in_set[bare.taken == 1].all()


@pytest.mark.parametrize(("name", "p"), [("toy", 0.5), ("detour", 0.5), ("second_order", 0.8)])
def test_the_exact_solver_knows_enlarged_sets(name: str, p: float) -> None:
    """Its sets are those of `hybrid`; and at γ = 1 its optimum is the teacher conditioned on staying inside them."""
    teacher = TABLES[name]()
    extras = protecting("2 1", "3", table=name)
    found = candidates(teacher, p, extras)
    extra = np.zeros(teacher.table.shape, dtype=bool)
    for state in range(teacher.states):
        extra[state, extras.ids((digits(teacher, state), 1))] = True
    ours = np.zeros_like(extra)
    for state, (ids, mask) in enumerate(zip(found.ids, found.mask, strict=True)):
        ours[state, ids[mask].numpy()] = True
    extra &= teacher.probabilities > 0
    assert (ours == (candidate_sets(teacher.probabilities, p) | extra)).all()
    soft, conditioned = (solve(teacher, kind, top_p=p, extra=extra) for kind in ("soft", "conditioned"))
    assert soft.policy == pytest.approx(conditioned.policy, abs=1e-9)
    bare = solve(teacher, "soft", top_p=p)
    assert np.abs(soft.policy - bare.policy).max() > 0.01 and (soft.value >= bare.value - 1e-12).all()
    finite = solve_finite(teacher, horizon=400, top_p=p, extra=extra)
    assert finite.policy[400] == pytest.approx(soft.policy, abs=1e-6)


def test_soft_q_learns_the_soft_optimal_policy_of_the_enlarged_sets() -> None:
    teacher, extras, p, gamma = toy(), protecting("4 2", "5"), 0.5, 0.8
    extra = np.zeros(teacher.table.shape, dtype=bool)
    for state in range(teacher.states):
        extra[state, extras.ids(([state], 1))] = True
    batch = build(teacher, complete_paths(teacher, 1), p, gamma, extras=extras)
    agent = train("soft_q", teacher, batch, updates=180, gamma=gamma)
    student, sets = agent.student, candidates(teacher, p, extras)
    assert isinstance(student, TableStudent)
    solution = solve(teacher, "soft", top_p=p, gamma=gamma, extra=extra)
    with torch.no_grad():
        assert student.z.softmax(-1).numpy() == pytest.approx(solution.policy, abs=0.03)
        log_policy, _ = on_candidates(student.z, sets.ids, sets.mask)
        q = levelled_q(student.v, log_policy, 1.0)
    known = torch.from_numpy(solution.q).gather(1, sets.ids)
    often = sets.mask & (sets.logp > np.log(0.03))  # what is met seldom takes longer than this to be known so well
    assert q[often].numpy() == pytest.approx(known[often].numpy(), abs=0.03)
    assert np.abs(solution.policy - solve(teacher, "soft", top_p=p, gamma=gamma).policy).max() > 0.05
