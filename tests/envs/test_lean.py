"""The parts of a written-out step that hold something of their own: copied weights, a table of angles."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from envs.lean import FEW, LeanStep, Projections, Rotary
from tests.envs.models import tiny_config, tiny_model


@torch.no_grad()
def test_copied_projections_are_the_modules_own_and_follow_them() -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(6, 4), nn.Linear(6, 3, bias=False), nn.Linear(6, 2)]
    ours, state = Projections(modules, copied=True), torch.randn(2, 6)

    def agree() -> bool:
        return all(torch.allclose(one, own(state), atol=1e-6) for one, own in zip(ours(state), modules, strict=True))

    assert agree()
    modules[1].weight.mul_(2.0)
    assert agree()
    modules[2].bias.add_(1.0)
    assert agree()
    modules[0].weight = nn.Parameter(torch.randn(4, 6))
    assert agree()


@torch.no_grad()
def test_a_projection_with_a_hook_is_called() -> None:
    module, state = nn.Linear(6, 4), torch.randn(2, 6)
    module.register_forward_hook(lambda own, inputs, output: output + 1.0)
    assert torch.equal(Projections([module], copied=True)(state)[0], module(state))


def test_only_walks_of_few_rows_copy() -> None:
    model = tiny_model("llama")
    assert LeanStep(model, FEW).head.copied and not LeanStep(model, FEW + 1).head.copied


@torch.no_grad()
@pytest.mark.parametrize("rope", [{}, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}])
def test_angles_are_those_of_the_module_at_every_position(rope: dict[str, object]) -> None:
    config = tiny_config("llama")
    config.rope_parameters = {"rope_theta": 10_000.0, "rope_type": "default", **rope}
    module = LlamaRotaryEmbedding(config)
    ours, state = Rotary(module), torch.zeros(2, 16)
    assert ours.fixed == (rope.get("rope_type") != "dynamic")
    for positions in (torch.tensor([0, 5]), torch.tensor([3, 70]), torch.tensor([200, 1])):
        cos, sin = ours(state, positions, int(positions.max()) + 1).chunk(2, -1)
        own_cos, own_sin = module(state, positions[:, None])
        half = sin.shape[-1] // 2
        signed = torch.cat([-own_sin[..., :half], own_sin[..., half:]], -1)
        torch.testing.assert_close((cos, sin), (own_cos, signed))
