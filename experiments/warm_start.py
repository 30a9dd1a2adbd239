"""Clones the warm-start student from the embedded teacher until its validation loss stops improving.

The student is small and its teacher samples are finite: where it stops, cloning on them has nothing more to give.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from envs.decode import decode
from envs.service_desk import messages
from experiments.pretrain import TeacherConfig, build_model, pack, reply_loss

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class WarmStartConfig:
    """The clone's size and how it is trained. The defaults are those of the embedded warm start."""

    samples: int = 2048
    """Teacher replies to train on, one a prompt, drawn from its full softmax."""
    validation_samples: int = 512
    batch_size: int = 32
    learning_rate: float = 3e-3
    """Halved when the validation loss has not improved for more than `patience` epochs; ends at a sixteenth."""
    patience: int = 2
    weight_decay: float = 0.05
    max_epochs: int = 60
    seed: int = 1
    width: int = 64
    layers: int = 1
    heads: int = 4
    intermediate: int = 160
    threads: int = 2


def sample_pairs(model: Any, tokenizer: Any, split: str, count: int, seed: int, max_new_tokens: int) -> list[Pair]:
    """Prompts of a split with a reply each, drawn from the model's full softmax."""
    prompts = [tokenizer(message.prompt)["input_ids"] for message in messages(split, count, seed)]
    eos = tokenizer.eos_token_id
    replies = decode(
        model, prompts, eos_ids={eos}, max_new_tokens=max_new_tokens, seed=seed, rows=128, progress=f"{split} samples"
    )
    return list(zip(prompts, replies, strict=True))


def clone(config: WarmStartConfig, teacher: Any, tokenizer: Any) -> tuple[Any, dict[str, float]]:
    """The student with the lowest validation loss, and how it got there.

    Returns: model, and its figures: epochs, validation and training loss in nats per token.
    """
    torch.set_num_threads(config.threads)
    train = sample_pairs(teacher, tokenizer, "train", config.samples, config.seed, 96)
    held_out = sample_pairs(teacher, tokenizer, "validation", config.validation_samples, config.seed, 96)
    shape = TeacherConfig(
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        intermediate=config.intermediate,
        seed=config.seed,
    )
    student = build_model(shape, tokenizer)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=config.patience)
    generator = torch.Generator().manual_seed(config.seed)
    best, best_state, figures = float("inf"), student.state_dict(), {}
    with tqdm(total=config.max_epochs, desc="warm start", unit="epoch") as bar:
        for epoch in range(config.max_epochs):
            loss = _epoch(student, optimizer, train, config.batch_size, generator, tokenizer.pad_token_id)
            validation = held_out_loss(student, held_out, tokenizer.pad_token_id)
            bar.update()
            bar.set_postfix(train=f"{loss:.3f}", validation=f"{validation:.3f}")
            if validation < best:
                best, best_state = validation, {key: value.clone() for key, value in student.state_dict().items()}
                figures = {"epochs": epoch + 1.0, "training loss, nats": loss, "validation loss, nats": validation}
            plateau.step(validation)
            if optimizer.param_groups[0]["lr"] < config.learning_rate / 16:
                break
    student.load_state_dict(best_state)
    return student.eval(), figures


def _epoch(student: Any, optimizer: Any, pairs: list[Pair], size: int, generator: torch.Generator, pad: int) -> float:
    order = torch.randperm(len(pairs), generator=generator).tolist()
    student.train()
    total = 0.0
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    for batch in batches:
        loss = reply_loss(student, *pack([pairs[index] for index in batch], pad))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
    return total / len(batches)


def held_out_loss(model: Any, pairs: list[Pair], pad: int) -> float:
    """Mean cross-entropy of the reply tokens, nats."""
    model.eval()
    total = tokens = 0.0
    with torch.no_grad():
        for start in range(0, len(pairs), 64):
            inputs, labels = pack(pairs[start : start + 64], pad)
            count = float((labels != -100).sum())
            total += float(reply_loss(model, inputs, labels)) * count
            tokens += count
    return total / tokens


def save_half(model: Any, tokenizer: Any, out: Path, card: str) -> None:
    """An ordinary Hugging Face directory in float16 with its model card."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(out)
    model.float()
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(card, encoding="utf-8")
