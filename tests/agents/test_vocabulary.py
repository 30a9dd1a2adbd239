"""A head on part of the vocabulary: exact where a loss sees candidates only, an estimate of known error elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from agents import make_agent
from agents.episodes import PAD_LOGP, Episodes
from agents.errors import InputError
from agents.student import Student
from agents.vocabulary import Head, Part, part_of
from tests.agents.test_episodes import fields
from tests.agents.test_student import model

WIDE = 40
KINDS = ["llama", "gpt2", "opt", "gemma2", "qwen2", "gpt_neox", "phi"]


def student(kind: str, rows: Any, negatives: int) -> Student:
    found = Student(model(kind, WIDE), head=Head(rows, negatives))
    torch.manual_seed(1)
    torch.nn.init.normal_(found.value_head.weight)
    return found


def gradients(own: Student, loss: Tensor) -> list[Tensor]:
    weights = list(own.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return list(found)


def naming(*sets: list[int]) -> Episodes:
    """One-step episodes with these candidate sets, of which they took the first."""
    most = max(map(len, sets))
    first = torch.tensor([own + [0] * (most - len(own)) for own in sets])
    mask = torch.tensor([[True] * len(own) + [False] * (most - len(own)) for own in sets])
    logp = torch.where(mask, -mask.sum(1, keepdim=True).float().log(), PAD_LOGP)
    count, taken = len(sets), logp[:, :1]
    return Episodes(
        tokens=torch.stack([torch.ones(count, dtype=torch.int64), first[:, 0]], 1),
        prompt_length=torch.ones(count, dtype=torch.int64),
        length=torch.ones(count, dtype=torch.int64),
        ids=torch.stack([first, torch.zeros_like(first)], 1),
        logp=torch.stack([logp, torch.full_like(logp, PAD_LOGP)], 1),
        mask=torch.stack([mask, torch.zeros_like(mask)], 1),
        slots=torch.zeros(count, 1, dtype=torch.int64),
        rewards=taken,
        discounts=torch.zeros(count, 1),
        in_set=torch.ones(count, 1, dtype=torch.bool),
        behaviour_logp=taken,
        teacher_logp_taken=taken,
        from_teacher=torch.ones(count, dtype=torch.bool),
    )


def columns(part: Part, row: int) -> tuple[list[int], list[float]]:
    """The tokens of an episode's columns, -1 for nothing, and what they weigh."""
    own = part.own.split(part.sizes)[row].tolist()
    tokens = part.shared.tolist() + own + [-1] * (part.width - len(part.shared) - len(own))
    return tokens, part.log_weight[row].exp().tolist()


def test_a_part_by_hand() -> None:
    """Twelve tokens, of which {1, 4} and {4, 6, 9} are named; of four and of eight negatives two are named ones."""
    episodes = naming([4, 1], [9, 4, 6])
    for negatives, unknown in ((4, 2), (8, 4)):
        part = part_of(episodes, 12, negatives, seed=0)
        assert part.sizes == [2, 3] and part.own.tolist() == [1, 4, 4, 6, 9]
        assert part.width == negatives + 3 and len(set(part.shared.tolist())) == negatives
        first = negatives - unknown
        for row, own in enumerate([{1, 4}, {4, 6, 9}]):
            tokens, weights = columns(part, row)
            assert set(tokens[:first]) <= {1, 4, 6, 9} and not set(tokens[first:negatives]) & {1, 4, 6, 9}
            fresh = [token for token in tokens[:first] if token not in own]
            heavy = (4 - len(own)) / len(fresh) if fresh else 0.0
            assert weights[:first] == pytest.approx([0.0 if token in own else heavy for token in tokens[:first]])
            assert weights[first:negatives] == pytest.approx([8 / unknown] * unknown)
            assert weights[negatives:] == [1.0] * len(own) + [0.0] * (3 - len(own))
            assert [tokens[column] for column in part.ids[row, 0, : len(own)]] == episodes.ids[
                row, 0, : len(own)
            ].tolist()
            assert tokens[part.taken[row, 0]] == episodes.taken[row, 0]
    again, other = (part_of(episodes, 12, 4, seed=seed).shared.tolist() for seed in (0, 1))
    assert again == part_of(episodes, 12, 4, seed=0).shared.tolist() != other
    whole = part_of(episodes, 12, 12, seed=0)
    assert sorted(whole.shared.tolist()) == list(range(12))
    assert whole.log_weight.exp().sum(1).tolist() == [12, 12]
    alone = part_of(episodes, 12, 0, seed=0)
    assert alone.width == 3 and alone.log_weight.exp().sum(1).tolist() == [2, 3]


def test_logits_of_a_part_by_hand() -> None:
    """Two states of the first episode and one of the second, W = the token's number, b = a tenth of it."""
    part = part_of(naming([4, 1], [9, 4, 6]), 12, 0, seed=0)
    weight = torch.arange(12.0)[:, None]
    hidden, row = torch.tensor([[1.0], [2.0], [10.0]]), torch.tensor([0, 0, 1])
    found = part.logits(hidden, row, weight, weight[:, 0] / 10)
    torch.testing.assert_close(found, torch.tensor([[1.1, 4.4, 0], [2.1, 8.4, 0], [40.4, 60.6, 90.9]]))


