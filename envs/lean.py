"""One decoding step of a Llama-like model, written out: the same modules and weights, without what surrounds them.

Transformers' own forward of a small model spends most of a step on building masks, on dispatch and on norms in six
operations. Which models may go this way is a list of families whose layers are known to do nothing else, together with
their modules' names; each model is then held to it by the numerical probe of `envs.engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from envs.kv_cache import Block, RowCache, attend

FEW = 4  # rows up to which a step is as long as reading the weights
COPIED_PARAMETERS = 2**26
"""Parameters up to which a walk of a few rows reads its own copy of the weights."""
FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma"}
FIXED_ROPES = {"default", "linear", "llama3", "yarn"}
"""Rotary position embeddings whose angles depend on the position alone; the others' depend on how long a text is."""
IN_TRUNK = ("embed_tokens", "layers", "norm", "rotary_emb")
IN_LAYER = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
IN_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")
IN_MLP = ("gate_proj", "up_proj", "down_proj", "act_fn")


class Layer(NamedTuple):
    """The parts of one layer, so that a step need not look them up by name."""

    before: Norm
    inputs: Projections  # query, key, value
    out: Projections
    query_norm: Norm | None  # None: there is none, and none of the keys
    key_norm: Norm | None
    head_dim: int
    scaling: float
    after: Norm
    wide: Projections  # gate, up
    down: Projections
    act: Any


def is_llama_like(model: Any) -> bool:
    """Whether a model is of a known family, with the modules that `LeanStep` calls, and its weights lie here whole."""
    trunk: Any = getattr(model, "model", None)
    if hasattr(model.get_output_embeddings().weight, "placements"):  # a DTensor, of which each process has a part
        return False
    if model.config.get_text_config().model_type not in FAMILIES:
        return False
    if not _has(trunk, IN_TRUNK) or not len(trunk.layers):
        return False
    return all(
        _has(layer, IN_LAYER) and _has(layer.self_attn, IN_ATTENTION) and _has(layer.mlp, IN_MLP)
        for layer in trunk.layers
    )


def _has(module: Any, names: tuple[str, ...]) -> bool:
    return all(hasattr(module, name) for name in names)


class LeanStep:
    """Logits (N, V) after one more token in every lane of a cache."""

    def __init__(self, model: Any, rows: int) -> None:
        trunk, head = model.model, model.get_output_embeddings()
        copied = rows <= FEW and _small(model)
        self.embed, self.rotary, self.norm = trunk.embed_tokens, Rotary(trunk.rotary_emb), Norm(trunk.norm)
        self.layers = [_layer(layer, copied) for layer in trunk.layers]
        self.head = Projections([head], copied)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: RowCache, lanes: Tensor | None) -> Tensor:
        """Append `tokens` (N,) at `positions` (N,), lane by lane; `lanes` (N,) says where each row lies."""
        state = self.embed(tokens)  # (N, D)
        cos, sin = self.rotary(state, positions, cache.span).chunk(2, -1)  # (N, 1, D of a head)
        blocks = cache.blocks()
        for layer, stored in zip(self.layers, cache.cache.layers, strict=True):
            state = state + _attention(layer, layer.before(state), cos, sin, stored, blocks)
            gate, up = layer.wide(layer.after(state))
            state = state + layer.down(layer.act(gate).mul_(up))[0]
        state = self.norm(state)
        logits: Tensor = self.head(state if lanes is None else state[lanes])[0]
        return logits


def _small(model: Any) -> bool:
    """Whether a second copy of the weights is no burden."""
    weights = model.get_output_embeddings().weight
    size = sum(value.numel() for value in model.parameters())
    return bool(weights.device.type == "cpu" and weights.dtype == torch.float32 and size <= COPIED_PARAMETERS)


def _layer(layer: Any, copied: bool) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    normed = hasattr(attention, "q_norm")
    return Layer(
        before=Norm(layer.input_layernorm),
        inputs=Projections([attention.q_proj, attention.k_proj, attention.v_proj], copied),
        out=Projections([attention.o_proj], copied),
        query_norm=Norm(attention.q_norm) if normed else None,
        key_norm=Norm(attention.k_norm) if normed else None,
        head_dim=attention.head_dim,
        scaling=attention.scaling,
        after=Norm(layer.post_attention_layernorm),
        wide=Projections([mlp.gate_proj, mlp.up_proj], copied),
        down=Projections([mlp.down_proj], copied),
        act=mlp.act_fn,
    )


