"""Multi-step returns by hand, and against the plain double sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.objectives import lambda_returns, path_target


def test_lambda_returns() -> None:
    """d = .5, λ = .5. G_2 = 3 − 1 + .5·4 = 4; G_1 = 2 − 0 + .5(.5·2 + .5·4) = 3.5; step 0 is outside: V = 7."""
    given = {
        "rewards": torch.tensor([[1.0, 2.0, 3.0]]),
        "discounts": torch.full((1, 3), 0.5),
        "log_policy": torch.tensor([[9.0, 0.0, 1.0]]),
        "values": torch.tensor([[7.0, 6.0, 2.0, 4.0]]),
        "in_set": torch.tensor([[False, True, True]]),
    }
    assert lambda_returns(**given, lam=0.5).tolist() == [[7.0, 3.5, 4.0]]
    assert lambda_returns(**given, lam=0.0).tolist() == [[7.0, 3.0, 4.0]]
    assert lambda_returns(**given, lam=1.0, alpha=2.0).tolist() == [[7.0, 2.0 + 0.5 * 3.0, 3.0]]


def double_sum(r: Tensor, d: Tensor, lp: Tensor, v: Tensor, inside: Tensor, lam: float, alpha: float) -> Tensor:
    """(1 − λ) Σ_n λ^{n−1} G^{(n)}, the rest of the weight on the longest one, a term at a time."""
    out = torch.empty_like(r)
    steps = r.shape[1]
    for b in range(len(r)):
        for t in range(steps):
            last = t
            while last < steps and inside[b, last] and (last == t or d[b, last - 1] > 0):
                last += 1
            if last == t:
                out[b, t] = v[b, t]
                continue
            total, gain, discount = 0.0, 0.0, 1.0
            for k in range(t, last):
                gain += discount * float(r[b, k] - alpha * lp[b, k])
                discount *= float(d[b, k])
                weight = lam ** (k - t) * (1.0 if k == last - 1 else 1 - lam)
                total += weight * (gain + (discount * float(v[b, k + 1]) if discount else 0.0))
            out[b, t] = total
    return out


def random_paths() -> tuple[Tensor, ...]:
    """Six paths of seven steps, r, d, log π, V and in_set; two of them end, some leave the set."""
    generator = torch.Generator().manual_seed(0)
    shape = (6, 7)
    r, lp = torch.randn(2, *shape, generator=generator).double()
    v = torch.randn(6, 8, generator=generator).double()
    d = torch.full(shape, 0.8).double()
    d[0, -1] = d[1, 3] = 0.0  # terminal ends; the second episode is shorter
    inside = torch.rand(shape, generator=generator) < 0.8
    inside[1, 4:] = False
    return r, d, lp, v, inside


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_less_the_value_it_is_the_generalised_advantage(lam: float) -> None:
    """Σ_k (γλ)^k δ_{t+k}, a term at a time."""
    r, d, lp, v, inside = random_paths()
    delta = r - 0.5 * lp + d * v[:, 1:] - v[:, :-1]
    wanted = torch.zeros_like(r)
    for b, t in torch.ones_like(r).nonzero().tolist():
        factor, k = 1.0, t
        while k < 7 and inside[b, k]:
            wanted[b, t] += factor * delta[b, k]
            factor *= float(d[b, k]) * lam
            k += 1
    torch.testing.assert_close(lambda_returns(r, d, lp, v, inside, lam, 0.5) - v[:, :-1], wanted)


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_the_scan_is_the_weighted_sum_of_all_steps(lam: float) -> None:
    r, d, lp, v, inside = random_paths()
    found = lambda_returns(r, d, lp, v, inside, lam, 0.5)
    torch.testing.assert_close(found, double_sum(r, d, lp, v, inside, lam, 0.5))
    if lam == 1.0:
        torch.testing.assert_close(found, path_target(r, d, lp, v, inside, 7, 0.5))
