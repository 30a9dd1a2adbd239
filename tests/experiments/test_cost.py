"""What running a model costs: prices by hand, operations of a known model, and figures that a run carries."""

from __future__ import annotations

import math

import pytest
import torch

from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from experiments.bench.env import bench_model
from experiments.cost import check_price, costs, price_of_million, with_price
from experiments.flops import counted

PROMPTS = [[3, 4, 5], [6, 7]]


def test_price_by_hand() -> None:
    """3.6 an hour is .001 a second; 250 tokens a second take 4,000 seconds for a million: 4."""
    assert price_of_million(3.6, 250.0) == pytest.approx(4.0)
    assert with_price({"tokens_per_second": 250.0}, 3.6)["price_of_million"] == pytest.approx(4.0)
    assert with_price({"tokens_per_second": 250.0}, None) == {"tokens_per_second": 250.0}


@pytest.mark.parametrize("price", [0.0, -1.0, math.nan])
def test_a_price_is_above_0(price: float) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        check_price(price)


def test_operations_by_hand_and_by_torch() -> None:
    """Width 16, one layer of 8 heads, 43 between, 50 tokens: 4·16² + 3·16·43 + 50·16 weights multiply, two each.

    Torch's counter sees the same, and the two products of attention beside them.
    """
    student = bench_model(50, width=16, layers=1, tied=True)
    own, theirs = costs(student, PROMPTS, HFTeacher(bench_model(50, width=32, layers=2), None), tokens=3)
    weights = 4 * 16 * 16 + 3 * 16 * 43 + 50 * 16
    assert own["flops_per_token"] == 2 * weights
    _, seen = counted(lambda: student(input_ids=torch.tensor([[3]]), use_cache=False))
    assert seen - own["flops_per_token"] == 2 * 2 * 16
    assert theirs["flops_per_token"] > own["flops_per_token"]
    for figures in (own, theirs):
        assert figures["first_token_ms_1"] > 0 and figures["first_token_ms_16"] > 0
        assert figures["token_ms_1"] >= 0 and figures["token_ms_16"] >= 0
    floats = sum(value.numel() for value in student.parameters())
    assert own["peak_memory_mb"] >= 4 * floats / 2**20
