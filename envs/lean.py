"""One decoding step of a Llama-like model, written out: the same modules and weights, without what surrounds them.

Transformers' own forward of a small model spends most of a step on building masks, on dispatch and on norms in six
operations. Which models may go this way is a list of families whose layers are known to do nothing else, together with
their modules' names; each model is then held to it by the numerical probe of `envs.engine`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from envs.kv_cache import Block, RowCache, attend

FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma"}
IN_TRUNK = ("embed_tokens", "layers", "norm", "rotary_emb")
IN_LAYER = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
IN_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")
IN_MLP = ("gate_proj", "up_proj", "down_proj", "act_fn")


class Layer(NamedTuple):
    """The modules of one layer, so that a step need not look them up by name."""

    before: Any
    query: Any
    key: Any
    value: Any
    out: Any
    query_norm: Any  # None: there is none, and none of the keys
    key_norm: Any
    head_dim: int
    scaling: float
    after: Any
    gate: Any
    up: Any
    down: Any
    act: Any


def is_llama_like(model: Any) -> bool:
    """Whether a model is of a known family, with the modules that `LeanStep` calls."""
    trunk: Any = getattr(model, "model", None)
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

    def __init__(self, model: Any) -> None:
        trunk = model.model
        self.embed, self.rotary, self.norm = trunk.embed_tokens, trunk.rotary_emb, trunk.norm
        self.head = model.get_output_embeddings()
        self.layers = [_layer(layer) for layer in trunk.layers]

    def __call__(self, tokens: Tensor, positions: Tensor, cache: RowCache, lanes: Tensor | None) -> Tensor:
        """Append `tokens` (N,) at `positions` (N,), lane by lane; `lanes` (N,) says where each row lies."""
        state = self.embed(tokens)  # (N, D)
        cos, sin = self.rotary(state, positions[:, None])  # (N, 1, D of a head)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        blocks = cache.blocks()
        for layer, stored in zip(self.layers, cache.cache.layers, strict=True):
            state = state + _attention(layer, normed(layer.before, state), cos, sin, stored, blocks)
            inside = normed(layer.after, state)
            state = state + applied(layer.down, layer.act(applied(layer.gate, inside)).mul_(applied(layer.up, inside)))
        state = normed(self.norm, state)
        return applied(self.head, state if lanes is None else state[lanes])


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        before=layer.input_layernorm,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        out=attention.o_proj,
        query_norm=getattr(attention, "q_norm", None),
        key_norm=getattr(attention, "k_norm", None),
        head_dim=attention.head_dim,
        scaling=attention.scaling,
        after=layer.post_attention_layernorm,
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
        act=mlp.act_fn,
    )


def _attention(layer: Layer, state: Tensor, cos: Tensor, sin: Tensor, stored: Any, blocks: list[Block]) -> Tensor:
    shape = (len(state), -1, layer.head_dim)
    query, key = applied(layer.query, state).view(shape), applied(layer.key, state).view(shape)  # (N, heads, D)
    if layer.query_norm is not None:
        query, key = normed(layer.query_norm, query), normed(layer.key_norm, key)
    both, heads = rotated(torch.cat([query, key], 1), cos, sin), query.shape[1]
    query, key = both[:, :heads], both[:, heads:]
    keys, values = stored.update(key[:, :, None], applied(layer.value, state).view(shape)[:, :, None])
    return applied(layer.out, attend(query, keys, values, layer.scaling, blocks).reshape(len(state), -1))


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (N, heads, D), its halves paired: (x₁, x₂)·cos + (x₂, x₁)·(−sin, sin).

    Source: Su et al. (2021), arXiv:2104.09864, eq. 34, in the half-split layout of Llama; `sin` has the signs.
    """
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)


def applied(module: Any, state: Tensor) -> Tensor:
    """What a projection gives; a plain one without the price of calling a module."""
    if type(module) is torch.nn.Linear and not module._forward_hooks and not module._forward_pre_hooks:
        parameters: dict[str, Any] = module._parameters
        return linear(state, parameters["weight"], parameters["bias"])
    result: Tensor = module(state)
    return result


def normed(module: Any, state: Tensor) -> Tensor:
    """What a norm module gives; a root-mean-square norm of float32, x / √(mean x² + ε) · w, in few operations."""
    epsilon = getattr(module, "variance_epsilon", None)
    if epsilon is None or state.dtype != torch.float32:
        result: Tensor = module(state)
        return result
    scale = state.square().sum(-1, keepdim=True).mul_(1 / state.shape[-1]).add_(epsilon).rsqrt_()
    return torch.mul(state, scale).mul_(module.weight)
