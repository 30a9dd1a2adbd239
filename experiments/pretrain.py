"""Trains the embedded teacher: a tokenizer and a Llama for the service desk.

The teacher never sees a message twice: the corpus is an endless stream, and step i trains on messages of its own. A run
killed at any moment goes on from its last checkpoint to the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from envs.errors import InputError
from envs.service_desk import Message, messages, stream

PAD, EOS, SEPARATOR = "<pad>", "<eos>", "<sep>"
CHECKPOINT = "checkpoint.pt"
CONTEXT = 256


@dataclass(frozen=True)
class TeacherConfig:
    """A language model trained on the service desk. The defaults are those of the embedded teacher."""

    steps: int = 3600
    """Updates."""
    batch_size: int = 32
    """Messages an update."""
    learning_rate: float = 2e-3
    """Peak of the cosine."""
    warmup: int = 100
    """Updates of linear warm-up."""
    weight_decay: float = 0.05
    seed: int = 0
    """Of the corpus and of the weights."""
    vocabulary: int = 2048
    """Entries of the tokenizer, the three special ones included."""
    tokenizer_messages: int = 50_000
    """How many messages the tokenizer is trained on."""
    width: int = 256
    layers: int = 4
    heads: int = 4
    intermediate: int = 640
    threads: int = 2
    """CPU threads; the same number gives the same weights."""
    checkpoint_seconds: float = 120.0
    """Time between checkpoints."""


def train_tokenizer(config: TeacherConfig) -> PreTrainedTokenizerFast:
    """Byte-level BPE with every digit a token of its own; a tokenized prompt ends in `<sep>`, where the reply begins.

    Raises: InputError: the corpus does not hold enough different words for the vocabulary.
    """
    corpus = messages("train", config.tokenizer_messages, config.seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[PAD, EOS, SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for m in corpus for text in (m.prompt, m.reply)), trainer)
    if tokenizer.get_vocab_size() < config.vocabulary:
        raise InputError(
            f"the words of {len(corpus)} messages merge into {tokenizer.get_vocab_size()} tokens, fewer than "
            f"{config.vocabulary}; ask for a smaller vocabulary"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SEPARATOR}", special_tokens=[(SEPARATOR, tokenizer.token_to_id(SEPARATOR))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        sep_token=SEPARATOR,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(config: TeacherConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama with tied embeddings."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def pack(pairs: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts and replies as right-padded tokens and next-token labels; −100 wherever the reply is not predicted."""
    longest = max(len(prompt) + len(reply) for prompt, reply in pairs)
    tokens = torch.full((len(pairs), longest), pad)
    labels = torch.full((len(pairs), longest), -100)
    for row, (prompt, reply) in enumerate(pairs):
        end = len(prompt) + len(reply)
        tokens[row, :end] = torch.tensor(prompt + reply)
        labels[row, len(prompt) - 1 : end - 1] = torch.tensor(reply)
    return tokens, labels


def reply_loss(model: LlamaForCausalLM, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the reply tokens, nats; the head is applied where a reply token is predicted only."""
    predicted = labels != -100
    hidden = model.model(input_ids=tokens).last_hidden_state[predicted]
    return cross_entropy(model.lm_head(hidden), labels[predicted])


class CosineTrainer:
    """AdamW with warm-up and a cosine to a twentieth; its whole state can be saved and restored."""

    def __init__(self, model: LlamaForCausalLM, config: TeacherConfig) -> None:
        self.model = model
        self.step = 0
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))

        def factor(step: int) -> float:
            if step < config.warmup:
                return (step + 1) / config.warmup
            progress = (step - config.warmup) / max(1, config.steps - config.warmup)
            return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def update(self, tokens: Tensor, labels: Tensor) -> float:
        loss = reply_loss(self.model, tokens, labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def train_teacher(config: TeacherConfig, out: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train tokenizer and teacher, or go on with the run that stands in `out`.

    Raises: InputError: `out` holds a run with another configuration.
    """
    torch.set_num_threads(config.threads)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    saved = torch.load(checkpoint, weights_only=False) if checkpoint.exists() else None
    if saved and saved["config"] != asdict(config):
        raise InputError(f"{out} holds a training run with another configuration; choose another folder or remove it")
    if saved:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(config)
        tokenizer.save_pretrained(out)
    trainer = CosineTrainer(build_model(config, tokenizer), config)
    if saved:
        trainer.restore(saved["trainer"])
    corpus_index = saved["corpus_index"] if saved else 0

    def save() -> None:
        state = {"config": asdict(config), "trainer": trainer.state(), "corpus_index": corpus_index}
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(checkpoint)

    source = stream("train", config.seed, corpus_index)
    last_save, smooth = time.monotonic(), 0.0
    with tqdm(total=config.steps, initial=trainer.step, desc="teacher", unit="update", mininterval=1.0) as bar:
        while trainer.step < config.steps:
            batch, corpus_index = next_batch(source, config.batch_size)
            loss = trainer.update(*pack([encode(tokenizer, m) for m in batch], tokenizer.pad_token_id))
            smooth = loss if trainer.step == 1 else 0.98 * smooth + 0.02 * loss
            bar.update()
            bar.set_postfix(nats=f"{smooth:.3f}")
            if time.monotonic() - last_save > config.checkpoint_seconds:
                save()
                last_save = time.monotonic()
    save()
    return trainer.model.eval(), tokenizer


def next_batch(source: Iterator[tuple[int, Message]], size: int) -> tuple[list[Message], int]:
    """The next messages of a stream, and the index at which it goes on."""
    batch = [next(source) for _ in range(size)]
    return [message for _, message in batch], batch[-1][0] + 1


def encode(tokenizer: PreTrainedTokenizerFast, message: Message) -> tuple[list[int], list[int]]:
    """A message as the tokens of its prompt, `<sep>` included, and of its reply, `<eos>` included."""
    prompt = tokenizer(message.prompt)["input_ids"]
    reply = tokenizer(message.reply, add_special_tokens=False)["input_ids"]
    return prompt, [*reply, tokenizer.eos_token_id]
