"""Equation (1) against a plain full sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.candidates import PAD_LOGP, Candidates, log_norm, normalise, top_p
from envs.errors import InputError


def plain_nucleus(logp: np.ndarray, p: float) -> list[int]:
    """Sort everything, ties by id; walk until the mass reaches p."""
    order = sorted(range(len(logp)), key=lambda token: (-logp[token], token))
    chosen, mass = [], 0.0
    for token in order:
        if p < 1.0 and not math.isfinite(logp[token]):
            break
        chosen.append(token)
        mass = float(np.cumsum(np.exp(logp[chosen].astype(np.float64)))[-1])
        if p < 1.0 and mass >= p:
            break
    return chosen


def assert_same_of_many(few: Candidates, many: Candidates) -> None:
    """A few rows are looked at in another way than many; the sets are the same, bit for bit."""
    for one, other in zip(few, many, strict=True):
        assert torch.equal(one.repeat(3, *[1] * (one.dim() - 1)), other)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2, 5, 40, 129, 700]),
    st.sampled_from([0.05, 0.5, 0.8, 0.9, 0.99, 0.9999, 1.0]),
    st.sampled_from([0.0, 0.3, 2.0, 8.0]),
    st.booleans(),
    st.booleans(),
)
def test_every_set_is_that_of_a_full_sort(seed: int, v: int, p: float, scale: float, ties: bool, holes: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, v)) * scale
    if ties:
        logits = np.round(logits)
    if holes and v > 1:
        logits[:, rng.random(v) < 0.3] = -np.inf
        logits[:, -1] = 0.0
    logp = normalise(torch.from_numpy(logits))
    found = top_p(logp, p)
    assert_same_of_many(found, top_p(logp.repeat(3, 1), p))
    for row in range(3):
        expected = plain_nucleus(logp[row].numpy(), p)
        assert found.ids[row, found.mask[row]].tolist() == expected
        inside = logp[row, expected].clamp(min=PAD_LOGP)
        assert torch.equal(found.logp[row, found.mask[row]], inside)
        assert not found.ids[row, ~found.mask[row]].any()
        assert (found.logp[row, ~found.mask[row]] == PAD_LOGP).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([2000, 8320, 20_011]),
    st.sampled_from([0.5, 0.9, 0.999]),
    st.sampled_from([0.2, 3.0, 8.0]),
    st.booleans(),
    st.sampled_from([1, 16, 64, 300, None]),
)
def test_wide_vocabularies_and_bare_logits(
    seed: int, v: int, p: float, scale: float, ties: bool, limit: int | None
) -> None:
    """Windows, blocks and the unfinished block at the end, on logits that nobody normalised; ties at every border."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy((rng.normal(size=(3, v)) * scale + 5.0).astype(np.float32))
    if ties:
        logits = logits.round()
    logits[1, -1] = 60.0
    norm = log_norm(logits)
    found = top_p(logits, p, limit, log_norm=norm)
    assert_same_of_many(found, top_p(logits.repeat(3, 1), p, limit, log_norm=norm.repeat(3)))
    logp = (logits - norm[:, None]).clamp(max=0.0).numpy()
    for row in range(3):
        order = np.lexsort((np.arange(v), -logits[row].numpy()))
        size = int((np.cumsum(np.exp(logp[row, order].astype(np.float64))) < p).sum()) + 1
        kept = size if limit is None else min(size, limit)
        assert found.ids[row, found.mask[row]].tolist() == order[:kept].tolist()
        assert np.array_equal(found.logp[row, found.mask[row]].numpy(), logp[row, order[:kept]])
        assert bool(found.cut[row]) == (size > kept)


def test_the_norm_of_logits_by_hand() -> None:
    """log(e^0 + e^(log 3)) = log 4, for half precision as well."""
    logits = torch.tensor([[0.0, math.log(3.0), -math.inf], [2.0, -math.inf, -math.inf]])
    torch.testing.assert_close(log_norm(logits), torch.tensor([math.log(4.0), 2.0]))
    assert log_norm(torch.zeros(2, 3, 8, dtype=torch.bfloat16)).tolist() == [[pytest.approx(math.log(8.0))] * 3] * 2
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match="row 1"):
            log_norm(torch.tensor([[0.0], [bad]]))


def test_masses_by_hand() -> None:
    found = top_p(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6, 3)
    assert found.ids.tolist() == [1, 2, 0]
    assert found.mask.tolist() == [True, True, False]
    assert found.sizes == 2
    torch.testing.assert_close(found.log_mass, torch.tensor(0.8).log())
    torch.testing.assert_close(found.lost_mass, torch.tensor(0.2))
    assert not found.cut


def test_a_cut_off_is_marked_and_counts_the_lost_mass() -> None:
    found = top_p(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01]]).log(), 0.9, 2)
    assert found.cut.tolist() == [True, False]
    assert found.ids.tolist() == [[0, 1], [0, 0]]
    torch.testing.assert_close(found.lost_mass, torch.tensor([0.3, 0.03]))


def test_p_of_one_keeps_the_vocabulary_and_overrides_the_cut_off() -> None:
    found = top_p(torch.tensor([0.5, 0.0, 0.5]).log(), 1.0, 1)
    assert found.ids.tolist() == [0, 2, 1]
    assert found.mask.all() and not found.cut
    torch.testing.assert_close(found.lost_mass, torch.tensor(0.0))


def test_leading_shapes_are_kept() -> None:
    logp = normalise(torch.randn(2, 3, 4, 200, generator=torch.Generator().manual_seed(0)) * 3)
    found = top_p(logp, 0.9, 16)
    assert found.ids.shape == found.logp.shape == found.mask.shape == (2, 3, 4, 16)
    assert found.cut.shape == found.sizes.shape == found.log_mass.shape == (2, 3, 4)
    alone = top_p(logp[1, 2, 3], 0.9, 16)
    assert torch.equal(alone.ids, found.ids[1, 2, 3])


@pytest.mark.parametrize("p", [0.0, -0.1, 1.01, math.nan])
def test_a_mass_outside_its_range_is_refused(p: float) -> None:
    with pytest.raises(InputError, match=r"outside \(0, 1\]"):
        top_p(torch.zeros(1), p)


def test_broken_rows_are_refused() -> None:
    with pytest.raises(InputError, match="max_candidates = 0"):
        top_p(torch.zeros(1), 0.5, 0)
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="row 1"):
            normalise(torch.tensor([[0.0, 1.0], [0.0, bad]]))
    with pytest.raises(InputError, match="all -inf"):
        normalise(torch.full((1, 3), -math.inf))
    for row in ([math.nan, 0.0], [-math.inf, -math.inf]):
        with pytest.raises(InputError, match="row 0"):
            top_p(torch.tensor([row]), 0.9)
