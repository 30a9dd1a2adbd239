"""What holds for every agent that learns from episodes, as tests that run wherever the agent is written.

A package with an agent of its own inherits them, and pytest does the rest:

    from experiments.contract import AgentContract

    class TestMine(AgentContract):
        agent = "my_package.agents:Mine"

The data are exact: every path of a table teacher, weighted by its probability, so that an agent can reach the fixed
point it declares and its equations are told from their mistakes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from agents import agent_class, make_agent
from agents.base import Agent
from agents.episodes import Episodes
from agents.errors import DivergedError, InputError
from agents.student import build_student
from agents.table_student import TableStudent
from experiments.oracle import TOLERANCE, Case, Gap, case_of, looks_ahead, next_batch

try:
    import pytest
except ImportError as error:
    raise ImportError(
        "the contract tests need pytest, which tdistill itself does not: pip install 'tdistill[testing]'"
    ) from error


class AgentContract:
    """Tests of one agent; a subclass names it.

    `agent` is a registered name, an entry point or `module:Class`; `config` the settings it is tested with; `updates`
    and `lr` how long and how fast it may approach its fixed point, `tolerance` how near it must come.
    """

    agent: ClassVar[str]
    config: ClassVar[dict[str, Any]] = {}
    updates: ClassVar[int] = 250
    lr: ClassVar[float] = 0.3
    tolerance: ClassVar[Gap] = TOLERANCE

    @property
    def settings(self) -> dict[str, Any]:
        """What the agent is made with; γ = .8, where a wrong end or a wrong discount shows."""
        return {**({"gamma": 0.8} if looks_ahead(self.agent) else {}), **self.config}

    @property
    def case(self) -> Case:
        """The exact data."""
        return case_of(self.agent, self.settings)

    def fresh(self, seed: int = 0, **config: Any) -> Agent[Any]:
        """The agent around a uniform tabular student."""
        teacher = self.case.teacher
        student = TableStudent(teacher.vocab_size, teacher.order)
        options = {"lr": self.lr, **self.settings, **config}
        return make_agent(self.agent, student, seed=seed, total_updates=self.updates, **options)

    def learn(self, agent: Agent[Any], updates: int) -> list[dict[str, float]]:
        """The figures of so many updates on the exact data; a student walks anew as often as its agent asks."""
        every, figures = agent.walks.every if agent.walks else updates, list[dict[str, float]]()
        while len(figures) < updates:
            batch = next_batch(agent, self.case)
            figures += [agent.update(batch) for _ in range(min(every, updates - len(figures)))]
        return figures

    def test_its_config_is_frozen_and_checked(self) -> None:
        kind = agent_class(self.agent)
        config = kind.make_config(**self.settings)
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.lr = 1.0
        for wrong, says in (({"lr": 0.0}, "lr is 0.0"), ({"lrr": 1}, "did you mean lr"), ({"batch_size": "9"}, "'9'")):
            with pytest.raises(InputError, match=says):
                kind.make_config(**{**self.settings, **wrong})

    def test_it_says_where_it_ends_or_what_tests_it(self) -> None:
        agent = self.fresh()
        assert agent.name and agent.data in ("teacher", "student", "either", "mixed")
        assert agent.fixed_point is not None or agent.identity

    def test_its_fixed_point_is_reached(self) -> None:
        agent, case = self.fresh(), self.case
        if agent.fixed_point is None:  # its own tests show the identity it names
            return
        before = case.gap(agent)
        self.learn(agent, self.updates)
        after = case.gap(agent)
        assert before.policy + before.q > 10 * (self.tolerance.policy + self.tolerance.q), "a fresh student is there"
        assert after.policy < self.tolerance.policy and after.q < self.tolerance.q, f"{before} has become {after}"

    def test_an_update_returns_figures(self) -> None:
        (figures,) = self.learn(self.fresh(), 1)
        assert all(isinstance(value, float) for value in figures.values()) and {"loss", "lr"} <= figures.keys()

    def test_seeded_runs_are_equal(self) -> None:
        agents = [self.fresh(seed=7) for _ in range(2)]
        for agent in agents:
            self.learn(agent, 3)
        assert torch.equal(*map(weights, agents))

    def test_a_saved_agent_goes_on_as_if_never_stopped(self, tmp_path: Path) -> None:
        agent, again = self.fresh(), self.fresh(seed=1)
        self.learn(agent, 3)
        agent.save(tmp_path)
        again.load(tmp_path)
        assert torch.equal(weights(agent), weights(again))
        for one in (agent, again):
            self.learn(one, 3)
        assert torch.equal(weights(agent), weights(again)) and again.updates == 6

    def test_only_legal_slots_are_chosen(self) -> None:
        agent, batch, rng = self.fresh(), self.case.batch, np.random.default_rng(0)
        self.learn(agent, 1)
        observation = {
            "context": batch.tokens.numpy().astype(np.int32),
            "length": batch.prompt_length.numpy(),
            "ids": batch.ids[:, 0].numpy().astype(np.int32),
            "mask": batch.mask[:, 0].numpy().astype(np.int8),
        }
        rows = np.arange(len(batch))
        for draw in (None, rng, rng, rng):
            slots = agent.act(observation, draw)
            assert slots.shape == (len(batch),) and observation["mask"][rows, slots].all()
        single = {key: value[3] for key, value in observation.items()}
        assert int(agent.act(single)) == agent.act(observation)[3]
        ended = {**observation, "mask": np.zeros_like(observation["mask"])}
        assert (agent.act(ended, rng) == 0).all()

    def test_a_language_model_learns_by_the_same_calls(self, tmp_path: Path) -> None:
        student = build_student("tiny", tokenizer=None, vocab_size=self.case.teacher.vocab_size)
        before = weights_of(student)
        agent = make_agent(self.agent, student, total_updates=30, **{"lr": 3e-3, **self.settings})
        first, *_, last = [figures["loss"] for figures in self.learn(agent, 30)]
        assert not torch.equal(before, weights_of(student))
        # The loss of a learner on its own walk moves with the walk; only the teacher's data stand still.
        assert last < first or agent.data in ("student", "mixed")
        agent.save(tmp_path)
        agent.load(tmp_path)

    def test_episodes_of_another_discount_are_refused(self) -> None:
        if looks_ahead(self.agent):
            agent = self.fresh()
            with pytest.raises(InputError, match=r"discounts up to 0\.5"):
                agent.update(next_batch(agent, self.case).discounted(0.5))

    def test_a_missing_attachment_is_named(self) -> None:
        agent = self.fresh()
        held = {key: value for key, value in next_batch(agent, self.case).fields().items() if key != "teacher_logp"}
        if agent.needs:
            with pytest.raises(InputError, match="needs teacher_logits"):
                agent.update(Episodes(**held))
        else:
            agent.update(Episodes(**held))

    def test_a_loss_that_is_no_number_leaves_the_student_alone(self) -> None:
        agent = self.fresh()
        batch = next_batch(agent, self.case)
        with torch.no_grad():
            next(iter(agent.student.parameters())).fill_(torch.nan)
        before = weights(agent)
        with pytest.raises(DivergedError, match="update 1"):
            agent.update(batch)
        assert torch.equal(before.nan_to_num(9), weights(agent).nan_to_num(9)) and agent.updates == 0


def weights(agent: Agent[Any]) -> torch.Tensor:
    """All that the optimiser moves, in one vector."""
    return torch.cat([value.detach().flatten() for value in agent.trainables()])


def weights_of(student: Any) -> torch.Tensor:
    """A student's parameters, in one vector."""
    return torch.cat([value.detach().flatten() for value in student.parameters()])
