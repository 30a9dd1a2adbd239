"""Decoding is exact: any row, at any moment, is that text alone without a cache."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from envs.candidates import normalise
from envs.decode import Decoder, decode
from envs.engine import TOLERANCE, Cached, cache_is_exact, way_of
from envs.errors import InputError
from envs.lean import is_llama_like
from envs.prefill import batches
from envs.sequences import last_logits
from tests.envs.models import EXACT, UNCACHED, VOCABULARY, tiny_model

WAYS = {"llama": "lean", "qwen2": "lean", "qwen3": "lean", "bloom": "own"}
MODELS = {arch: tiny_model(arch) for arch in (*EXACT, *UNCACHED)}


def alone(arch: str, text: list[int]) -> torch.Tensor:
    return normalise(last_logits(MODELS[arch], [text]))[0]


@pytest.mark.parametrize("arch", EXACT)
def test_these_architectures_share_a_cache(arch: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache_is_exact(MODELS[arch])


@pytest.mark.parametrize(
    ("arch", "settings", "way"),
    [
        ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}, "blocks"),
        ("gemma", {"head_dim": 8}, "lean"),
    ],
)
def test_models_that_look_like_a_llama_are_probed(arch: str, settings: dict[str, Any], way: str) -> None:
    """Both have the modules of the step that is written out; Granite is of no family that is known to do no more."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(arch, **sizes, num_key_value_heads=2, vocab_size=VOCABULARY, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert is_llama_like(model) == (way == "lean") and way_of(model) == way
    decoder = Decoder(model, 2)
    decoder.start([0, 1], [[3, 4, 5], [6]])
    decoder.step(torch.tensor([7, 8]), torch.tensor([True, True]))
    for row, text in enumerate(([3, 4, 5, 7], [6, 8])):
        expected = normalise(last_logits(model, [text]))[0]
        assert (decoder.log_probs[row] - expected).abs().max() <= TOLERANCE


def test_half_precision_keeps_its_cache() -> None:
    """Two exact paths differ by its rounding there, by far less than by a wrong mask or position."""
    model = tiny_model("llama").to(torch.bfloat16)
    assert way_of(model) == "lean"
    decoder = Decoder(model, 1)
    decoder.start([0], [[3, 4, 5]])
    decoder.step(torch.tensor([7]), torch.tensor([True]))
    assert decoder.logits.dtype == torch.bfloat16 and decoder.log_norm.dtype == torch.float32
    gap = (decoder.log_probs[0] - normalise(last_logits(model, [[3, 4, 5, 7]]))[0]).abs().max()
    assert gap <= 64 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("arch", UNCACHED)