def _attention(layer: Layer, state: Tensor, cos: Tensor, sin: Tensor, stored: Any, blocks: list[Block]) -> Tensor:
    shape = (len(state), -1, layer.head_dim)
    query, key, value = (part.view(shape) for part in layer.inputs(state))  # (N, heads, D)
    if layer.query_norm is not None and layer.key_norm is not None:
        query, key = layer.query_norm(query), layer.key_norm(key)
    both, heads = rotated(torch.cat([query, key], 1), cos, sin), query.shape[1]
    query, key = both[:, :heads], both[:, heads:]
    keys, values = stored.update(key[:, :, None], value[:, :, None])
    attended = attend(query, keys, values, layer.scaling, blocks).reshape(len(state), -1)
    return layer.out(attended)[0]


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (N, heads, D), its halves paired: (x₁, x₂)·cos + (x₂, x₁)·(−sin, sin).

    Source: Su et al. (2021), arXiv:2104.09864, eq. 34, in the half-split layout of Llama; `sin` has the signs.
    """
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)


class Projections:
    """What several projections give of one state (N, D); plain ones without the price of calling a module.

    A few rows take as long as reading the weights takes. `copied` ones lie side by side and transposed, and are read at
    half the price; they are copied anew when the originals have changed.
    """

    def __init__(self, modules: Sequence[Any], copied: bool) -> None:
        self.modules = modules
        self.copied = copied and all(_plain(module) for module in modules)
        self.weight: Tensor = torch.empty(0)
        self.bias: Tensor | None = None
        self.sizes: list[int] = []
        self.known: list[tuple[int, int]] = []  # what was copied, and how often that had been written to

    def __call__(self, state: Tensor) -> Sequence[Tensor]:
        if not self.copied:
            return [_applied(module, state) for module in self.modules]
        given = [value for own in self.modules for value in (own.weight, own.bias) if value is not None]
        if self.known != (now := [(id(value), value._version) for value in given]):
            self._copy()
            self.known = now
        found = state.mm(self.weight) if self.bias is None else torch.addmm(self.bias, state, self.weight)
        return torch.split(found, self.sizes, -1)

    def _copy(self) -> None:
        weights, biases = [own.weight for own in self.modules], [own.bias for own in self.modules]
        self.sizes = [len(weight) for weight in weights]
        self.weight = torch.cat(weights).detach().t().contiguous()  # (D, sum of the sizes)
        if any(bias is not None for bias in biases):
            pairs = zip(biases, weights, strict=True)
            parts = [weight.new_zeros(len(weight)) if bias is None else bias for bias, weight in pairs]
            self.bias = torch.cat(parts).detach()


def _plain(module: Any) -> bool:
    return type(module) is torch.nn.Linear and not module._forward_hooks and not module._forward_pre_hooks


def _applied(module: Any, state: Tensor) -> Tensor:
    if _plain(module):
        parameters: dict[str, Any] = module._parameters
        return linear(state, parameters["weight"], parameters["bias"])
    result: Tensor = module(state)
    return result


class Norm:
    """What a norm module gives; a root-mean-square norm of float32, x / √(‖x‖² / D + ε) · w, in few operations."""

    def __init__(self, module: Any) -> None:
        self.module, self.epsilon = module, None
        if hasattr(module, "variance_epsilon") and module.weight.dtype == torch.float32:
            self.epsilon = torch.full((1, 1), module.variance_epsilon, device=module.weight.device)

    def __call__(self, state: Tensor) -> Tensor:
        if self.epsilon is None:
            result: Tensor = self.module(state)
            return result
        length = torch.linalg.vector_norm(state, dim=-1, keepdim=True)
        scale = torch.addcmul(self.epsilon, length, length, value=1 / state.shape[-1]).rsqrt_()
        return torch.mul(state, scale).mul_(self.module.weight)


class Rotary:
    """cos and signed sin of positions: looked up, where the angles of a position never change.

    Source: Su et al. (2021), arXiv:2104.09864, in the half-split layout of Llama.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.fixed = module, getattr(module, "rope_type", None) in FIXED_ROPES
        self.table = torch.empty(0, 1, 0)

    def __call__(self, state: Tensor, positions: Tensor, span: int) -> Tensor:
        """cos, then sin with the signs of `rotated`, of positions (N,) below `span`.  # (N, 1, 2 D)"""
        if not self.fixed:
            return self._angles(state, positions)
        if len(self.table) < span:
            self.table = self._angles(state, torch.arange(max(2 * span, 64), device=state.device))
        return self.table.index_select(0, positions)

    def _angles(self, state: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.module(state, positions[:, None])  # (N, 1, D of a head)
        half = sin.shape[-1] // 2
        return torch.cat([cos, -sin[..., :half], sin[..., half:]], -1)
