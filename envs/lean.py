"""One decoding step of a Llama-like model, written out: the same modules and weights, without what surrounds them.

Transformers' own forward of a small model spends most of a step on building masks, on dispatch and on norms in six
operations. Which models may go this way is a question of their modules' names; whether they do is decided by the
numerical probe of `envs.engine`, so that a model that only looks alike is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from envs.kv_cache import Block, RowCache, attend

Norm = Callable[[Tensor], Tensor]


def lean_parts(model: Any) -> tuple[Any, Any] | None:
    """Trunk and head of a model with the modules that `LeanStep` calls, or None."""
    trunk: Any = getattr(model, "model", None)
    named = all(hasattr(trunk, name) for name in ("embed_tokens", "layers", "norm", "rotary_emb"))
    if not named or not len(trunk.layers):
        return None
    layer = trunk.layers[0]
    inside = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")
    alike = all(hasattr(layer, name) for name in inside) and all(hasattr(layer.self_attn, name) for name in attention)
    return (trunk, model.get_output_embeddings()) if alike else None


class LeanStep:
    """Logits (N, V) after one more token in every lane of a cache."""

    def __init__(self, trunk: Any, head: Any) -> None:
        self.trunk, self.head = trunk, head

    def __call__(self, tokens: Tensor, positions: Tensor, cache: RowCache, rows: Tensor | None) -> Tensor:
        """Append `tokens` (N,) at `positions` (N,), lane by lane; `rows` (N,) puts the lanes into the order of rows."""
        trunk = self.trunk
        state = trunk.embed_tokens(tokens)  # (N, D)
        cos, sin = trunk.rotary_emb(state, positions[:, None])  # (N, 1, D of a head)
        blocks = cache.blocks()
        for layer, stored in zip(trunk.layers, cache.cache.layers, strict=True):
            state = state + self._attention(
                layer.self_attn, normed(layer.input_layernorm, state), cos, sin, stored, blocks
            )
            state = state + layer.mlp(normed(layer.post_attention_layernorm, state))
        state = normed(trunk.norm, state)
        logits: Tensor = self.head(state if rows is None else state[rows])
        return logits

    def _attention(
        self, module: Any, state: Tensor, cos: Tensor, sin: Tensor, stored: Any, blocks: list[Block]
    ) -> Tensor:
        shape = (len(state), -1, module.head_dim)
        query, key = module.q_proj(state).view(shape), module.k_proj(state).view(shape)  # (N, heads, D)
        if hasattr(module, "q_norm"):
            query, key = normed(module.q_norm, query), normed(module.k_norm, key)
        turned = rotated(torch.cat([query, key], 1), cos, sin)
        query, key = turned[:, : query.shape[1]], turned[:, query.shape[1] :]
        keys, values = stored.update(key[:, :, None], module.v_proj(state).view(shape)[:, :, None])
        found = attend(query, keys, values, module.scaling, blocks)
        projected: Tensor = module.o_proj(found.reshape(len(state), -1))
        return projected


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (N, heads, D), the halves of D paired: x·cos + (−x₂, x₁)·sin.

    Source: Su et al. (2021), arXiv:2104.09864, eq. 34, in the half-split layout of Llama.
    """
    half = heads.shape[-1] // 2
    turned = torch.cat([-heads[..., half:], heads[..., :half]], -1)
    return torch.addcmul(heads * cos, turned, sin)


def normed(module: Any, state: Tensor) -> Tensor:
    """What a norm module gives; a root-mean-square norm in one operation instead of six."""
    epsilon = getattr(module, "variance_epsilon", None)
    if epsilon is None:
        result: Tensor = module(state)
        return result
    return torch.nn.functional.rms_norm(state, state.shape[-1:], module.weight, epsilon)
