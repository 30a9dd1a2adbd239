"""Small random causal models of many architectures, and their ordinary Hugging Face directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from envs.table_teacher import TableTeacher

EXACT = ("llama", "gpt2", "qwen2", "qwen3", "opt", "gpt_neox", "bloom")
UNCACHED = ("mistral", "mamba")
VOCABULARY = 97

_SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "state_size": 4, "expand": 2, "time_step_rank": 4},
    "mistral": {"sliding_window": 6, "num_key_value_heads": 2},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
}


def tiny_config(arch: str, vocabulary: int = VOCABULARY) -> Any:
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    }
    if arch in {"llama", "qwen2", "qwen3"}:
        common |= {"num_key_value_heads": 2}
    if arch == "qwen3":
        common |= {"head_dim": 8}
    if arch in {"gpt2", "bloom", "t5"}:
        common = {}
    return AutoConfig.for_model(
        arch,
        **{**common, **_SMALL.get(arch, {})},
        vocab_size=vocabulary,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def tiny_model(arch: str, vocabulary: int = VOCABULARY, seed: int = 0) -> Any:
    """A random model whose output is sharp enough for nuclei of very different sizes."""
    torch.manual_seed(seed)
    config = tiny_config(arch, vocabulary)
    model = (AutoModelForSeq2SeqLM if arch == "t5" else AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(3.0 if "emb" in name or "wte" in name or "head" in name else 2.0)
    return model.eval()


def tiny_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """One token a word: `w3` … ; `<s>` is 1, `</s>` is 2 and pads too."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def save_tiny(arch: str, directory: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """An ordinary Hugging Face directory."""
    tiny_model(arch, seed=seed).to(dtype).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def twentieths() -> TableTeacher:
    """Six tokens, order 1, probabilities in twentieths, for arithmetic by hand."""
    rows = [
        [2, 6, 5, 4, 2, 1],
        [1, 1, 9, 6, 2, 1],
        [3, 8, 1, 1, 6, 1],
        [12, 2, 2, 1, 2, 1],
        [17, 1, 1, 1, 0, 0],
        [5, 5, 4, 3, 2, 1],
    ]
    return TableTeacher(np.array(rows) / 20, "twentieths")
