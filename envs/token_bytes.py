"""Tokens as the bytes they write, and bytes as tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from envs.errors import InputError

PROBE = "Order 482 is ready, thank you: déjà vu."
BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
Pieces = tuple[int, ...]
Cut = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Tokens:
    """A vocabulary as bytes.

    Args:
        written:  what each id adds to a text; None of special tokens and of rows without a token.
        special:  special tokens by their names.
        own:      how the tokenizer itself cuts what stands inside a text; None: there is none.
        fallback: single bytes that stand in for characters without a token, as SentencePiece's `<0x2E>`.
    """

    written: tuple[bytes | None, ...]
    special: dict[str, int] = field(default_factory=dict)
    own: Cut | None = None
    fallback: frozenset[int] = frozenset()

    @property
    def ids(self) -> dict[bytes, int]:
        """The token that writes these bytes; the lowest of several, one of `fallback` only where there is no other.

        >>> Tokens((b".", b"."), fallback=frozenset({0})).ids
        {b'.': 1}
        """
        found: dict[bytes, int] = {}
        for number in sorted(range(len(self.written)), key=self.fallback.__contains__):
            if piece := self.written[number]:
                found.setdefault(piece, number)
        return found

    def text_of(self, ids: Sequence[int]) -> bytes:
        """What tokens write one after the other; special ones nothing."""
        return b"".join(self.written[token] or b"" for token in ids)

    def split(self, parts: Sequence[bytes]) -> list[Pieces | None]:
        """Each part as tokens that write exactly these bytes; None where there are none.

        The one token that writes the part; else the tokenizer's own cut of it, if that writes the part (it may not: of
        bytes that are no text, or under a normaliser); else the fewest tokens, of several ways the one whose first
        token is longest, then the second, and so on.

        >>> Tokens((b"a", b"b", b"ab", b"bc", None)).split([b"ab", b"abc", b"abd"])
        [(2,), (0, 3), None]
        """
        ids = self.ids
        longest = max(map(len, ids), default=0)
        found: list[Pieces | None] = [(ids[part],) if part in ids else None for part in parts]
        texts = {place: text for place, part in enumerate(parts) if found[place] is None and (text := _text(part))}
        cuts = self.own(list(texts.values())) if self.own is not None and texts else []
        for place, cut in zip(texts, cuts, strict=False):
            if all(self.written[token] is not None for token in cut) and self.text_of(cut) == parts[place]:
                found[place] = tuple(cut)
        return [
            _fewest(part, ids, longest) if known is None else known for part, known in zip(parts, found, strict=True)
        ]


def vocabulary_size(tokenizer: Any) -> int:
    """Output rows that its tokens need: the greatest id and one, as ids may leave gaps."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def tokens_of(tokenizer: Any) -> Tokens:
    """The bytes of a tokenizer's tokens: byte-level BPE, SentencePiece and its like, or bytes.

    Raises: InputError: tokens that are no bytes by a rule known here, as of tokenizers that lower-case.
    """
    special = special_tokens(tokenizer)
    added = {number: text for text, number in tokenizer.get_added_vocab().items()}
    rows = list(range(vocabulary_size(tokenizer)))
    names = [None if name is None else str(name) for name in tokenizer.convert_ids_to_tokens(rows)]
    write = rule_of(tokenizer) or str.encode
    specials = set(special.values())
    written = tuple(
        None
        if name is None or number in specials
        else (added[number].replace("▁", " ").encode() if number in added else write(name)) or None
        for number, name in enumerate(names)
    )

    def own(texts: list[str]) -> list[list[int]]:
        cuts: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return cuts

    bytewise = (number for number, name in enumerate(names) if name is not None and BYTE.fullmatch(name))
    fallback = frozenset(bytewise) - added.keys() if write is of_sentence_piece else frozenset()
    found = Tokens(written, special, own, fallback)
    cut = own([PROBE])[0]
    spelled = found.text_of([token for token in cut if token != tokenizer.unk_token_id])
    if rule_of(tokenizer) is None or not _is_of(spelled.removeprefix(b" "), tokenizer.unk_token_id in cut):
        raise InputError(
            f"{type(tokenizer).__name__} writes {PROBE!r} as {spelled.decode(errors='replace')!r}: its tokens are no "
            "bytes of a text by a rule known here; take a byte-level BPE, a SentencePiece or a byte tokenizer"
        )
    return replace(found, own=_inside(tokenizer)) if spelled.startswith(b" ") else found


def _inside(tokenizer: Any) -> Cut:
    """How a tokenizer that writes a space before every text cuts what stands inside one: without that space."""
    from tokenizers import Tokenizer

    settings = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    for part in ("normalizer", "pre_tokenizer"):
        settings[part] = _unprefixed(settings[part])
    backend = Tokenizer.from_str(json.dumps(settings))
    return lambda texts: [cut.ids for cut in backend.encode_batch(texts, add_special_tokens=False)]


def _unprefixed(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normaliser or pre-tokeniser of a `tokenizer.json` that puts nothing before a text."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        return part | {name: [own for step in part[name] if (own := _unprefixed(step)) is not None]}
    switches: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    return part | switches.get(part["type"], {})


def _is_of(spelled: bytes, gaps: bool) -> bool:
    """Whether this is the probe; with gaps, where characters have no token, most of it in order."""
    rest = iter(PROBE.encode())
    enough = len(spelled) >= len(PROBE) / 2
    return all(byte in rest for byte in spelled) and enough if gaps else spelled == PROBE.encode()


def rule_of(tokenizer: Any) -> Callable[[str], bytes] | None:
    """How the names of tokens say what these write; None for whole words."""
    if hasattr(tokenizer, "_utf_vocab_size"):  # ByT5
        return lambda name: name.encode("latin-1")
    decoder = str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))
    return of_bytes if "ByteLevel" in decoder else of_sentence_piece if "▁" in decoder else None


def of_bytes(token: str) -> bytes:
    """What a token of byte-level BPE writes."""
    codes = _byte_of_character()
    if all(character in codes for character in token):
        return bytes(codes[character] for character in token)
    return token.encode()  # added to the vocabulary as a text


@cache
def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable bytes stand for themselves, the others for characters from 256 on.

    Source: Radford et al. (2019), GPT-2, `bytes_to_unicode`.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + place): value for place, value in enumerate(others)}


def of_sentence_piece(token: str) -> bytes:
    """What a token of SentencePiece writes, byte fallback included."""
    if byte := BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Special tokens by name, those that were added as special included."""
    found = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            found[str(token.content)] = number
    return {str(name): int(number) for name, number in found.items()}


def _text(part: bytes) -> str:
    """The bytes as a text; empty where they are none."""
    try:
        return part.decode()
    except UnicodeDecodeError:
        return ""


def _fewest(part: bytes, ids: dict[bytes, int], longest: int) -> Pieces | None:
    """The fewest tokens that write a part, the longest first.

        n(∅) = 0,   n(x) = 1 + min over tokens t with x = t·y of n(y)

    Source: own derivation, shortest path.
    """
    infinite = len(part) + 1
    least, step = [infinite] * len(part) + [0], [0] * len(part)
    for start in reversed(range(len(part))):
        for end in range(start + 1, min(len(part), start + longest) + 1):
            if part[start:end] in ids and 1 + least[end] <= least[start]:  # of equal ways the longest token
                least[start], step[start] = 1 + least[end], end
    if not part or least[0] >= infinite:
        return None
    pieces, place = [], 0
    while place < len(part):
        pieces.append(ids[part[place : step[place]]])
        place = step[place]
    return tuple(pieces)