def test_the_others_take_the_exact_path_and_say_so_once(arch: str) -> None:
    model = tiny_model(arch)
    with pytest.warns(UserWarning, match="without a cache"):
        assert not cache_is_exact(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Decoder(model, 2)


@pytest.mark.filterwarnings("ignore:.*without a cache")
@pytest.mark.parametrize("arch", (*EXACT, *UNCACHED))
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 30))
def test_every_row_is_that_text_alone(arch: str, seed: int, steps: int) -> None:
    """Ragged prompts, rows that pause, and rows that are refilled by shorter and longer ones."""
    rng = np.random.default_rng(seed)

    def prompt(longest: int) -> list[int]:
        return rng.integers(3, VOCABULARY, rng.integers(1, longest)).tolist()

    texts = [prompt(9) for _ in range(4)]
    decoder = Decoder(MODELS[arch], 4)
    decoder.start(range(4), texts)
    for _ in range(steps):
        active = rng.random(4) < 0.8
        tokens = rng.integers(0, VOCABULARY, 4)
        decoder.step(torch.from_numpy(tokens), torch.from_numpy(active))
        texts = [[*text, int(token)] if run else text for text, token, run in zip(texts, tokens, active, strict=True)]
        if rng.random() < 0.3:
            fresh = sorted(rng.choice(4, rng.integers(1, 4), replace=False).tolist())
            prompts = [prompt(40 if rng.random() < 0.2 else 6) for _ in fresh]
            decoder.start(fresh, prompts)
            for row, text in zip(fresh, prompts, strict=True):
                texts[row] = text
        row = int(rng.integers(4))
        assert (decoder.log_probs[row] - alone(arch, texts[row])).abs().max() <= TOLERANCE
    for row, text in enumerate(texts):
        assert (decoder.log_probs[row] - alone(arch, text)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_memory_is_that_of_the_longest_text_however_long_the_walk(arch: str) -> None:
    """One row is refilled every 40 steps, the other every 27: no column is left behind, and texts stay exact."""
    decoder = Decoder(MODELS[arch], 2)
    texts = [[3, 4, 5], [6]]
    decoder.start([0, 1], texts)
    sizes = set()
    for step in range(400):
        for row, period in enumerate((40, 27)):
            if step % period == period - 1:
                texts[row] = [7 + step % 5, 8, 9]
                decoder.start([row], [texts[row]])
        tokens = torch.tensor([step % 90 + 3, (step * 7) % 90 + 3])
        decoder.step(tokens, torch.tensor([True, True]))
        texts = [[*text, int(token)] for text, token in zip(texts, tokens, strict=True)]
        sizes.add(engine_of(decoder).cache.cache.layers[0].keys.shape[2])
    assert sizes == {64}  # the first size of a buffer; the longest text has 43 tokens
    for row, text in enumerate(texts):
        assert (decoder.log_probs[row] - alone(arch, text)).abs().max() <= TOLERANCE


def engine_of(decoder: Decoder) -> Cached:
    assert isinstance(decoder._engine, Cached)
    return decoder._engine


def test_prompts_are_read_once_and_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is expected is read with what is missing, and nothing is read twice while it is kept."""
    decoder = Decoder(MODELS["llama"], 16)
    prefills = engine_of(decoder).prefills
    read: list[list[tuple[int, ...]]] = []
    original = prefills._read
    monkeypatch.setattr(prefills, "_read", lambda prompts: read.append(prompts) or original(prompts))
    first, second, third, fourth, fifth = ([number + 3] * (number + 1) for number in range(5))
    decoder.start(range(16), [first] * 8 + [second] * 8)
    assert read == [[tuple(second), tuple(first)]]
    decoder.expect([third, fourth, fifth, [9, 9]])
    decoder.start([0], [third])
    assert read[1] == [tuple(fifth), tuple(fourth), tuple(third), (9, 9)]
    decoder.start([1, 2], [fourth, fifth])
    assert len(read) == 2
    for row, text in ((0, third), (1, fourth), (2, fifth), (3, first), (15, second)):
        assert (decoder.log_probs[row] - alone("llama", text)).abs().max() <= TOLERANCE
    prompts = [[number, 5] for number in range(3, 3 + prefills.capacity)]
    decoder.start(range(16), prompts)
    decoder.start(range(16), prompts)
    assert len(read) == 3 and prefills.capacity == 16
    decoder.start([5], [first])  # it had to go
    assert len(read) == 4 and len(prefills._kept) == 16


def test_prompts_of_similar_lengths_are_read_together() -> None:
    lengths = [60, 8, 55, 50, 9, 41, 58, 8] * 4
    found = list(batches([(3,) * length for length in lengths]))
    assert sorted(len(prompt) for batch in found for prompt in batch) == sorted(lengths)
    assert [len(batch[0]) for batch in found] == [60, 41, 9]
    assert [len(batch) for batch in found] == [16, 5, 11]


@pytest.mark.parametrize("arch", EXACT)
def test_rows_of_very_different_lengths_are_read_in_blocks(arch: str) -> None:
    """Forty rows: one long text must not make the others pay, nor change them."""
    rng = np.random.default_rng(1)
    decoder = Decoder(MODELS[arch], 40)
    texts = [rng.integers(3, VOCABULARY, 2 if row else 60).tolist() for row in range(40)]
    decoder.start(range(40), texts)
    for _ in range(3):
        tokens = rng.integers(3, VOCABULARY, 40)
        decoder.step(torch.from_numpy(tokens), torch.ones(40, dtype=torch.bool))
        texts = [[*text, int(token)] for text, token in zip(texts, tokens, strict=True)]
    cache = engine_of(decoder).cache
    cache.aim()
    assert [block.columns for block in cache.blocks()] == [64, 6, 6]
    assert engine_of(decoder).way == WAYS.get(arch, "blocks")
    for row in (0, 1, 17, 39):
        assert (decoder.log_probs[row] - alone(arch, texts[row])).abs().max() <= TOLERANCE


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "bloom"])
def test_texts_brought_together_stay_those_of_their_rows(arch: str) -> None:
    """Forty rows of very different lengths, refilled for seventy steps: sorted twice, then half of them forgotten."""
    rng = np.random.default_rng(2)
    decoder = Decoder(MODELS[arch], 40)
    cache = engine_of(decoder).cache
    texts = [rng.integers(3, VOCABULARY, rng.integers(1, 50)).tolist() for _ in range(40)]
    decoder.start(range(40), texts)
    orders = set()
    for _ in range(70):
        fresh = [row for row in range(40) if rng.random() < 0.05 or len(texts[row]) > 100]
        if fresh:
            for row in fresh:
                texts[row] = rng.integers(3, VOCABULARY, rng.integers(1, 50)).tolist()
            decoder.start(fresh, [texts[row] for row in fresh])
        tokens = rng.integers(3, VOCABULARY, 40)
        active = rng.random(40) < 0.9
        decoder.step(torch.from_numpy(tokens), torch.from_numpy(active))
        texts = [[*text, int(token)] if run else text for text, token, run in zip(texts, tokens, active, strict=True)]
        orders.add(tuple(cache.order.tolist()))
    assert len(orders) == 3 and sorted(cache.order) == list(range(40))
    for row in range(40):
        assert (decoder.log_probs[row] - alone(arch, texts[row])).abs().max() <= TOLERANCE
    decoder.keep_rows([39, 3, 8])
    decoder.step(torch.tensor([5, 6, 7]), torch.ones(3, dtype=torch.bool))
    for row, text in enumerate([[*texts[39], 5], [*texts[3], 6], [*texts[8], 7]]):
        assert (decoder.log_probs[row] - alone(arch, text)).abs().max() <= TOLERANCE


@pytest.mark.filterwarnings("ignore:.*without a cache")
@pytest.mark.parametrize("arch", ["llama", "opt", "mamba"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_does_not_depend_on_the_rows_beside_it(arch: str, temperature: float) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCABULARY, rng.integers(1, 8)).tolist() for _ in range(11)]

    def run(rows: int) -> list[list[int]]:
        return decode(
            MODELS[arch],
            prompts,
            eos_ids={2, 5},
            max_new_tokens=12,
            temperature=temperature,
            seed=3,
            rows=rows,
        )

    together = run(11)
    assert together == run(3) == run(1)
    assert all(1 <= len(reply) <= 12 for reply in together)
    assert all(not {2, 5} & set(reply[:-1]) for reply in together)
    if temperature == 0.0:
        text = list(prompts[0])
        for token in together[0]:
            assert token == int(alone(arch, text).argmax())
            text.append(token)


@pytest.mark.parametrize("progress", [None, "answers"])
def test_rows_that_have_nothing_left_to_do_are_dropped(progress: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    original = Decoder.keep_rows
    monkeypatch.setattr(Decoder, "keep_rows", lambda self, rows: kept.append(len(rows)) or original(self, rows))
    prompts = [[3 + number] for number in range(8)]
    decode(MODELS["llama"], prompts, eos_ids=set(range(3, 60)), max_new_tokens=40, rows=8, seed=1, progress=progress)
    assert kept and kept == sorted(kept, reverse=True) and kept[0] <= 4


def test_ids_beyond_a_vocabulary_are_never_drawn() -> None:
    """The others keep their proportions."""
    replies = decode(MODELS["llama"], [[3, 4]] * 4000, eos_ids={2}, max_new_tokens=1, rows=500, vocabulary=50)
    counts = torch.bincount(torch.tensor(replies)[:, 0], minlength=VOCABULARY) / 4000
    expected = alone("llama", [3, 4]).exp()[:50]
    assert counts[50:].sum() == 0 and (counts[:50] - expected / expected.sum()).abs().max() < 0.03
    greedy = decode(MODELS["llama"], [[3, 4]], eos_ids={2}, max_new_tokens=1, temperature=0.0, vocabulary=50)
    assert greedy == [[int(expected.argmax())]]


def test_samples_follow_the_models_distribution() -> None:
    replies = decode(MODELS["llama"], [[3, 4]] * 4000, eos_ids={2}, max_new_tokens=1, rows=500)
    counts = torch.bincount(torch.tensor(replies)[:, 0], minlength=VOCABULARY) / 4000
    expected = alone("llama", [3, 4]).exp()
    assert (counts - expected).abs().max() < 0.03
    assert len(set(map(tuple, replies))) > 1


def test_texts_end_at_the_context_limit_and_by_a_stop_rule() -> None:
    limit = 128
    replies = decode(MODELS["llama"], [[3] * 120, [4]], eos_ids=set(), max_new_tokens=20)
    assert [len(reply) for reply in replies] == [limit - 120, 20]
    stopped = decode(MODELS["llama"], [[3]], eos_ids=set(), max_new_tokens=20, stop=lambda new: len(new) == 4)
    assert len(stopped[0]) == 4


def test_impossible_texts_are_refused() -> None:
    decoder = Decoder(MODELS["llama"], 1)
    for prompt in ([], [3] * 129):
        with pytest.raises(InputError, match="the model takes 1 to 128"):
            decoder.start([0], [prompt])
    decoder.start([0], [[3] * 128])
    with pytest.raises(InputError, match="outgrow the model's context of 128"):
        decoder.step(torch.tensor([3]), torch.tensor([True]))


def test_broken_logits_are_an_error_of_active_rows() -> None:
    model = tiny_model("llama")
    decoder = Decoder(model, 2)
    decoder.start([0, 1], [[3], [4]])
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="hold NaN"):
        decoder.step(torch.tensor([3, 3]), torch.tensor([True, False]))
