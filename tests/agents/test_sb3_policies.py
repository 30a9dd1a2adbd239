"""A student inside Stable-Baselines3 says what it says outside, is saved and loaded, and learns by token ids."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.utils import obs_as_tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import make_loop_agent
from agents.errors import InputError
from agents.sb3_buffers import SoftRolloutBuffer
from agents.sb3_dqn import MaskableDQN, SoftDQN
from agents.sb3_policies import (
    PADDING,
    MaskableStudentActorCriticPolicy,
    StudentActorCriticPolicy,
    StudentQPolicy,
    StudentSpec,
    export,
)
from agents.student import Student
from envs.hf_teacher import HFTeacher
from envs.sb3 import TopPVecEnv
from envs.table_teacher import TableTeacher
from tests.envs.models import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
SMALL = {"n_steps": 4, "batch_size": 8, "n_epochs": 1}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "a2c": (A2C, StudentActorCriticPolicy, {"n_steps": 4}),
    "ppo": (PPO, StudentActorCriticPolicy, SMALL),
    "maskable_ppo": (MaskablePPO, MaskableStudentActorCriticPolicy, SMALL),
    "dqn": (MaskableDQN, StudentQPolicy, {"learning_starts": 0, "batch_size": 8, "buffer_size": 64}),
    "soft_dqn": (SoftDQN, StudentQPolicy, {"learning_starts": 0, "batch_size": 8, "buffer_size": 64}),
}


@cache
def teacher() -> HFTeacher:
    model = tiny_model("llama")
    model.get_output_embeddings().weight.data.mul_(6.0)  # nuclei of different sizes
    return HFTeacher(model, tiny_tokenizer())


def env_of(rows: int = 4) -> TopPVecEnv:
    prompts = [[5], [6, 7, 8], [9, 10]]
    env = TopPVecEnv(rows, teacher=teacher(), prompts=prompts, top_p=0.5, max_candidates=24, max_new_tokens=5)
    env.seed(0)
    return env


def student_of(arch: str = "gpt2") -> Student:
    student = Student(tiny_model(arch, seed=1), tiny_tokenizer())
    torch.manual_seed(2)
    torch.nn.init.normal_(student.value_head.weight)
    return student


def model_of(kind: str, student: Student, env: Any = None, **changes: Any) -> Any:
    algorithm, policy, settings = KINDS[kind]
    kwargs = {"student": StudentSpec(student), **changes}
    return algorithm(policy, env or env_of(), policy_kwargs=kwargs, seed=0, device="cpu", **settings)


def observed(steps: int = 3) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    env = env_of(6)
    observations = env.reset()
    for _ in range(steps):
        observations, *_ = env.step(np.zeros(6, dtype=np.int64))
    return observations, obs_as_tensor(observations, torch.device("cpu"))


def by_hand(student: Student, observations: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the candidates and values, text by text, from the plain model."""
    logits = torch.full(observations["ids"].shape, PADDING)
    values = torch.zeros(len(logits))
    for row, length in enumerate(observations["length"]):
        text = torch.from_numpy(observations["context"][row, :length]).long()[None]
        out = student.model(input_ids=text, output_hidden_states=True)
        mask = observations["mask"][row].astype(bool)
        logits[row, mask] = out.logits[0, -1][torch.from_numpy(observations["ids"][row, mask]).long()]
        values[row] = student.value_head(out.hidden_states[-1][0, -1])[0]
    return logits, values


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_policy_says_what_the_student_says_at_the_candidates_ids(kind: str, arch: str) -> None:
    student = student_of(arch)
    policy = model_of(kind, student).policy
    observations, tensors = observed()
    logits, values = by_hand(student, observations)
    mask = tensors["mask"].bool()
    assert policy.student is student and mask.sum(1).min() < mask.sum(1).max()
    near = {"atol": 1e-5, "rtol": 1e-6}
    if kind.endswith("dqn"):
        log_policy = logits.log_softmax(-1)
        for net in (policy.q_net, policy.q_net_target):
            q = net(tensors)
            torch.testing.assert_close(q[mask], (values[:, None] + log_policy)[mask], **near)
            assert (q[~mask] == PADDING).all()
        return
    own, own_values = policy.scores(tensors)
    torch.testing.assert_close(own, logits, **near)
    torch.testing.assert_close(own_values, values, **near)
    torch.testing.assert_close(policy.predict_values(tensors)[:, 0], values, **near)
    distribution = policy.get_distribution(tensors).distribution
    torch.testing.assert_close(distribution.logits[mask], logits.log_softmax(-1)[mask], **near)
    assert (distribution.probs[~mask] == 0).all()
    slots = distribution.probs.argmax(1)
    value, log_prob, entropy = policy.evaluate_actions(tensors, slots)
    torch.testing.assert_close(log_prob, logits.log_softmax(-1).gather(1, slots[:, None])[:, 0], **near)
    inside = torch.where(mask, logits.softmax(-1) * logits.log_softmax(-1), 0.0)
    torch.testing.assert_close(entropy, -inside.sum(-1), **near)
    assert value.shape == (6, 1)


