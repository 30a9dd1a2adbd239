"""Any Hugging Face causal language model as a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import PicklingError
from typing import Any, Self

import torch
from torch import Tensor

from envs.candidates import normalise
from envs.decode import Decoder
from envs.errors import InputError
from envs.memory import check_fits, outline
from envs.sequences import context_limit_of, right_padded
from envs.teachers import Loading, load_teacher, recipe_of

REMEDY = "give a directory saved by save_pretrained, or a hub id and a network"


def load_causal_lm(source: str | Path, loading: Loading | None = None) -> tuple[Any, Any]:
    """Model and tokenizer from a directory or a hub id; in evaluation mode, and float32 on the CPU if not told.

    Raises: InputError: nothing can be loaded, the model is an encoder-decoder, or it does not fit into memory.
    """
    from transformers import AutoModelForCausalLM

    loading = loading or Loading()
    name, trust = str(source), loading.trust_remote_code
    config, dtype = load_config(source, trust), getattr(torch, loading.dtype)
    try:
        empty = outline(config, trust)
    except ValueError as error:
        raise InputError(f"no causal model in {name!r} ({first_line(error)}); {REMEDY}") from error
    check_fits(name, empty, dtype.itemsize)  # wherever it goes, it is read here first
    kind = {"attn_implementation": loading.attn_implementation} if loading.attn_implementation else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=trust, **kind)
        tokenizer = load_tokenizer(name, trust)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"no causal model with tokenizer in {name!r} ({first_line(error)}); {REMEDY}") from error
    return model.to(loading.device).eval(), tokenizer


def load_config(source: str | Path, trust_remote_code: bool = False) -> Any:
    """The configuration of a causal language model.

    Raises: InputError: none can be read, or it is an encoder-decoder's.
    """
    from transformers import AutoConfig

    name = str(source)
    if name.startswith(("/", "./", "../", "~")) and not Path(name).is_dir():
        raise InputError(f"directory {name!r} does not exist; {REMEDY}")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{name!r} comes with code of its own, which is not run unless asked for; read it, and give "
                "--trust-remote-code"
            ) from error
        raise InputError(f"no model can be loaded from {name!r} ({first_line(error)}); {REMEDY}") from error
    if config.is_encoder_decoder:
        raise InputError(f"{name!r} is an encoder-decoder ({config.model_type}); a causal language model is needed")
    return config


def eos_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token id that ends a text: of the generation configuration, the configuration and the tokenizer.

    Raises: InputError: none of them names one.
    """
    found: set[int] = set()
    for holder in (model.generation_config, model.config.get_text_config(), tokenizer):
        value = getattr(holder, "eos_token_id", None)
        if value is not None:
            found.update([value] if isinstance(value, int) else value)
    if not found:
        raise InputError("neither model nor tokenizer names an EOS token; set tokenizer.eos_token")
    return frozenset(found)


class Worded:
    """What every teacher with a tokenizer does with texts; a handle, which deep-copies to itself.

    Raises: InputError: a chat template asked for that the tokenizer of `name` does not have.
    """

    def __init__(self, tokenizer: Any, name: str, chat_template: bool) -> None:
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise InputError(f"the tokenizer of {name!r} has no chat template; leave chat_template off")
        self.tokenizer, self.chat_template = tokenizer, chat_template

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, as it is or as a user's turn of the chat template.

        Raises: InputError: a text that has no token.
        """
        if self.chat_template:
            turn = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not self.chat_template)["input_ids"]
        if not ids:
            raise InputError(f"the prompt {text!r} has no token; give it text")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class HFTeacher(Worded):
    """A causal language model with its tokenizer, as `envs.teachers.Teacher` asks.

    Its distribution is the full softmax at temperature 1: sampling settings of its generation configuration (top_k,
    penalties, temperature) are ignored on purpose. V is the width of its output; embedding rows beyond the tokenizer's
    vocabulary count.

    Args:
        model: any `AutoModelForCausalLM`; it is put in evaluation mode.
        tokenizer: turns a prompt into tokens, adding the special tokens it always adds.
        name: what results call it.
        chat_template: wrap each prompt as a user's turn of the tokenizer's chat template.
    Raises: InputError: an encoder-decoder, no EOS token, or a chat template asked for that is not there.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str = "model", chat_template: bool = False) -> None:
        if model.config.is_encoder_decoder:
            raise InputError(f"{name!r} is an encoder-decoder; a causal language model is needed")
        super().__init__(tokenizer, name, chat_template)
        self.model, self.name = model.eval(), name
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.eos_ids = eos_ids_of(model, tokenizer)
        self.context_limit = context_limit_of(model)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name, to be loaded again: a handle does not carry its weights about.

        Raises: PicklingError: it was given as an object, so that there is nothing to load it from.
        """
        recipe = recipe_of(self)
        if recipe is None:
            raise PicklingError(
                f"teacher {self.name!r} was given as an object, which does not go to another process; "
                "save it with save_pretrained and give the directory"
            )
        return load_teacher, recipe

    def walk(self, rows: int) -> Decoder:
        return Decoder(self.model, rows)

    def score(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Log-probabilities (B, L, V), nats, after each position; padded positions hold anything."""
        tokens, mask = right_padded(sequences, self.model.get_output_embeddings().weight.device)
        with torch.no_grad():
            logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        return normalise(torch.where(mask[..., None] > 0, logits, 0.0))


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer, of the class its own files name: AutoTokenizer prefers the architecture's usual class, which reads
    a generic `tokenizer.json` beside, say, a Qwen2 model as an empty vocabulary."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    generic = get_tokenizer_config(name).get("tokenizer_class") in {"TokenizersBackend", "PreTrainedTokenizerFast"}
    if generic:
        return PreTrainedTokenizerFast.from_pretrained(name)
    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
