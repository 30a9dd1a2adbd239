"""Stable-Baselines3's learners are agents of a comparison, and end where they say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from agents import REGISTRY, agent_class, learner_class, make_agent, make_loop_agent
from agents.base import FixedPoint
from agents.errors import DivergedError, InputError
from agents.loop import LoopAgent
from agents.student import Student
from agents.table_student import TableStudent
from envs.errors import InputError as EnvInputError
from envs.exact import solve
from envs.sb3 import TopPVecEnv
from envs.table_teacher import toy
from experiments.__main__ import main
from experiments.compare import compare
from experiments.jobs import FailedCells
from experiments.loop import LoopTrainer
from experiments.table_data import candidates
from experiments.workspace import Workspace
from tests.experiments.runs import small

ROOT = Path(__file__).parents[2]
NAMES = tuple(name for name in REGISTRY if name.startswith("sb3:"))
P, GAMMA = 0.8, 0.8
QUICK = {"lr": 3e-3, "head_scale": 3.0}
ARMS: dict[str, dict[str, Any]] = {
    "sb3:a2c": QUICK,
    "sb3:ppo": {**QUICK, "n_steps": 32, "n_epochs": 4},
    "sb3:maskable_ppo": {**QUICK, "n_steps": 32, "n_epochs": 4},
    "sb3:dqn": QUICK,
    "sb3:soft_dqn": QUICK,
}


def little_student() -> Student:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Student(LlamaForCausalLM(LlamaConfig(vocab_size=6, **sizes)))


def toy_env(rows: int = 32, **changes: Any) -> TopPVecEnv:
    prompts = [[1], [2], [3], [4], [5]]
    return TopPVecEnv(rows, **{"teacher": toy(), "prompts": prompts, "top_p": P, "max_new_tokens": 8, **changes})


def gap(agent: Any) -> float:
    """Largest distance from the declared solution over the five states of a prompt: of the policy, or of a hard Q."""
    point = agent.fixed_point
    assert isinstance(point, FixedPoint)
    solution = solve(toy(), point.kind, top_p=P, gamma=point.gamma, alpha=point.alpha)
    sets, context, length = candidates(toy(), P), torch.arange(1, 6)[:, None], torch.ones(5, dtype=torch.int64)
    ids, mask = sets.ids[1:], sets.mask[1:]
    rows = torch.arange(5)[:, None].expand_as(ids)[mask]
    found = np.full((5, 6), np.nan)
    if point.kind == "hard":
        with torch.no_grad():
            q = agent.model.policy.q_net({"context": context, "length": length, "ids": ids, "mask": mask})
        found[rows, ids[mask]] = q[mask]
        return float(np.nanmax(np.abs(found - solution.q[1:])))
    found[rows, ids[mask]] = agent.student.log_policy(context, length, ids, mask).exp()[mask]
    return float(np.nanmax(np.abs(found - solution.policy[1:])))


@pytest.mark.parametrize("name", NAMES)
def test_the_declared_fixed_point_is_approached(name: str) -> None:
    agent = make_loop_agent(name, little_student(), seed=0, gamma=GAMMA, **ARMS[name])
    agent.learn(toy_env(), 9000)
    assert 8500 < agent.steps <= 9000 and agent.gradient_steps > 0
    assert gap(agent) < (0.1 if name == "sb3:dqn" else 0.05)  # nats of Q, and probability
    assert agent.episode_return < 0


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_is_saved_goes_on_and_is_seeded(name: str, tmp_path: Path) -> None:
    settings = {"n_steps": 4} if "n_steps" in learner_class(name).Config.__dataclass_fields__ else {}
    agents = [make_loop_agent(name, little_student(), seed=3, **settings) for _ in range(2)]
    for agent in agents:
        agent.learn(toy_env(8), 96)
    weights = [torch.cat([value.flatten() for value in agent.student.parameters()]) for agent in agents]
    assert torch.equal(*weights) and agents[0].steps == 96
    agents[0].save(tmp_path)
    again = make_loop_agent(name, little_student(), seed=3, **settings)
    again.load(tmp_path)
    assert again.steps == 96 and again.gradient_steps == agents[0].gradient_steps
    loaded = torch.cat([value.flatten() for value in again.student.parameters()])
    assert torch.equal(loaded, weights[0])
    again.learn(toy_env(8), 96)
    assert again.steps == 96
    again.learn(toy_env(8), 160)
    assert again.steps == 160
    assert not torch.equal(torch.cat([value.flatten() for value in again.student.parameters()]), loaded)
    other = make_loop_agent("sb3:a2c" if name != "sb3:a2c" else "sb3:dqn", little_student())
    with pytest.raises(InputError, match=f"saved by {name}"):
        other.load(tmp_path)


def test_all_agents_run_in_a_comparison(tmp_path: Path) -> None:
    """Same start, same measures, same budget of labels; a plain directory and event files of each."""
    settings = (*(f"{name}.num_envs=8" for name in NAMES), "sb3:ppo.steps=40", "sb3:a2c.lr=1e-3")
    config = small(tmp_path, agents=("bc", *NAMES), agent_config=settings)
    rows = compare(config)
    assert [row.agent for row in rows] == ["teacher", "start", "bc", *NAMES]
    budget = int(Workspace(config).episodes(0, 0.9).length.sum())
    for row in rows[3:]:
        taken = 40 if row.agent == "sb3:ppo" else budget
        assert 0.8 * taken < row.costs["teacher_tokens"] <= taken
        assert [point["updates"] for point in row.curve] == [0, 3, 6] and row.updates == 6
        assert row.measures.keys() == rows[2].measures.keys()
        assert row.curve[0]["forward_kl"] == rows[2].curve[0]["forward_kl"]
        assert row.curve[-1]["forward_kl"] != row.curve[0]["forward_kl"]
        short = row.agent.replace(":", ".")
        AutoModelForCausalLM.from_pretrained(config.out / "students" / f"{short}-seed0")
        events = EventAccumulator(str(config.out / "tensorboard" / f"{short}-p0.9-seed0"))
        tags = set(events.Reload().Tags()["scalars"])
        assert {"validation/forward_kl", "rollout/ep_rew_mean"} <= tags
    with (config.out / "results.csv").open(encoding="utf-8") as file:
        assert [line["agent"] for line in csv.DictReader(file)] == [row.agent for row in rows]
    result = json.loads((config.out / "cells/sb3.a2c-p0.9-seed0/result.json").read_text(encoding="utf-8"))
    assert result["settings"] == {"num_envs": 8, "lr": 1e-3} and result["gradient_steps"] > 0


@pytest.mark.parametrize("name", ["sb3:soft_dqn", "sb3:maskable_ppo"])
def test_a_stopped_cell_goes_on_with_what_is_left(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path, agents=(name,), agent_config=(f"{name}.num_envs=8",))
    if name == "sb3:maskable_ppo":
        config = replace(config, agent_config=(*config.agent_config, f"{name}.n_steps=4"))
    save, stops = LoopTrainer._checkpoint, []

    def stopped(self: LoopTrainer) -> None:
        save(self)
        if self.agent.steps >= 16:
            stops.append(self.agent.steps)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LoopTrainer, "_checkpoint", stopped)
        compare(config)
    cell = f"{name.replace(':', '.')}-p0.9-seed0"
    (place,) = (config.out / "cells" / cell / "checkpoints").iterdir()
    assert int(place.name) == stops[0] and (place / "model.zip").is_file()
    assert (place / "replay.pkl").is_file() == (name == "sb3:soft_dqn")
    with pytest.raises(EnvInputError, match="agent settings"):
        compare(replace(config, agent_config=(*config.agent_config, f"{name}.lr=0.1")))
    seen: list[int] = []
    kind = learner_class(name)
    assert issubclass(kind, LoopAgent)
    learn = kind.learn

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(self.steps)
        learn(self, *args, **kwargs)

    monkeypatch.setattr(kind, "learn", noted)
    row = compare(config)[-1]
    assert seen == stops and row.costs["teacher_tokens"] > stops[0]
    assert [point["updates"] for point in row.curve] == [0, 3, 6]
    assert not (config.out / "cells" / cell / "checkpoints").exists()


def test_weights_that_are_no_numbers_end_one_cell(tmp_path: Path) -> None:
    for name in ("sb3:ppo", "sb3:dqn"):
        agent = make_loop_agent(name, little_student(), lr=1e30, **({"n_steps": 4} if name == "sb3:ppo" else {}))
        with pytest.raises(DivergedError, match="lower lr"):
            agent.learn(toy_env(8), 320)
    config = small(
        tmp_path, agents=("sb3:a2c", "bc"), agent_config=("sb3:a2c.lr=1e30", "sb3:a2c.n_steps=1", "sb3:a2c.num_envs=8")
    )
    with pytest.raises(FailedCells, match=r"sb3.a2c-p0.9-seed0: sb3:a2c: its figures are no numbers"):
        compare(config)
    assert (config.out / "students/bc-seed0/config.json").is_file()


SETTINGS = [
    ({"lr": 0.0}, "lr is 0.0"),
    ({"gamma": 1.1}, "gamma is 1.1"),
    ({"steps": 0}, "steps is 0"),
    ({"num_envs": 0}, "num_envs is 0"),
    ({"lr_schedule": "cosine"}, "lr_schedule is 'cosine'"),
    ({"head_scale": 0.0}, "head_scale"),
    ({"max_grad_norm": 0.0}, "max_grad_norm"),
    ({"alpha": -1.0}, "alpha"),
    ({"n_steps": 0}, "n_steps"),
    ({"gae_lambda": 2.0}, "gae_lambda"),
    ({"ent_coef": -0.1}, "ent_coef"),
    ({"vf_coef": -0.1}, "vf_coef"),
    ({"batch_size": 1}, "batch_size"),
    ({"n_epochs": 0}, "n_epochs"),
    ({"clip_range": 0.0}, "clip_range"),
    ({"n_epoch": 3}, "did you mean n_epochs"),
]
Q_SETTINGS = [
    ({"alpha": 0.0}, "alpha"),
    ({"tau": 0.0}, "tau"),
    ({"buffer_size": 0}, "buffer_size"),
    ({"epsilon": 1.5}, "epsilon"),
    ({"learning_starts": -1}, "learning_starts"),
    ({"train_freq": 0}, "train_freq"),
]


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [("sb3:ppo", *case) for case in SETTINGS] + [("sb3:dqn", *case) for case in Q_SETTINGS],
)
def test_a_setting_out_of_range_is_named(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        learner_class(name).make_config(**settings)


def test_wrong_uses_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="owns its loop"):
        make_agent("sb3:ppo", TableStudent(3, 1), total_updates=1)
    with pytest.raises(InputError, match="learns from episodes"):
        make_loop_agent("bc", little_student())
    with pytest.raises(InputError, match="did you mean sb3:ppo"):
        agent_class("sb3:pppo")
    agent = make_loop_agent("sb3:ppo", little_student())
    with pytest.raises(InputError, match="nothing to save"):
        agent.save(tmp_path)
    with pytest.raises(InputError, match="no saved agent"):
        agent.load(tmp_path)
    with pytest.raises(InputError, match="less than one of 8 rows"):
        agent.learn(toy_env(8), 7)
    with pytest.raises(EnvInputError, match=r"sb3:ppo.gamma is the same for every agent"):
        compare(small(tmp_path, agents=("sb3:ppo",), agent_config=("sb3:ppo.gamma=0.9",)))


def test_plain_returns_and_bonuses_declare_no_fixed_point() -> None:
    for settings in ({"alpha": 0.0}, {"ent_coef": 0.01}):
        agent = make_loop_agent("sb3:ppo", little_student(), **settings)
        assert agent.fixed_point is None and agent.identity


def test_the_command_takes_their_names_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(tmp_path)
    words = ["--teacher", "table:toy", "--student", "tiny", "--prompts", str(config.prompts), "--out", str(config.out)]
    words += [
        "--agents",
        "sb3:a2c",
        "--seeds",
        "1",
        "--episodes",
        "8",
        "--updates",
        "2",
        "--eval-prompts",
        "2",
        "--threads",
        "1",
    ]
    assert main(["compare", *words, "--max-new-tokens", "4", "--agent-config", "sb3:a2c.lr=3e-4"]) == 0
    assert "sb3:a2c" in capsys.readouterr().out
    assert main(["compare", *words, "--agent-config", "sb3:a2c.rate=1"]) == 2
    assert "has no setting 'rate'" in capsys.readouterr().err


def test_without_stable_baselines3_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "from agents import learner_class, InputError\n"
        "for name in ('sb3:ppo', 'sb3:dqn'):\n"
        "    try: learner_class(name)\n"
        "    except InputError as error: print(error)\n"
        "try: import agents.sb3_policies\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.count("pip install tdistill[sb3]") == 3
