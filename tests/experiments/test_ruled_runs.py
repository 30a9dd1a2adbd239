"""Runs under rules: what they refuse, the environment they make, and the study of what rules keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.errors import InputError
from envs.ruled import RuledVectorEnv
from envs.teachers import WARM_START, load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.config import DistillConfig
from experiments.limits import check_limits
from experiments.rules.rules import Rule, Rules, in_env, rules_for
from experiments.rules.run import lay_beside, reward_of, under_rules
from experiments.studies import critical_phrases
from experiments.studies.critical_phrases import CriticalPhrasesConfig, chosen, figures


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text("rules: [{name: r, must_not: [thank, thanks, your, the]}, {when: Halden, must: [recall notice]}]")
    return path


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rules_potential": 1.0}, "no phrases to pay for"),
        ({"rules": "given", "rules_potential": -1.0}, "rules_potential = -1"),
        ({"rules": "given"}, "--teacher-walk set"),
        ({"rules": "given", "teacher_walk": "set", "targets": "references"}, "leave --store"),
        ({"rules": "given", "teacher_walk": "set", "agent": "sb3:ppo"}, "sb3:ppo walks in an environment of its own"),
        ({"rules": "none", "teacher_walk": "set"}, "does not exist"),
    ],
)
def test_settings_that_would_not_keep_rules_are_refused(rules: Path, settings: dict[str, Any], said: str) -> None:
    if "rules" in settings:
        settings = {**settings, "rules": rules if settings["rules"] == "given" else rules.with_name("none.yaml")}
    with pytest.raises(InputError, match=said):
        check_limits(DistillConfig(**settings), (0.9,))


def test_a_run_walks_under_its_rules(rules: Path, tmp_path: Path) -> None:
    config = DistillConfig(rules=rules, rules_potential=2.0, teacher_walk="set", max_new_tokens=12)
    check_limits(config, (0.9,))
    teacher = load_teacher("embedded")
    kind, under = under_rules(config, teacher)
    assert kind is RuledVectorEnv and under_rules(DistillConfig(), teacher) == (TopPTokenVectorEnv, {})
    env = kind(4, teacher=teacher, prompts=["Hello, where is my order 482?"], top_p=0.9, max_new_tokens=12, **under)
    env.reset(seed=0)
    texts = set()
    for _ in range(24):  # the most probable replies begin with thanks
        _, _, over, cut, _ = env.step(np.zeros(4, dtype=np.int64))
        texts |= {teacher.decode(env.reply_tokens(row)).lower() for row in (over | cut).nonzero()[0]}
    assert texts and not any(word in text.split() for text in texts for word in ("thank", "thanks", "your", "the"))
    lay_beside(config, tmp_path)
    assert (tmp_path / "rules.yaml").read_text() == rules.read_text()
    assert (reward_of(config), reward_of(DistillConfig())) == ("shaped", "logprob")


def test_the_potential_is_what_is_said_of_the_phrases() -> None:
    rules = Rules((Rule("r", must=("ab ca", "b")),), [b"", b"ab", b" ", b"ca", b"b", b"."], [0], 12)
    allow, potential = in_env(rules, 8, 2.0)
    assert potential is not None and in_env(rules, 8, 0.0)[1] is None
    # Phrases of 5 and 1 bytes: nothing, 2/5, 3/5, all of the first; both.
    found = [potential("", reply) for reply in ([], [1], [1, 2], [1, 2, 3], [1, 2, 3, 2, 4], [1, 5])]
    assert found == pytest.approx([0.0, 0.8, 1.2, 2.0, 4.0, 0.0])
    assert allow("", [1, 2]).tolist() == [False, False, False, True, False, False, False, False]


def test_the_study_counts_what_the_masks_keep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(critical_phrases, "AMONG", 60)
    desk = tmp_path / "desk.yaml"
    desk.write_text("rules: [{contains: days ago, must: [we cannot refund]}, {contains: code, must: [recall notice]}]")
    prompts, teacher = chosen(2), load_teacher("embedded")
    assert ["critical" in prompt.tags for prompt in prompts] == [True, True, False, False]
    own = rules_for(desk, getattr(teacher, "tokenizer", None), teacher.eos_ids, 8)
    free, ruled = (figures(teacher, teacher, prompts, given, 8)[0] for given in (None, own))
    assert free.shape == (5, 2) and (free[0] == 0).all() and ruled[0, 0] == 1  # cut before the phrase, but for the rule
    assert (free[3:] == 8).all() and (ruled[2] == free[2]).all()
    monkeypatch.setattr(critical_phrases, "REPEATS", 1)
    said = critical_phrases.study(CriticalPhrasesConfig((WARM_START,), desk, count=2, max_new_tokens=8))
    assert "| difference" in said and "2 critical messages" in said
    with pytest.raises(InputError, match="lower it"):
        chosen(50)
