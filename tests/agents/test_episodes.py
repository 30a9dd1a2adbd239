"""The contract under each field of Episodes is enforced, and what makes new episodes of old ones keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.episodes import PAD_LOGP, Episodes
from agents.errors import InputError
from agents.replay import Replay


def fields() -> dict[str, Any]:
    """Two episodes: [5] 3 2 (ended by token 2) and [4 5] 7 (outside the set, then cut); K = 2, γ = .5."""
    half, pad = -0.6931472, PAD_LOGP
    return {
        "tokens": torch.tensor([[5, 3, 2], [4, 5, 7]]),
        "prompt_length": torch.tensor([1, 2]),
        "length": torch.tensor([2, 1]),
        "ids": torch.tensor([[[3, 6], [2, 0], [0, 0]], [[3, 6], [6, 3], [0, 0]]]),
        "logp": torch.tensor([[[half, half], [-0.1, pad], [pad, pad]], [[half, half], [half, half], [pad, pad]]]),
        "mask": torch.tensor([[[1, 1], [1, 0], [0, 0]], [[1, 1], [1, 1], [0, 0]]]).bool(),
        "slots": torch.tensor([[0, 0], [-1, -1]]),
        "rewards": torch.tensor([[half, -0.1], [-3.0, 0.0]]),
        "discounts": torch.tensor([[0.5, 0.0], [0.5, 0.0]]),
        "in_set": torch.tensor([[True, True], [False, False]]),
        "behaviour_logp": torch.tensor([[half, -0.1], [-3.0, 0.0]]),
        "teacher_logp_taken": torch.tensor([[half, -0.1], [-3.0, 0.0]]),
        "from_teacher": torch.tensor([True, False]),
    }


def test_what_is_derived() -> None:
    episodes = Episodes(**fields())
    assert len(episodes) == 2
    assert episodes.steps.tolist() == [[True, True], [True, False]]
    assert episodes.states.tolist() == [[True, True, False], [True, True, False]]
    assert episodes.terminated.tolist() == [True, False]
    assert episodes.alive.tolist() == [[True, False], [True, False]]
    assert episodes.taken.tolist() == [[3, 2], [7, 0]]
    assert episodes.step_weights.tolist() == [[1, 1], [1, 0]]
    torch.testing.assert_close(episodes.log_mass, torch.tensor([[0.0, -0.1, 0.0], [0.0, 0.0, 0.0]]), atol=1e-6, rtol=0)


BROKEN: list[tuple[str, tuple[int, ...], Any, str]] = [
    ("length", (0,), 3, "must lie in 1..T"),
    ("length", (0,), 1, "longest"),
    ("prompt_length", (1,), 0, "at least 1"),
    ("tokens", (0, 0), -1, "negative"),
    ("weights", (0,), 0.0, "positive"),
    ("logp", (0, 0, 0), float("nan"), "finite"),
    ("rewards", (0, 0), float("inf"), "finite"),
    ("mask", (1, 0), False, "before every step"),
    ("mask", (1, 2, 0), True, "beyond the end"),
    ("logp", (0, 1, 1), -5.0, "padding"),
    ("ids", (0, 1, 1), 4, "padding"),
    ("ids", (0, 0, 1), -4, "negative"),
    ("logp", (0, 0, 0), 0.5, "at most 0"),
    ("behaviour_logp", (0, 0), 0.5, "at most 0"),
    ("in_set", (1, 0), True, "slots >= 0"),
    ("slots", (0, 0), 2, "-1..K-1"),
    ("slots", (0, 0), 1, "slots are not token ids"),
    ("discounts", (0, 0), 1.5, r"\[0, 1\]"),
    ("discounts", (0, 1), 0.5, "terminates"),
    ("discounts", (1, 0), 0.0, "one γ"),
    ("rewards", (1, 1), -1.0, "beyond the end"),
]


@pytest.mark.parametrize(("name", "where", "value", "says"), BROKEN, ids=[f"{b[0]}-{b[3]}" for b in BROKEN])
def test_a_broken_contract_is_named(name: str, where: tuple[int, ...], value: Any, says: str) -> None:
    broken = fields()
    broken["weights"] = torch.ones(2)
    broken[name] = broken[name].clone()
    broken[name][where] = value
    with pytest.raises(InputError, match=rf"Episodes\.{name}.*{says}"):
        Episodes(**broken)


def test_a_prompt_that_leaves_no_room_for_its_reply_is_named() -> None:
    broken = fields()
    broken["prompt_length"] = broken["prompt_length"].clone()
    broken["prompt_length"][1] = 3
    with pytest.raises(InputError, match=r"Episodes\.tokens at \[1\]: must hold prompt and reply"):
        Episodes(**broken)


def test_a_taken_candidate_must_be_marked_inside() -> None:
    broken = fields()
    broken["slots"][0, 0], broken["in_set"][0, 0] = -1, False
    with pytest.raises(InputError, match="although the token taken is a candidate"):
        Episodes(**broken)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rewards": torch.zeros(2, 2, dtype=torch.float64)}, "torch.float32"),
        ({"rewards": torch.zeros(2)}, r"over \(BT\)"),
        ({"rewards": torch.zeros(3, 2)}, "B = 3"),
        ({"ids": torch.zeros(2, 2, 2, dtype=torch.int64)}, "N = 2"),
    ],
)
def test_a_wrong_shape_or_type_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Episodes(**{**fields(), **change})


def test_no_episode_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        Episodes(**{name: value[:0] for name, value in fields().items()})


def equal(one: Episodes, other: Episodes) -> bool:
    ours, theirs = one.fields(), other.fields()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_select_trims_and_concatenate_pads_back() -> None:
    episodes = Episodes(**fields())
    short = episodes.select([1])
    assert short.slots.shape == (1, 1) and short.tokens.shape == (1, 3) and short.mask.shape == (1, 2, 2)
    assert equal(Episodes.concatenate([episodes.select([0]), short]), episodes)
    assert equal(episodes.to("cpu"), episodes)


def test_concatenate_refuses_nothing_and_mixtures() -> None:
    episodes = Episodes(**fields())
    attached = Episodes(**fields(), teacher_logp=torch.zeros(2, 2, 8))
    with pytest.raises(InputError, match="no episodes"):
        Episodes.concatenate([])
    with pytest.raises(InputError, match="some of the episodes"):
        Episodes.concatenate([episodes, attached])


def test_another_discount_spares_the_terminal_step() -> None:
    assert Episodes(**fields()).discounted(0.25).discounts.tolist() == [[0.25, 0.0], [0.25, 0.0]]
    with pytest.raises(InputError, match="gamma is 2"):
        Episodes(**fields()).discounted(2)


def test_episodes_survive_the_disk(tmp_path: Path) -> None:
    episodes = Episodes(**fields())
    episodes.save(tmp_path / "deep" / "e.safetensors")
    assert equal(Episodes.load(tmp_path / "deep" / "e.safetensors"), episodes)
    assert equal(Episodes.load(tmp_path / "deep" / "e.safetensors", [1]), episodes.select([1]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["e.safetensors"]


def test_what_is_no_episodes_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("no")
    for path, says in ((tmp_path / "none", "no episodes at"), (tmp_path / "bad", "not an episodes file")):
        with pytest.raises(InputError, match=says):
            Episodes.load(path)


@pytest.mark.parametrize("spilled", [False, True])
def test_replay_draws_each_episode_once_a_pass(spilled: bool, tmp_path: Path) -> None:
    replay = Replay(8, seed=3, spill=tmp_path if spilled else None)
    for _ in range(2):
        replay.add(Episodes(**fields()))
    drawn = Episodes.concatenate([replay.sample(2) for _ in range(2)])
    assert sorted(drawn.length.tolist()) == [1, 1, 2, 2]
    assert len(replay.sample(6)) == 6


def test_replay_forgets_the_oldest_portion(tmp_path: Path) -> None:
    replay = Replay(3, spill=tmp_path)
    for _ in range(5):
        replay.add(Episodes(**fields()))
    assert len(replay) == 4 and len(list(tmp_path.iterdir())) == 2


def test_replay_goes_on_where_it_stood() -> None:
    replays = [Replay(8, seed=0) for _ in range(2)]
    for replay in replays:
        for _ in range(3):
            replay.add(Episodes(**fields()))
    replays[0].sample(2)
    replays[1].load_state_dict(replays[0].state_dict())
    assert all(equal(replays[0].sample(3), replays[1].sample(3)) for _ in range(4))


def test_replay_refuses() -> None:
    with pytest.raises(InputError, match="capacity is 0"):
        Replay(0)
    with pytest.raises(InputError, match="empty"):
        Replay(1).sample(1)
    other = Replay(1)
    other.add(Episodes(**fields()))
    with pytest.raises(InputError, match="holds 2 episodes, 0"):
        other.load_state_dict(Replay(1).state_dict())
