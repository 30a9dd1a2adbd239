"""The student: any Hugging Face causal LM as a policy and a levelled Q, with a value head and its leak.

A student is a plain causal LM; the value head lies beside it and nothing but the LM is there at inference. Scores of
all states of a batch of episodes come from one forward: the trunk runs over whole texts, the head over the valid states
only, packed. There is no dropout during learning: two forwards of one text must agree, or a TD error measures noise.
"""

from __future__ import annotations

import copy
import difflib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agents import parallel, sharding
from agents.adapters import merged
from agents.episodes import Episodes
from agents.errors import InputError
from agents.leaves import Leaves, read_apart, read_packed, why_not_packed
from agents.loading import check_tokenizers, load_tokenizer, read_model
from agents.scores import Scores, on_candidates, pack, places_of, spread, unpack_leaves, unpack_scores
from agents.vocabulary import Head, Part

VALUE_HEAD = "value_head.safetensors"


class Student(nn.Module):
    """A causal LM with a value head: V_p(s) = v(s), Q(s, a) = v(s) + α log π_S^A(a|s) (equation 6)."""

    def __init__(self, model: Any, tokenizer: Any = None, head: Head | None = None) -> None:
        super().__init__()
        self.head = head or Head()
        self.precision = torch.float32  # of the products in its forwards; its weights stay as they are
        self.micro_batch = 0  # texts that are scored at a time; 0: all
        self.head_rows = 0  # logits of a state that the last scores took
        if getattr(model.config, "is_encoder_decoder", False):
            raise InputError(f"{type(model).__name__} is an encoder-decoder; a student must be a causal LM")
        self.model = model.float().eval()
        self.tokenizer = tokenizer
        width = model.get_output_embeddings().weight.shape[1]
        self.value_head = nn.Linear(width, 1).to(model.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._packs_leaves: bool | None = None
        self._rests = False
        self._plain: type[Any] | None = None  # the model's class, where its weights are spread

    @property
    def width(self) -> int:
        """D: columns of its last hidden state."""
        return int(self.value_head.in_features)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a text, by the tokenizer or by the model's own settings."""
        places = (self.tokenizer, self.model.config, getattr(self.model, "generation_config", None))
        found = [getattr(place, "eos_token_id", None) for place in places]
        return frozenset(one for ids in found if ids is not None for one in (ids if isinstance(ids, list) else [ids]))

    @property
    def vocab_size(self) -> int:
        """Columns of the softmax, padded embedding rows included."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: without dropout, as the module says."""
        return super().train(False)

    def _forward(
        self,
        tokens: Tensor,
        row: Tensor,
        position: Tensor,
        head: bool = True,
        detach: bool = False,
        part: Part | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and values (N,) after tokens[row, :position + 1]; one trunk pass, the head on these N only.

        Without `head` the logits are those of the first alone. With `detach` the values leave the trunk alone. Of a
        part of the vocabulary the logits are (N, M + max C).
        """
        longest = int(position.max()) + 1
        logits, hidden = self._read(tokens[:, :longest], row, position, head, part)
        return logits, self.value_head(hidden.detach() if detach else hidden)[:, 0]

    def _read(
        self,
        tokens: Tensor,
        row: Tensor,
        position: Tensor,
        head: bool,
        part: Part | None = None,
        **attention: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and last hidden states (N, D) at these places; or in the columns of `part`.

        The model's own head runs inside the model, so whatever it does to its logits (scaling, soft caps) is kept; it
        is handed the N packed states instead of every position. Without `head` it is handed a single one.
        """
        hidden: list[Tensor] = []

        def keep_states(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(inputs[0][row, position])  # (N, D)
            return (hidden[0][None, : 0 if part else None if head else 1],)

        def some_rows(module: Any, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
            return part.logits(hidden[0], row, module.weight, module.bias, self._rests)[None] if part else None

        layer = self.model.get_output_embeddings()
        hooks = [layer.register_forward_pre_hook(keep_states), layer.register_forward_hook(some_rows)]
        half = torch.autocast(tokens.device.type, self.precision, enabled=self.precision != torch.float32)
        try:
            with half:
                logits = self.model(input_ids=tokens, use_cache=False, **attention).logits.squeeze(0)  # (N, V); a view
        finally:
            for hook in hooks:
                hook.remove()
        kind = self.value_head.weight.dtype
        return logits.to(kind), hidden[0].to(kind)

    def scores(self, episodes: Episodes, full: bool = False) -> Scores:
        """Score every state of these episodes; `full` adds the log-softmax over the whole vocabulary.

        With a head of some rows only (see `head`), log_inside and logp_taken rest on an estimate of the log-partition.
        With a `micro_batch`, so many texts at a time go forward, and forward again and backward when gradients are
        asked for: the loss sees the scores of all episodes as ever, so that an update is the same, for the memory of a
        few texts and the time of one more forward.
        With several processes each scores its share, and all get what all have scored (see `agents.parallel`); a batch
        of fewer episodes than processes is scored by every one.
        """
        part = None if full else self.head.part(episodes, self.model.get_output_embeddings())
        self.head_rows = part.width if part else self.vocab_size
        shared = 1 < parallel.size() <= len(episodes)
        own = parallel.share(len(episodes)) if shared else torch.arange(len(episodes))
        rows = torch.split(own, self.micro_batch or len(own))
        if len(rows) == 1 and not shared:
            return self._scores(episodes, full, part)
        found, bare = [], replace(episodes, teacher_logp=None)
        for some in rows:
            few = bare.select(some)
            columns = part.select(some, *few.ids.shape[1:]) if part else None
            if len(rows) > 1 and torch.is_grad_enabled():
                read = partial(checkpoint, self._scores, use_reentrant=False, preserve_rng_state=False)
                found.append(read(few, full, columns))
            else:
                found.append(self._scores(few, full, columns))
        whole = Scores.concatenate(found)
        return whole.gathered(episodes) if shared else whole

    def _scores(self, episodes: Episodes, full: bool, part: Part | None) -> Scores:
        packed = pack(episodes)
        logits, value = self._forward(episodes.tokens, packed.where[0], packed.position, part=part)
        return unpack_scores(episodes, packed, logits, value, full, part)

    def values(self, episodes: Episodes) -> Tensor:
        """v(s) of every state, the vocabulary head left out.  # (B, T+1)"""
        packed = pack(episodes)
        _, value = self._forward(episodes.tokens, packed.where[0], packed.position, head=False)
        return spread(episodes, packed, value)

    def leaves(self, episodes: Episodes, ids: Tensor, mask: Tensor, full: bool = False) -> Leaves:
        """Read every state and the successors s·a it is asked for, each as if its text stood alone.

        Args:
            ids:  (B, T+1, k) token that follows each state.
            mask: (B, T+1, k) bool, the successors wanted; at states only.
            full: add the log-softmax over the whole vocabulary.
        """
        if self._packs_leaves is None:
            precision, self.precision = self.precision, torch.float32  # half of it would hide the gap looked for
            why = why_not_packed(self._read, self.model.config.get_text_config(), self.model.device)
            self.precision = precision
            self._packs_leaves = not why
            if why:
                warnings.warn(f"{type(self.model).__name__}: {why}; leaves are read one by one, slower", stacklevel=2)
        how = read_packed if self._packs_leaves else read_apart
        found = how(self._read, episodes.tokens, places_of(episodes, ids, mask), full)
        value = self.value_head(found.leaf_hidden)[:, 0]
        return unpack_leaves(episodes, mask, *found[:2], value, found.leaf_logits if full else None)

    @torch.no_grad()
    def log_policy(self, context: Tensor, length: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """log π_S^A after context[n, :length[n]]; PAD_LOGP off the candidates.  # (N, L), (N,), (N, K) x2 -> (N, K)"""
        rows = torch.arange(len(context), device=context.device)
        logits, _ = self._forward(context, rows, length - 1)
        return on_candidates(logits, ids, mask)[0]

    def at_ids(self, context: Tensor, length: Tensor, ids: Tensor, detach: bool = False) -> tuple[Tensor, Tensor]:
        """Logits of these tokens and v(s) after context[n, :length[n]].  # (N, L), (N,), (N, K) -> (N, K), (N,)

        With `detach` the values leave the trunk alone.
        """
        rows = torch.arange(len(context), device=context.device)
        logits, value = self._forward(context, rows, length - 1, detach=detach)
        return logits.gather(1, ids), value

    def value_of(self, context: Tensor, length: Tensor) -> Tensor:
        """v(s) after context[n, :length[n]], the vocabulary head left out.  # (N, L), (N,) -> (N,)"""
        rows = torch.arange(len(context), device=context.device)
        return self._forward(context, rows, length - 1, head=False)[1]

    def let_rows_rest(self) -> list[Tensor]:
        """Vocabulary weights whose gradients come by rows from now on; none unless the `head` lets rows rest.

        Raises: InputError: an input embedding that is no embedding layer.
        """
        if not self.head.resting:
            return []
        if self.is_spread:
            raise InputError("rows of weights that are spread over processes cannot rest; leave --shard out")
        embedding, layer = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise InputError(f"the input embedding is a {type(embedding).__name__}, not an Embedding; let no rows rest")
        self._rests = embedding.sparse = True
        found = {id(weight): weight for weight in (embedding.weight, layer.weight) if weight.requires_grad}
        return list(found.values())

    @property
    def is_spread(self) -> bool:
        """Whether its weights lie in several processes."""
        return self._plain is not None

    def shard(self) -> None:
        """Spread the model's weights over the processes, if there are several."""
        if parallel.size() > 1:
            self._plain = type(self.model)
            sharding.shard(self.model)

    def whole(self) -> Student:
        """This student with all its weights in process 0, to be read or saved there; itself if they are not spread.

        All processes call this together.
        """
        if self._plain is None:
            return self
        state = sharding.whole(self.model.state_dict())
        if parallel.rank():
            return self
        with torch.random.fork_rng():  # the others draw no weights
            model = self._plain(self.model.config)
        model.load_state_dict(state)
        model.generation_config = self.model.generation_config
        found = Student(model.to(self.value_head.weight.device), self.tokenizer, self.head)
        found.value_head.load_state_dict(self.value_head.state_dict())
        return found

    def copy(self) -> Self:
        """A frozen copy, as a target network; the tokenizer is shared.

        Raises: InputError: its weights are spread over processes.
        """
        if self.is_spread:
            raise InputError("a target network copies its student, whose weights are spread; leave --shard out")
        twin = copy.deepcopy(self, {id(self.tokenizer): self.tokenizer})
        return twin.requires_grad_(False)

    def save(self, directory: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write an ordinary Hugging Face directory (model, tokenizer, model card), the value head beside it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        merged(self.model, keep=True).save_pretrained(directory)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)
        head = {name: value.detach().cpu().contiguous() for name, value in self.value_head.state_dict().items()}
        save_file(head, directory / VALUE_HEAD)
        (directory / "README.md").write_text(model_card(self, card or {}), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path, **options: Any) -> Self:
        """Read any causal-LM directory; a missing value head starts at 0. `options` are those of `read_model`."""
        directory = Path(directory)
        if not (directory / "config.json").is_file():
            raise InputError(f"no student in {directory}: it holds no config.json")
        named, trust = (directory / "tokenizer_config.json").is_file(), bool(options.get("trust_remote_code"))
        tokenizer = load_tokenizer(str(directory), trust) if named else None
        student = cls(read_model(str(directory), **options), tokenizer)
        if (directory / VALUE_HEAD).is_file():
            student.value_head.load_state_dict(load_file(directory / VALUE_HEAD))
        return student


SIZES = {"tiny": (64, 2, 4), "small": (128, 3, 4), "medium": (192, 4, 6), "base": (256, 6, 8), "large": (512, 8, 8)}
"""Name -> width, layers and attention heads of a Llama on the teacher's tokenizer."""


def build_student(spec: str | Path, *, tokenizer: Any, vocab_size: int, seed: int = 0, **options: Any) -> Student:
    """A student from a directory, a hub id, or a size name (random weights from `seed`, on the teacher's tokenizer).

    Args:
        tokenizer:  the teacher's; None where texts are token ids.
        vocab_size: width of the teacher's softmax.
        options:    those of `read_model`, for a directory or a hub id.
    Raises: InputError: no such student, an encoder-decoder, or a tokenizer that is not the teacher's.
    """
    if isinstance(spec, str) and spec in SIZES:
        return Student(_random(size_config(spec, tokenizer, vocab_size), seed), tokenizer)
    if Path(spec).is_dir():
        student = Student.load(spec, **options)
    elif isinstance(spec, str) and "/" in spec and not spec.startswith((".", "/", "~")):
        trust = bool(options.get("trust_remote_code"))
        student = Student(read_model(spec, **options), load_tokenizer(spec, trust))
    else:
        near = difflib.get_close_matches(str(spec), SIZES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no student {str(spec)!r}: not a directory, a hub id or one of {', '.join(SIZES)}{hint}")
    if tokenizer is not None and student.tokenizer is not None:
        check_tokenizers(tokenizer, student.tokenizer)
    needed = 1 + max(tokenizer.get_vocab().values()) if tokenizer is not None else vocab_size
    if student.vocab_size < needed:
        raise InputError(
            f"student {spec} has {student.vocab_size} output rows for {needed} tokens; take one of the same family"
        )
    student.tokenizer = student.tokenizer or tokenizer
    return student


def size_config(name: str, tokenizer: Any, vocab_size: int) -> Any:
    """The configuration of a student by size name: a Llama on this tokenizer, if there is one."""
    from transformers import LlamaConfig

    width, layers, heads = SIZES[name]
    special = {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        **special,
    )


def _random(config: Any, seed: int) -> Any:
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def model_card(student: Student, figures: Mapping[str, object]) -> str:
    """The README.md of a saved student: what it is, how to load it, and the figures of the run that made it."""
    own = {"parameters": sum(value.numel() for value in student.model.parameters()), "vocabulary": student.vocab_size}
    lines = [f"| {name} | {_shown(value)} |" for name, value in {**own, **figures}.items()]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [tdistill, distillation]",
            "---",
            "# A distilled student",
            "",
            "A plain causal LM, distilled from a teacher; `AutoModelForCausalLM.from_pretrained` loads it.",
            f"`{VALUE_HEAD}` holds the value head of its training and is not needed to generate.",
            "",
            "| | |",
            "|---|---|",
            *lines,
            "",
        ]
    )


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