def test_an_episode_names_its_candidates_and_what_was_taken() -> None:
    part = part_of(Episodes(**fields()), WIDE, 0, seed=0)
    assert part.sizes == [3, 3] and part.own.tolist() == [2, 3, 6, 3, 6, 7]  # 7 was taken outside its set


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_others_drawn_scores_and_gradients_are_those_of_the_whole_head(kind: str) -> None:
    """Tied and untied heads, with a bias (phi) and a soft cap (gemma2)."""
    whole, part = student(kind, "all", 0), student(kind, "candidates", WIDE)
    episodes = Episodes(**fields())
    for name in ("log_policy", "value", "log_inside", "logp_taken"):
        ours, theirs = (getattr(own.scores(episodes), name) for own in (part, whole))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        where = episodes.mask if name == "log_policy" else torch.ones_like(ours, dtype=torch.bool)
        pairs = zip(gradients(part, ours[where].sum()), gradients(whole, theirs[where].sum()), strict=True)
        for own, other in pairs:
            torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_alone_are_exact_for_the_policy_on_them_and_the_values(kind: str) -> None:
    whole, part = student(kind, "all", 0), student(kind, "candidates", 0)
    episodes = Episodes(**fields())
    ours, theirs = part.scores(episodes), whole.scores(episodes)
    torch.testing.assert_close(ours.log_policy, theirs.log_policy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.value, theirs.value)
    assert not torch.allclose(ours.log_inside, theirs.log_inside)  # that is what negatives are for


CANDIDATES_ONLY = [
    ("kd", {"on": "set", "leak_weight": 0.0}),
    ("gkd", {"on": "set", "leak_weight": 0.0, "divergence": "reverse"}),
    ("q_learning", {"gamma": 0.5, "leak_weight": 0.0}),
    ("soft_q", {"gamma": 0.5, "leak_weight": 0.0}),
    ("cql", {"gamma": 0.5, "leak_weight": 0.0}),
    ("bellman_distill", {"gamma": 0.5, "leak_weight": 0.0}),
    ("value_tilt", {"gamma": 0.0, "leak_weight": 0.0}),
]


@pytest.mark.parametrize(("name", "settings"), CANDIDATES_ONLY)
def test_an_objective_on_candidates_has_its_loss_and_gradient(name: str, settings: dict[str, Any]) -> None:
    episodes = Episodes(**fields())
    discounts = 0.0 if settings.get("gamma") == 0 else 0.5
    found = []
    for own in (student("llama", "all", 0), student("llama", "candidates", 0)):
        agent = make_agent(name, own, total_updates=10, **settings)
        loss, _ = agent.loss(episodes.discounted(discounts))
        found.append([loss.detach(), *gradients(own, loss)])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert any(value.abs().max() > 1e-3 for value in found[0][1:])


def test_the_estimate_is_unbiased_and_its_logarithm_low_by_half_the_relative_variance() -> None:
    """4,000 draws of 20 of 90 tokens, 10 of them among the 30 that another episode names: the mean within four standard
    errors, spread and bias of the logarithm as the formula says."""
    torch.manual_seed(3)
    logits = torch.randn(100).double()
    likely = logits.topk(10).indices.tolist()
    rest = [token for token in range(100) if token not in likely]
    episodes = naming(likely, likely[:1] + rest[:30])
    exact = logits.logsumexp(0)
    estimates = []
    for seed in range(4000):
        part = part_of(episodes, 100, 20, seed)
        tokens = torch.cat([part.shared, part.own[:10]])
        estimates.append((logits[tokens] + part.log_weight[0, : len(tokens)]).logsumexp(0))
    found = torch.stack(estimates)
    ratio = (found - exact).exp()
    spread = float(ratio.std())
    assert 0.01 < spread < 0.2
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * spread / 4000**0.5)
    variance = 0.0
    for kind, drawn in ((rest[:30], 7.5), (rest[30:], 10)):  # of ten of 40 named ones, 7.5 are not the episode's own
        values = logits[kind].exp()
        share, variation = float(values.sum() / exact.exp()), float(values.std() / values.mean())
        variance += (share * variation) ** 2 * (1 / drawn - 1 / len(kind))
    assert spread == pytest.approx(variance**0.5, rel=0.05)
    low = float((found - exact).mean() - ratio.mean().log())  # what the logarithm makes of it
    assert low == pytest.approx(-(spread**2) / 2, rel=0.1)


def test_the_head_chooses_and_says_what_it_cannot_do() -> None:
    episodes, linear = Episodes(**fields()), torch.nn.Linear(4, 1000)
    assert Head("all").part(episodes, linear) is None
    assert Head("auto", 1024).part(episodes, linear) is None  # the negatives alone are more than half
    assert Head("auto", 499).part(episodes, linear) is None  # 3 named ones and 499 others are more than half
    few = Head("auto", 100).part(episodes, linear)
    assert few is not None and few.width == 103
    other = torch.nn.Bilinear(4, 4, 1000)
    assert Head("auto", 100).part(episodes, other) is None
    with pytest.raises(InputError, match="the head is a Bilinear, not a Linear"):
        Head("candidates").part(episodes, other)
    with pytest.raises(InputError, match="head rows are 'some'"):
        Head("some")
    with pytest.raises(InputError, match="-1 negatives"):
        Head("auto", -1)


def test_a_target_network_sees_the_same_part() -> None:
    own = student("llama", "candidates", 5)
    episodes = Episodes(**fields())
    slow = own.copy()
    assert torch.equal(slow.scores(episodes).log_inside, own.scores(episodes).log_inside)
