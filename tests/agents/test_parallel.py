"""Two processes give the weights that one gives with the whole batch, whatever the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from agents import make_agent, parallel
from agents.errors import InputError
from agents.vocabulary import Head
from tests.agents.test_micro_batch import AGENTS, batch, student

HEADS = {"all": Head("all"), "candidates": Head("candidates", 7), "resting": Head("candidates", 7, resting=True)}
ARMS: list[tuple[str, dict[str, Any], str, int]] = [
    *((name, settings, "all", 0) for name, settings in AGENTS),
    ("soft_q", {"gamma": 0.5}, "candidates", 0),
    ("soft_q", {"gamma": 0.5}, "candidates", 1),
    ("soft_q", {"gamma": 0.5}, "resting", 0),
    ("soft_q", {"gamma": 0.5, "shuffle": True}, "all", 2),
    ("actor_critic", {}, "all", 0),
    ("value_tilt", {"gamma": 0.5, "critic_alone": 2}, "all", 0),
]
UPDATES = 20


def learn(arm: int) -> list[torch.Tensor]:
    """The weights after some updates, on five episodes a batch: a share of three and one of two."""
    name, settings, head, micro_batch = ARMS[arm]
    torch.manual_seed(0)
    own = student(HEADS[head], micro_batch)
    agent = make_agent(name, own, total_updates=UPDATES, lr=0.01, warmup=0, seed=3, **settings)
    episodes = batch() if "gamma" in settings else batch().discounted(1.0)
    if agent.data == "student":
        episodes = agent.receive(episodes)
    for _ in range(UPDATES):
        agent.updates = 0 if agent.data == "student" else agent.updates  # one walk, always fresh
        agent.update(episodes)
    return [weight.detach() for weight in agent.trainables()]


def work(rank: int, count: int, place: str) -> None:
    """What each process does: learn every arm, and try what the processes say to one another."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=count)
    for arm in range(len(ARMS)):
        torch.save(learn(arm), Path(place) / f"{arm}-{rank}.pt")
    own = torch.arange(10.0).view(5, 2)[parallel.share(5)].requires_grad_()
    found = parallel.gathered(own, 5)
    torch.autograd.backward((found * torch.arange(10.0).view(5, 2)).sum())
    heard = parallel.first(lambda: {"from": rank})
    with pytest.raises(InputError, match="said by 0"):
        parallel.first(lambda: complain(rank))
    torch.save((found.detach(), own.grad, heard, parallel.rank(), parallel.size()), Path(place) / f"said-{rank}.pt")
    dist.destroy_process_group()


def complain(rank: int) -> None:
    raise InputError(f"said by {rank}")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left."""
    place = tmp_path_factory.mktemp("two")
    processes.spawn(work, (2, str(place)), nprocs=2)
    return place


@pytest.mark.parametrize("arm", range(len(ARMS)), ids=lambda arm: "-".join(map(str, (ARMS[arm][0], *ARMS[arm][2:]))))
def test_two_processes_learn_what_one_learns(two: Path, arm: int) -> None:
    first, second = (torch.load(two / f"{arm}-{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = learn(arm)
    torch.manual_seed(0)
    begun = student(HEADS["all"], 0).parameters()
    for one, other, mine in zip(first, second, alone, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
        torch.testing.assert_close(one, mine, atol=1e-5, rtol=0)
    assert max(float((now - before).abs().max()) for now, before in zip(alone, begun, strict=False)) > 0.01


def test_what_processes_say_to_one_another(two: Path) -> None:
    for rank in (0, 1):
        found, gradient, heard, own, size = torch.load(two / f"said-{rank}.pt", weights_only=True)
        assert (own, size, heard) == (rank, 2, {"from": 0})
        torch.testing.assert_close(found, torch.arange(10.0).view(5, 2))
        rows = [[0, 1, 2], [3, 4]][rank]
        torch.testing.assert_close(gradient, 2 * torch.arange(10.0).view(5, 2)[rows])


def test_a_process_alone_shares_nothing() -> None:
    value = torch.ones(3, 2)
    assert (parallel.rank(), parallel.size(), parallel.first(lambda: "word")) == (0, 1, "word")
    assert parallel.gathered(value, 3) is value
    assert parallel.share(3).tolist() == [0, 1, 2]
