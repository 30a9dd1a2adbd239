"""Small tokenizers of the kinds that models have, trained in a moment; EOS is 0, so that tables can speak them."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

WORDS = [
    "Your order 10482 was returned; the refund of 37.50 is refundable within 14 days.",
    "  Déjà vu: naïve café, Straße, übergroß.\n\tindented\r\n  twice  ",
    "注文番号は482です。ありがとうございます。",
    "Привет, мир! Заказ 99 готов.",
    "emoji 🙂🙂 👩‍👩‍👧 done — “quoted”…",
]
EOS, NAMED = "<eos>", "<named>"
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def whole(tokenizer: Tokenizer, **more: Any) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False, **more
    )


@cache
def byte_level(size: int, split_digits: bool = False) -> Any:
    """As GPT-2's: byte-level BPE behind its regular expression; 258 tokens are bytes and no merge."""
    found = Tokenizer(models.BPE())
    bytes_of_text = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    found.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of_text]) if split_digits else bytes_of_text
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[EOS, NAMED], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(WORDS * 3, trainer)
    return whole(found, additional_special_tokens=[NAMED])


@cache
def sentence_piece(fallback: bool = True) -> Any:
    """As Llama's: a unigram model of text with ▁ for spaces, with the 256 bytes as a way out or without one."""
    found = Tokenizer(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    special = [EOS, NAMED, "<unk>", *(BYTES if fallback else [])]
    corpus = WORDS if fallback else WORDS[:1]
    trainer = trainers.UnigramTrainer(
        vocab_size=len(special) + 150, special_tokens=[EOS, NAMED, "<unk>"], unk_token="<unk>", show_progress=False
    )
    found.train_from_iterator(corpus * 3, trainer)
    pieces = [(piece, score) for piece, score in _pieces(found) if piece not in special]
    scores = [(name, 0.0 if place < 3 else -20.0) for place, name in enumerate(special)]
    found.model = models.Unigram([*scores, *pieces], unk_id=2, byte_fallback=fallback)
    return _spaced(found)


@cache
def llama() -> Any:
    """As Llama 2's: BPE of text that a normaliser puts ▁ before; the 256 bytes have lower ids than any character."""
    trained, special = Tokenizer(models.BPE()), [EOS, NAMED, "<unk>"]
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=230, show_progress=False))
    own = json.loads(trained.to_str())["model"]
    names = [*special, *BYTES, *sorted(own["vocab"], key=own["vocab"].__getitem__)]
    merges = [(first, second) for first, second in own["merges"]]
    model = models.BPE(
        {name: number for number, name in enumerate(names)},
        merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    found = Tokenizer(model)
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _spaced(found)


def _spaced(tokenizer: Tokenizer) -> Any:
    """A tokenizer that decodes ▁ as a space, and the first one not at all."""
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([EOS, NAMED, "<unk>"])
    return whole(tokenizer, unk_token="<unk>", additional_special_tokens=[NAMED])


def _pieces(tokenizer: Tokenizer) -> list[tuple[str, float]]:
    return [(str(piece), float(score)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


@cache
def byt5() -> Any:
    """Bytes by another rule: ids are bytes plus 3."""
    return ByT5Tokenizer(extra_ids=4)


KINDS = {
    "gpt2": lambda: byte_level(360),
    "digits": lambda: byte_level(300, True),
    "sentencepiece": sentence_piece,
    "llama": llama,
    "bytes": lambda: byte_level(258),
    "byt5": byt5,
}


def texts(count: int, seed: int = 0) -> list[str]:
    """Random Unicode, white space, digits, and pieces of the corpus, mixed."""
    rng = random.Random(seed)
    blocks = [(0x20, 0x7E), (0xA0, 0x24F), (0x400, 0x45F), (0x3040, 0x30FF), (0x4E00, 0x4EFF), (0x1F600, 0x1F64F)]

    def part() -> str:
        kind = rng.randrange(5)
        if kind == 0:
            return rng.choice(["  ", " ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200d"])
        if kind == 1:
            return str(rng.randrange(10 ** rng.randrange(1, 8)))
        if kind == 2:
            line = rng.choice(WORDS)
            start = rng.randrange(len(line))
            return line[start : start + rng.randrange(1, 12)]
        return "".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(rng.randrange(1, 5)))

    return ["".join(part() for _ in range(rng.randrange(1, 7))) for _ in range(count)]