@torch.no_grad()
def test_masks_from_outside_only_take_away() -> None:
    policy = model_of("maskable_ppo", student_of()).policy
    _, tensors = observed()
    first = np.zeros(tensors["mask"].shape, dtype=bool)
    first[:, :1] = True
    assert (policy(tensors, action_masks=first)[0] == 0).all()
    everything = policy.get_distribution(tensors, action_masks=np.ones_like(first)).distribution.probs
    assert (everything[~tensors["mask"].bool()] == 0).all()


def test_the_values_leave_the_trunk_alone_unless_told() -> None:
    for shared in (False, True):
        policy = model_of("ppo", student_of("llama"), shared_trunk=shared).policy
        _, tensors = observed()
        policy.scores(tensors)[1].sum().backward()
        trunk = [value.grad for value in policy.student.model.parameters() if value.grad is not None]
        assert any(bool(gradient.any()) for gradient in trunk) == shared
        assert policy.student.value_head.weight.grad is not None


def test_there_is_no_dropout_while_it_learns() -> None:
    student = student_of("gpt2")
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    policy = model_of("ppo", student).policy
    policy.set_training_mode(True)
    _, tensors = observed()
    assert torch.equal(policy.scores(tensors)[0], policy.scores(tensors)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_zip_takes_the_same_slots(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, student_of())
    model.learn(32)
    model.save(tmp_path / "model.zip")
    observations, _ = observed()
    again = type(model).load(tmp_path / "model.zip", device="cpu")
    slots = [one.predict(observations, deterministic=True)[0] for one in (model, again)]
    np.testing.assert_array_equal(*slots)
    assert again.policy.student is not model.policy.student
    if kind.endswith("dqn"):
        for one, other in zip(model.q_net_target.parameters(), again.q_net_target.parameters(), strict=True):
            assert torch.equal(one, other)
    again.set_env(env_of())
    again.learn(16, reset_num_timesteps=False)
    assert all(torch.isfinite(value).all() for value in again.policy.parameters())


def test_a_zip_is_read_in_another_process_and_exported_there(tmp_path: Path) -> None:
    model = model_of("maskable_ppo", student_of("llama"))
    model.learn(32)
    model.save(tmp_path / "model.zip")
    observations, _ = observed()
    np.savez(tmp_path / "observations.npz", **observations)
    code = (
        "import sys, numpy as np\n"
        "from sb3_contrib import MaskablePPO\n"
        "from agents.sb3_policies import export\n"
        f"model = MaskablePPO.load({str(tmp_path / 'model.zip')!r}, device='cpu')\n"
        f"observations = dict(np.load({str(tmp_path / 'observations.npz')!r}))\n"
        "print(model.predict(observations, deterministic=True)[0].tolist())\n"
        f"export(model, {str(tmp_path / 'student')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    slots, _ = model.predict(observations, deterministic=True)
    assert str(slots.tolist()) in done.stdout
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    text = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(plain(text).logits, model.policy.student.model(text).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab() == tiny_tokenizer().get_vocab()


def test_a_policy_alone_is_saved_and_loaded(tmp_path: Path) -> None:
    _, tensors = observed()
    for kind in ("ppo", "dqn"):
        policy = model_of(kind, student_of()).policy
        policy.save(str(tmp_path / "policy.pt"))
        again = type(policy).load(str(tmp_path / "policy.pt"), device="cpu")
        assert torch.equal(policy._predict(tensors, deterministic=True), again._predict(tensors, deterministic=True))


def test_a_spec_keeps_the_student_until_it_is_pickled() -> None:
    student = student_of()
    spec = StudentSpec(student)
    twin, restored = copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))
    assert spec.build() is student and copy.copy(spec).build() is student
    assert twin.build() is not student
    assert torch.equal(twin.build().value_head.weight, student.value_head.weight)
    empty = restored.build()
    assert empty.tokenizer.get_vocab() == student.tokenizer.get_vocab()
    assert all(torch.isnan(value).all() for value in empty.parameters())
    assert empty.state_dict().keys() == student.state_dict().keys()
    weights = sum(value.numel() * 4 for value in student.parameters())
    bare = StudentSpec(Student(student.model))
    assert len(pickle.dumps(bare)) < weights / 5


def test_cut_rows_are_bootstrapped_and_entropy_is_paid() -> None:
    """What a rollout holds: r − α log π, plus γ v(last state) where the row was cut, and nothing where it was over."""
    student = student_of()
    torch.nn.init.zeros_(student.value_head.weight)
    torch.nn.init.constant_(student.value_head.bias, 7.0)
    seen: list[tuple[np.ndarray, list[dict[str, Any]]]] = []

    class Noted(TopPVecEnv):
        def step_wait(self) -> Any:
            found = super().step_wait()
            seen.append((found[1].copy(), found[3]))
            return found

    env = Noted(4, teacher=teacher(), prompts=[[5], [6, 7, 8]], max_candidates=24, max_new_tokens=3)
    soft = {"rollout_buffer_class": SoftRolloutBuffer, "rollout_buffer_kwargs": {"alpha": 0.5}}
    kwargs = {"student": StudentSpec(student)}
    model = A2C(StudentActorCriticPolicy, env, n_steps=6, gamma=0.5, learning_rate=0.0, policy_kwargs=kwargs, **soft)
    model.learn(24)
    buffer, cut = model.rollout_buffer, 0
    for step, (rewards, infos) in enumerate(seen):
        log_prob = buffer.log_probs.reshape(4, 6)[:, step]  # flattened row by row
        bootstrap = np.array([0.5 * 7.0 * info.get("TimeLimit.truncated", False) for info in infos])
        cut += (bootstrap > 0).sum()
        paid = rewards + bootstrap - 0.5 * log_prob
        np.testing.assert_allclose(buffer.rewards[step], paid, atol=1e-5)
    assert cut > 0


def bad_spaces() -> list[tuple[Any, Any, str]]:
    good = env_of().observation_space.spaces
    lacking = spaces.Dict({key: value for key, value in good.items() if key != "ids"})
    whole = spaces.Dict(good)
    return [
        (lacking, spaces.Discrete(24), "no ids"),
        (spaces.Box(0, 1, (3,)), spaces.Discrete(24), "no context, length, ids, mask"),
        (whole, spaces.Discrete(25), "not one action a candidate"),
    ]


def test_bad_input_is_one_error(tmp_path: Path) -> None:
    student = student_of()
    spec = StudentSpec(student)
    for observation_space, action_space, says in bad_spaces():
        for policy in (StudentActorCriticPolicy, MaskableStudentActorCriticPolicy, StudentQPolicy):
            with pytest.raises(InputError, match=says):
                policy(observation_space, action_space, lambda _: 1e-4, student=spec)
    env = env_of()
    for kwargs, says in (
        ({"student": student}, r"StudentSpec\(student\)"),
        ({"student": spec, "head_scale": 0.0}, "head_scale is 0"),
        ({"student": spec, "alpha": 0.0}, "alpha is 0"),
    ):
        with pytest.raises(InputError, match=says):
            DQN(StudentQPolicy, env, policy_kwargs=kwargs, buffer_size=8)
    with pytest.raises(InputError, match="no student in"):
        StudentSpec(tmp_path)
    plain = PPO("MultiInputPolicy", env, n_steps=2, batch_size=8)
    with pytest.raises(InputError, match="only a student's policy"):
        export(plain, tmp_path)


TOKENS = 6


def latin() -> TableTeacher:
    """In the state after token s the tokens come in the order s+1, s+2, …: every token is in every slot once."""
    falling = np.array([0.3, 0.22, 0.18, 0.14, 0.1, 0.06])
    table = np.stack([np.roll(falling, state + 1) for state in range(TOKENS)])
    return TableTeacher(table, "latin")


def blind_student() -> Student:
    """A student that sees nothing of the text: all its states are one, so only token ids tell its actions apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    student = Student(LlamaForCausalLM(LlamaConfig(vocab_size=TOKENS, tie_word_embeddings=False, **sizes)))
    student.model.model.requires_grad_(False)
    student.model.get_input_embeddings().weight.data[:] = torch.linspace(-1, 1, 8)
    return student


def reached(name: str, monkeypatch: pytest.MonkeyPatch | None = None, **settings: Any) -> float:
    """Mean greedy reward, over all six states, of an agent paid 1 for token 3 and 0 for any other."""
    prompts = [[token] for token in range(TOKENS)]
    env = TopPVecEnv(
        12, teacher=latin(), prompts=prompts, top_p=1.0, max_new_tokens=1, reward=lambda _, reply: float(reply == "3")
    )
    if monkeypatch is not None:

        def by_slot(self: Student, context: Any, length: Any, ids: Any, detach: bool = False) -> Any:
            rows = torch.arange(len(context))
            logits, value = self._forward(context, rows, length - 1)
            return logits[:, : ids.shape[1]], value

        monkeypatch.setattr(Student, "at_ids", by_slot)
    agent = make_loop_agent(name, blind_student(), seed=0, gamma=0.0, num_envs=12, **settings)
    agent.learn(env, 12 * 150)
    env.set_options([{"prompt": prompts[row % TOKENS]} for row in range(12)])
    slots, _ = agent.model.predict(env.reset(), deterministic=True)
    return float(env.step(slots)[1].mean())


ARMS = [
    ("sb3:ppo", {"lr": 0.05, "alpha": 0.05, "n_steps": 8, "batch_size": 48, "n_epochs": 4, "head_scale": 1.0}),
    ("sb3:maskable_ppo", {"lr": 0.05, "alpha": 0.05, "n_steps": 8, "batch_size": 48, "n_epochs": 4, "head_scale": 1.0}),
    ("sb3:dqn", {"lr": 0.05, "alpha": 0.2, "epsilon": 0.5, "head_scale": 1.0}),
    ("sb3:soft_dqn", {"lr": 0.05, "alpha": 0.2, "head_scale": 1.0}),
]


@pytest.mark.parametrize(("name", "settings"), ARMS)
def test_a_score_that_only_token_ids_can_reach(name: str, settings: dict[str, Any]) -> None:
    """Every slot holds token 3 in one state of six: scores by slot earn 1/6, scores at the ids earn 1."""
    assert reached(name, **settings) == 1.0


def test_scores_by_slot_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings = ARMS[0]
    assert reached(name, monkeypatch, **settings) < 0.5
