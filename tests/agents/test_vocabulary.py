"""A head on part of the vocabulary: exact where a loss sees candidates only, an estimate of known error elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import make_agent
from agents.episodes import Episodes
from agents.errors import InputError
from agents.student import Student
from agents.vocabulary import Head, needed, part_of
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


def test_a_part_by_hand() -> None:
    """Eight tokens, two needed: three of the other six are drawn and stand for two each."""
    part = part_of(torch.tensor([2, 5]), 8, 3, seed=0)
    assert len(part.tokens) == 5 and part.tokens.tolist() == sorted(set(part.tokens.tolist()))
    weights = dict(zip(part.tokens.tolist(), part.log_weight.tolist(), strict=True))
    assert weights.pop(2) == 0 and weights.pop(5) == 0
    assert list(weights.values()) == pytest.approx([math.log(2)] * 3)
    assert part.tokens[part.places(torch.tensor([[5, 2], [2, 2]]))].tolist() == [[5, 2], [2, 2]]
    again, other = (part_of(torch.tensor([2, 5]), 8, 3, seed=seed).tokens.tolist() for seed in (0, 1))
    assert again == part.tokens.tolist() != other
    whole = part_of(torch.tensor([2, 5]), 8, 6, seed=0)
    assert whole.tokens.tolist() == list(range(8)) and whole.log_weight.eq(0).all()
    alone = part_of(torch.tensor([2, 5]), 8, 0, seed=0)
    assert alone.tokens.tolist() == [2, 5] and alone.log_weight.eq(0).all()


def test_what_episodes_need_are_their_candidates_and_what_was_taken() -> None:
    assert needed(Episodes(**fields())).tolist() == [2, 3, 6, 7]  # 7 was taken outside its set


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
    """4,000 draws of 20 of 90: the mean within four standard errors, the bias of the logarithm as the formula says."""
    torch.manual_seed(3)
    logits = torch.randn(100).double()
    certain = logits.topk(10).indices.sort().values
    exact = logits.logsumexp(0)
    estimates = []
    for seed in range(4000):
        part = part_of(certain, 100, 20, seed)
        estimates.append((logits[part.tokens] + part.log_weight).logsumexp(0))
    found = torch.stack(estimates)
    ratio = (found - exact).exp()
    spread = float(ratio.std())
    assert 0.01 < spread < 0.2
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * spread / 4000**0.5)
    rest = logits[torch.isin(torch.arange(100), certain, invert=True)].exp()
    share, variation = float(rest.sum() / exact.exp()), float(rest.std() / rest.mean())
    assert spread == pytest.approx(share * variation * (1 / 20 - 1 / 90) ** 0.5, rel=0.05)
    low = float((found - exact).mean() - ratio.mean().log())  # what the logarithm makes of it
    assert low == pytest.approx(-(spread**2) / 2, rel=0.1)


def test_the_head_chooses_and_says_what_it_cannot_do() -> None:
    episodes, linear = Episodes(**fields()), torch.nn.Linear(4, 1000)
    assert Head("all").part(episodes, linear) is None
    assert Head("auto", 1024).part(episodes, linear) is None  # the negatives alone are more than half
    assert Head("auto", 499).part(episodes, linear) is None  # 4 candidates and 499 others are more than half
    few = Head("auto", 100).part(episodes, linear)
    assert few is not None and len(few.tokens) == 104
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
