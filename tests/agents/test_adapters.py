"""Low-rank adapters: they begin as the model, they alone learn, and what is saved is an ordinary model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import make_agent
from agents.adapters import adapted, merged
from agents.episodes import Episodes
from agents.errors import InputError
from agents.student import Student
from tests.agents.test_episodes import fields
from tests.agents.test_optimiser import goes_on
from tests.agents.test_student import model

WIDE = 40


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2"])
def test_they_begin_as_the_model_learn_alone_and_are_merged(kind: str, tmp_path: Path) -> None:
    episodes, plain = Episodes(**fields()).discounted(1.0), Student(model(kind, WIDE))
    own = Student(model(kind, WIDE))
    own.model = adapted(own.model, 2)
    torch.testing.assert_close(own.scores(episodes).log_policy, plain.scores(episodes).log_policy, atol=1e-6, rtol=0)
    learn = [name for name, value in own.named_parameters() if value.requires_grad]
    assert learn and all("lora_" in name or name.startswith("value_head") for name in learn)
    agent = make_agent("soft_q", own, total_updates=10, lr=0.05, warmup=0)
    for _ in range(3):
        agent.update(episodes)
    with torch.no_grad():
        learnt = own.scores(episodes).log_policy
    assert (learnt - plain.scores(episodes).log_policy).abs().max() > 1e-3
    own.save(tmp_path)
    assert hasattr(own.model, "merge_and_unload")  # it may go on learning
    for saved in (Student(AutoModelForCausalLM.from_pretrained(tmp_path)), Student.load(tmp_path)):
        assert not [name for name, _ in saved.model.named_parameters() if "lora" in name]
        torch.testing.assert_close(saved.scores(episodes).log_policy, learnt, atol=1e-5, rtol=0)
    own.model = merged(own.model)
    assert type(own.model) is type(plain.model) and merged(own.model) is own.model
    torch.testing.assert_close(own.scores(episodes).log_policy, learnt, atol=1e-5, rtol=0)


def test_they_go_on_as_if_they_had_not_stopped(tmp_path: Path) -> None:
    episodes, agents = Episodes(**fields()).discounted(1.0), []
    for _ in range(2):
        own = Student(adapted(model("llama", WIDE), 2))
        agents.append(make_agent("soft_q", own, total_updates=10, lr=0.05, warmup=0))
    goes_on(*agents, episodes, tmp_path)


def test_what_is_drawn_follows_from_the_seed_alone() -> None:
    found = []
    for other, seed in enumerate((3, 3, 4)):
        whole = model("llama", WIDE)
        torch.manual_seed(other)
        after = torch.rand(1)
        torch.manual_seed(other)
        own = adapted(whole, 1, seed)
        assert torch.rand(1) == after  # nothing else is drawn otherwise
        found.append(own.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_product_by_hand() -> None:
    """One layer of one rank: W + 2 B A."""
    whole = model("llama", WIDE)
    own = adapted(model("llama", WIDE), 1)
    layer = own.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.5)
    product = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    found = merged(own).model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(found, whole.model.layers[0].self_attn.q_proj.weight + product)


def test_what_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="rank 0 of the adapters must be at least 1"):
        adapted(model("llama", WIDE), 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'tdistill\[lora\]'"):
        adapted(model("llama", WIDE), 1)
