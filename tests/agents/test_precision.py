"""Half precision and layers that are recomputed: what a student then computes, and what stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from agents import make_agent
from agents.errors import InputError
from agents.recompute import recomputing
from agents.student import Student
from agents.vocabulary import Head
from tests.agents.test_micro_batch import batch, student
from tests.agents.test_student import model
from tests.agents.test_vocabulary import WIDE, gradients

ARCHITECTURES = ["llama", "gpt2", "qwen3", "opt", "gpt_neox"]


@pytest.mark.parametrize("head", [Head("all"), Head("candidates", 7)], ids=["all", "candidates"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_half_precision_multiplies_in_half_and_keeps_whole_weights(kind: str, head: Head) -> None:
    whole, half = (Student(model(kind, WIDE), head=head) for _ in range(2))
    half.precision, seen = torch.bfloat16, set()
    for module in half.model.modules():
        if isinstance(module, nn.Linear) and module is not half.model.get_output_embeddings():
            module.register_forward_hook(lambda module, given, made: seen.add(made.dtype))
    one, other = whole.scores(batch(), full=False), half.scores(batch(), full=False)
    assert seen <= {torch.bfloat16}
    for name, value in other.fields().items():
        assert value.dtype == torch.float32
        assert 0 < float((value - one.fields()[name]).abs().max()) < 0.2 or name == "value"
    loss = -other.log_policy[..., 0].mean()
    assert all(gradient.dtype == torch.float32 for gradient in gradients(half, loss))
    assert {weight.dtype for weight in half.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["soft_q", "kd", "value_tilt"])
def test_an_agent_learns_in_half_precision_nearly_as_in_whole(name: str) -> None:
    found = []
    for precision in (torch.float32, torch.bfloat16):
        own = Student(model("llama", WIDE))
        own.precision = precision
        agent = make_agent(name, own, total_updates=20, lr=0.01, **({"gamma": 0.5} if name != "kd" else {}))
        episodes = batch() if name != "kd" else batch().discounted(1.0)
        found.append([agent.update(episodes)["loss"] for _ in range(20)])
    whole, half = found
    assert half == pytest.approx(whole, rel=0.05)
    assert whole[-1] < 0.9 * whole[0] or name == "value_tilt"


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "qwen2", "gemma2"])
def test_recomputed_layers_give_the_same_gradients_and_keep_less(kind: str) -> None:
    losses, slopes, kept = [], [], []

    def count(value: torch.Tensor) -> torch.Tensor:
        kept[-1] += value.numel()
        return value

    for change in (lambda found: found, recomputing):
        own = student(Head("all"), 0, kind)
        own.model = change(own.model)
        agent = make_agent("soft_q", own, total_updates=10, gamma=0.5)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            loss, _ = agent.loss(batch())
        losses.append(loss.detach())
        slopes.append(gradients(own, loss))
    torch.testing.assert_close(*losses)
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)
    assert kept[1] < 0.75 * kept[0]


def test_a_copy_recomputes_with_its_own_weights() -> None:
    own = Student(recomputing(model("llama", WIDE)))
    twin, before = own.copy(), own.scores(batch()).value
    torch.nn.init.ones_(own.value_head.weight)
    with torch.no_grad():
        for weight in own.model.parameters():
            weight.add_(1.0)
    torch.testing.assert_close(twin.scores(batch()).value, before)
    assert sorted(own.state_dict()) == sorted(Student(model("llama", WIDE)).state_dict())


def test_a_model_without_layers_that_say_so_is_refused() -> None:
    class Plain(nn.Module):
        pass

    with pytest.raises(InputError, match="Plain names no layers to recompute; leave --gradient-checkpointing out"):
        recomputing(Plain())


def test_leaves_are_packed_in_half_precision_too(recwarn: Any) -> None:
    own = Student(model("llama", WIDE))
    own.precision = torch.bfloat16
    episodes = batch()
    mask = episodes.mask & episodes.states[..., None]
    half = own.leaves(episodes, episodes.ids, mask)
    own.precision = torch.float32
    whole = own.leaves(episodes, episodes.ids, mask)
    assert not [warning for warning in recwarn if "packed" in str(warning.message)]
    assert 0 < float((half.leaf_hidden - whole.leaf_hidden).abs().max()) < 0.2
