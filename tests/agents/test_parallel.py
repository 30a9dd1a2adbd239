"""Two processes give the weights that one gives with the whole batch, whatever the agent."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from safetensors import SafetensorError
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from agents import make_agent, parallel, sharding
from agents.errors import InputError
from agents.vocabulary import Head
from envs.candidates import top_p
from envs.hf_teacher import HFTeacher
from experiments.store.fingerprint import fingerprint
from tests.agents.test_micro_batch import AGENTS, batch, student
from tests.envs.models import tiny_model, tiny_tokenizer

HEADS = {"all": Head("all"), "candidates": Head("candidates", 7), "resting": Head("candidates", 7, resting=True)}
ARMS: list[tuple[str, dict[str, Any], str, int]] = [
    *((name, settings, "all", 0) for name, settings in AGENTS),
    ("soft_q", {"gamma": 0.5}, "candidates", 0),
    ("soft_q", {"gamma": 0.5}, "candidates", 1),
    ("soft_q", {"gamma": 0.5}, "resting", 0),
    ("soft_q", {"gamma": 0.5, "shuffle": True}, "all", 2),
    ("bc_filtered", {}, "all", 0),
    ("bellman_distill_released", {"gamma": 0.5}, "all", 0),
    ("sqil", {"gamma": 0.5}, "all", 0),
    ("minillm", {}, "all", 0),
    ("ppo", {}, "all", 0),
    ("actor_critic", {}, "all", 0),
    ("value_tilt", {"gamma": 0.5, "critic_alone": 2}, "all", 0),
]
UPDATES = 20
TEACHERS = ("llama", "gpt2")
TEXTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13]]


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
    for error in (SafetensorError("no space"), Stubborn("at all", rank)):
        with pytest.raises((SafetensorError, RuntimeError), match=r"no space|Stubborn: at all"):
            parallel.first(partial(fail, error))
    torch.save((found.detach(), own.grad, heard, parallel.rank(), parallel.size()), Path(place) / f"said-{rank}.pt")
    torch.save(averaged(rank), Path(place) / f"averaged-{rank}.pt")
    torch.save((norm(), parallel.total(rank + 1.5)), Path(place) / f"norm-{rank}.pt")
    torch.save([read(arch, rank) for arch in TEACHERS], Path(place) / f"read-{rank}.pt")
    dist.destroy_process_group()


def complain(rank: int) -> None:
    raise InputError(f"said by {rank}")


class Stubborn(Exception):
    """One that does not come back from a pickle."""

    def __init__(self, words: str, rank: int) -> None:
        super().__init__(words)


def fail(error: Exception) -> None:
    raise error


def averaged(rank: int) -> list[torch.Tensor | None]:
    """Gradients after averaging: one of both, one that the second process lacks, one that nobody has, two by rows."""
    both, lacking, nobody, rows, dense = (torch.zeros(3, 2, requires_grad=True) for _ in range(5))
    both.grad = torch.full((3, 2), 1.0 + 2 * rank)
    lacking.grad = None if rank else torch.full((3, 2), 4.0)
    rows.grad = torch.sparse_coo_tensor([[2 * rank]], [[2.0, 6.0]], (3, 2))
    dense.grad = None if rank else torch.tensor([[0.0, 0.0], [0.0, 8.0], [0.0, 0.0]])
    whole = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    whole.grad = torch.full((1,), 1.0 + rank, dtype=torch.float64)
    parameters = [both, lacking, nobody, rows, dense, whole]
    parallel.average_gradients(parameters, [rows, dense])
    return [parameter.grad for parameter in parameters]


def read(arch: str, rank: int) -> dict[str, Any]:
    """What a spread teacher gives: each process reads texts of its own; process 0 alone walks, fails, walks again."""
    teacher = HFTeacher(tiny_model(arch), tiny_tokenizer())
    whole = sum(value.nbytes for value in teacher.model.parameters())
    sharding.shard_frozen(teacher.model)
    sharding.shard_frozen(teacher.model)  # a second time changes nothing
    parts = sum(sharding.part_of(value).nbytes for value in teacher.model.parameters())
    first = parallel.first(lambda: walked(teacher))  # before all have run it together
    own = teacher.score(TEXTS[: 2 - rank])
    with pytest.raises(RuntimeError, match="half-way"):
        parallel.first(lambda: half_way(teacher))
    again = teacher.score(TEXTS[1 + rank :])
    digest = fingerprint(teacher)
    return {
        "digest": digest,
        "bytes": (parts, whole),
        "walks": (first, parallel.first(lambda: walked(teacher))),
        "scores": (own, again),
    }


def walked(teacher: HFTeacher) -> torch.Tensor:
    """A ragged walk of three rows, one of which ends early and is begun anew: the log-probabilities after each step."""
    walk = teacher.walk(3)
    walk.start([0, 1, 2], TEXTS)
    found = [walk.log_probs]
    for active in ([True, True, True], [True, False, True]):
        walk.step(found[-1].argmax(1), torch.tensor(active))
        found.append(walk.log_probs)
    walk.start([1], [[9, 8, 7]])
    return torch.stack([*found, walk.log_probs])


def half_way(teacher: HFTeacher) -> None:
    """A forward of process 0 that ends in its last layer."""

    def fail(*args: Any) -> None:
        raise RuntimeError("half-way")

    hook = [part for part in teacher.model.modules() if isinstance(part, GradientCheckpointingLayer)][-1]
    removed = next(hook.children()).register_forward_pre_hook(fail)
    try:
        teacher.score(TEXTS)
    finally:
        removed.remove()


def norm() -> torch.Tensor:
    """Of (3, 4), spread over both processes, and 12, which each has."""
    mesh = init_device_mesh("cpu", (2,))
    spread = distribute_tensor(torch.tensor([3.0, 4.0]), mesh, [Shard(0)])
    return sharding.norm_of([spread, torch.tensor([12.0])])


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


def test_gradients_are_averaged_by_hand(two: Path) -> None:
    for rank in (0, 1):
        both, lacking, nobody, rows, dense, whole = torch.load(two / f"averaged-{rank}.pt", weights_only=True)
        assert both.tolist() == [[2.0, 2.0]] * 3 and lacking.tolist() == [[2.0, 2.0]] * 3 and nobody is None
        assert rows.is_sparse and rows.coalesce().indices().tolist() == [[0, 2]]
        assert rows.to_dense().tolist() == [[1.0, 3.0], [0.0, 0.0], [1.0, 3.0]]
        assert dense.is_sparse and dense.coalesce().indices().tolist() == [[1]]
        assert dense.to_dense().tolist() == [[0.0, 0.0], [0.0, 4.0], [0.0, 0.0]]
        assert whole.item() == 1.5 and whole.dtype == torch.float64


@pytest.mark.parametrize("number", range(2))
def test_a_spread_teacher_says_the_same_with_half_of_the_bytes_in_each_process(two: Path, number: int) -> None:
    """Log-probabilities and candidates; the walk of process 0, and what each process has it read of its own texts."""
    alone = HFTeacher(tiny_model(TEACHERS[number]), tiny_tokenizer())
    expected, held = walked(alone), 0
    for rank in (0, 1):
        found = torch.load(two / f"read-{rank}.pt", weights_only=True)[number]
        parts, whole = found["bytes"]
        assert found["digest"] == fingerprint(alone)
        assert 0.48 * whole < parts < 0.52 * whole  # 97 rows are 49 and 48
        held += parts
        for walk in found["walks"]:
            torch.testing.assert_close(walk, expected, atol=1e-5, rtol=0)
            for one, other in zip(top_p(walk, 0.9, 16), top_p(expected, 0.9, 16), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        for texts, scores in zip((TEXTS[: 2 - rank], TEXTS[1 + rank :]), found["scores"], strict=True):
            mine = alone.score(texts)
            for row, text in enumerate(texts):
                torch.testing.assert_close(scores[row, : len(text)], mine[row, : len(text)], atol=1e-5, rtol=0)
    assert held == whole


def test_the_norm_of_spread_gradients_by_hand(two: Path) -> None:
    """√(3² + 4² + 12²) = 13; and the total of 1.5 and 2.5."""
    for rank in (0, 1):
        found, total = torch.load(two / f"norm-{rank}.pt", weights_only=True)
        assert float(found) == pytest.approx(13.0) and total == 4.0


def test_a_process_alone_shares_nothing() -> None:
    value = torch.ones(3, 2)
    assert (parallel.rank(), parallel.size(), parallel.first(lambda: "word")) == (0, 1, "word")
    assert parallel.gathered(value, 3) is value
    assert parallel.share(3).tolist() == [0, 1, 2]
