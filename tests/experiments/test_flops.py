"""Operations worked by hand, and two ways to them that must agree."""

import pytest
import torch

from envs.table_teacher import toy
from experiments.flops import counted, of_reading
from tests.envs.models import tiny_model


def test_a_linear_layer_by_hand() -> None:
    layer, rows = torch.nn.Linear(5, 7), torch.ones(3, 5)
    result, operations = counted(lambda: layer(rows).sum())
    assert result.shape == () and operations == 2 * 3 * 5 * 7
    _, operations = counted(lambda: layer(rows).sum().backward())
    assert operations == 2 * (2 * 3 * 5 * 7)  # forward, and the gradient of the weights; the rows ask for none


def test_attention_by_hand() -> None:
    query = torch.ones(1, 2, 4, 8, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    _, forward = counted(lambda: attend(query, query, query))
    assert forward == 2 * (2 * 2 * 4 * 4 * 8)  # scores and their mixture, in two heads
    _, both = counted(lambda: attend(query, query, query).sum().backward())
    assert both == forward + 5 * (2 * 2 * 4 * 4 * 8)  # the scores again, and two products for each of the two


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_is_reckoned_for_reading_is_what_is_counted_without_attention(kind: str) -> None:
    model, ids = tiny_model(kind), torch.ones(2, 6, dtype=torch.long)
    config = model.config
    with torch.no_grad():
        _, operations = counted(lambda: model(ids))
    attention = config.num_hidden_layers * 2 * (2 * 2 * 6 * 6 * config.hidden_size)
    assert operations == of_reading(model, 12) + attention


def test_a_table_multiplies_nothing() -> None:
    assert of_reading(toy(), 12) == 0.0
