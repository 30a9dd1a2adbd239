"""What people do without this environment, on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def raw_decode(model: Any, prompts: Tensor, steps: int) -> int:
    """Hugging Face decoding without any environment: one growing cache, the most probable token; returns its steps."""
    from transformers import DynamicCache

    cache = DynamicCache()
    options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    with torch.no_grad():
        logits = model(input_ids=prompts, **options).logits
        for _ in range(steps):
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            logits = model(input_ids=tokens, **options).logits
    return len(prompts) * steps


def generate(model: Any, prompts: Tensor, steps: int, top_p: float) -> int:
    """`model.generate` with nucleus sampling; returns its steps."""
    options = {"do_sample": True, "top_p": top_p, "top_k": 0, "max_new_tokens": steps, "min_new_tokens": steps}
    made = model.generate(prompts, attention_mask=torch.ones_like(prompts), pad_token_id=0, **options)
    return len(prompts) * int(made.shape[1] - prompts.shape[1])


def trl_step(
    student: Any, teacher: Any, vocabulary: int, clip: float, batches: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Callable[[int], int]:
    """A step of TRL's `GKDTrainer` on given texts (`lmbda` 0), with its optimiser: an arm of a race.

    Source: Agarwal et al. (2024), arXiv:2306.13649, by the `trl` package (extra `peers`).
    Args:
        batches: tokens (B, L) without padding, prompt lengths (B,) that are all the same, and (B, L) 1 where the next
            token belongs to the reply.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(vocabulary)}, unk_token="w0"))
    with TemporaryDirectory() as folder:
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(
                folder,
                lmbda=0.0,
                learning_rate=1e-3,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
            ),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w2", eos_token="w2"),
            train_dataset=Dataset.from_list([{"messages": []}]),
            data_collator=list,
        )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1

    def run(turn: int) -> int:
        tokens, prompt, weights = batches[turn % len(batches)]
        taken = torch.nn.functional.pad(weights[:, :-1], (1, 0)) > 0
        texts = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "prompts": tokens[:, : int(prompt[0])]}
        trainer.training_step(student, texts | {"labels": torch.where(taken, tokens, -100)})
        torch.nn.utils.clip_grad_norm_(student.parameters(), clip)
        trainer.optimizer.step()
        student.zero_grad()
        return int(weights.sum())

    return run


class NaiveEnv:
    """One episode, as it is often written: the whole text runs every step, the whole vocabulary is sorted."""

    def __init__(self, model: Any, top_p: float, slots: int) -> None:
        self.model, self.top_p, self.slots = model, top_p, slots
        self.text: list[int] = []
        self.ids: npt.NDArray[np.int64] = np.zeros(slots, dtype=np.int64)
        self.logp: npt.NDArray[np.float32] = np.zeros(slots, dtype=np.float32)

    def reset(self, prompt: Sequence[int]) -> dict[str, Any]:
        self.text = list(prompt)
        return self._look()

    def step(self, slot: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        reward = float(self.logp[slot])
        self.text.append(int(self.ids[slot]))
        return self._look(), reward, False, False, {}

    def _look(self) -> dict[str, Any]:
        with torch.no_grad():
            logits = self.model(torch.tensor([self.text])).logits[0, -1]
        logp, ids = torch.sort(torch.log_softmax(logits, -1), descending=True)
        size = min(int((logp.exp().cumsum(-1) < self.top_p).sum()) + 1, self.slots)
        mask = np.arange(self.slots) < size
        self.ids, self.logp = ids[: self.slots].numpy(), logp[: self.slots].numpy()
        return {"context": np.array(self.text), "ids": self.ids, "logp": self.logp, "mask": mask}
