"""A teacher that is only served: behind the completions API of vLLM, llama.cpp, OpenAI and others.

Its set of a state is what equation (1) makes of the N most probable tokens that the server returns: A_p cut as by
`max_candidates = N`. Where these do not hold the mass p, the set is all of them, Z < p, and 1 − Z is its lost mass;
nothing is renormalised. Log-probabilities are those of the full softmax, so rewards (2) of candidates are exact, and
(3), (4b), (4c) and (4d) hold of the sets as they are; `Z ≥ p` does not. What lies outside the N tokens is not known:
what needs the whole distribution is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from envs.errors import InputError
from envs.hf_teacher import Worded, first_line, load_tokenizer
from envs.served_handshake import Manner, greet
from envs.served_http import Client, MalformedError
from envs.served_protocol import Reply, Row, Words, check_all_told, choices_of, reply_of, rows_of, used
from envs.serving import Serving
from envs.teachers import SERVED
from envs.token_bytes import special_tokens

A = TypeVar("A")
T = TypeVar("T")


class ServedTeacher(Worded):
    """The model behind a URL, as `envs.teachers.Teacher` asks; `score` is refused.

    Args:
        url: of the API, as in http://localhost:8000/v1, also with `served:` before it.
        tokenizer: directory or hub id of the served model's tokenizer; it is checked against the server's tokens.
        serving: how it is asked.
        chat_template: wrap each prompt as a user's turn of the tokenizer's chat template.
    Raises:
        InputError: a URL, key or model that cannot be used, another tokenizer, or a server without log-probabilities.
        UnavailableError: no answer.
    """

    whole = False  # its distributions are known at the most probable tokens only

    def __init__(
        self, url: str, tokenizer: str | Path, serving: Serving | None = None, *, chat_template: bool = False
    ) -> None:
        serving = serving or Serving()
        super().__init__(_tokenizer_of(str(tokenizer)), str(tokenizer), chat_template)
        self.words = Words(self.tokenizer, str(tokenizer))
        self.eos_ids = eos_ids_of(self.tokenizer, tokenizer)
        self._special = frozenset(special_tokens(self.tokenizer).values())
        self.vocab_size = self.words.size
        self.client = Client(url.removeprefix(SERVED), serving)
        self.manner: Manner = greet(self.client, self.tokenizer, self.words)
        self.serving = replace(serving, model=self.manner.model)
        self.name = f"{SERVED}{self.manner.model}"
        self.context_limit = self.manner.context - 1  # room for the token whose log-probabilities a cut reply ends with

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by address: another process asks by itself."""
        return _of, (self.client.url, self.words.name, self.serving, self.chat_template)

    @property
    def identity(self) -> str:
        """What tells this teacher from another: its model's name, and what the server says of the weights."""
        told = json.dumps([self.manner.model, self.manner.weights], sort_keys=True)
        return "served-" + hashlib.blake2b(told.encode(), digest_size=12).hexdigest()

    def walk(self, rows: int) -> ServedWalk:
        return ServedWalk(self, rows)

    def score(self, sequences: Sequence[Sequence[int]]) -> NoReturn:
        """Raises: InputError: always."""
        raise InputError(
            f"the whole distributions of {self.name} are asked for, the server returns the {self.manner.top} most "
            "probable tokens; take agents and measures that need none, from a store with --teacher none"
        )

    def next_rows(self, texts: Sequence[Sequence[int]]) -> list[Row]:
        """What follows each text: one request a text, of one token.

        Raises: as `envs.served_http.Client.ask`; InputError: the server says nothing of an ending.
        """
        found: dict[int, Row] = {}

        def ask(place: int) -> None:
            found[place] = self._next_row(texts[place])

        self.each(range(len(texts)), ask)
        return [found[place] for place in range(len(texts))]

    def replies(self, prompts: Sequence[Sequence[int]], budget: int, seed: int | None) -> list[Reply]:
        """A reply to each prompt in one request, drawn by the server from the full softmax at temperature 1.

        Args:
            prompts: as many as a request takes, with equal room for a reply.
            budget: most tokens of a reply; one more is asked for, for the candidates of the state that was cut.
            seed: of the server's draws; None: it takes its own.
        Returns: replies that end with an EOS, or hold budget + 1 tokens, or lack their end, which `ended` puts there.
        Raises: as `next_rows`.
        """

        def read(answer: Any) -> list[Reply]:
            found = [reply_of(choice, self.words, self.manner.top) for choice in choices_of(answer, len(prompts))]
            for reply in found:
                if reply.finish not in ("stop", "length", None):
                    raise MalformedError(f"a reply ended by {reply.finish!r}")
            check_all_told(answer, found, self.eos_ids)
            return found

        return [self._cut(reply, budget) for reply in self._ask(prompts, budget + 1, read, seed=seed)]

    def lacks_end(self, reply: Reply) -> bool:
        """Whether the server has left out what ended a reply."""
        return reply.finish == "stop" and (not reply.tokens or reply.tokens[-1] not in self.eos_ids)

    def ended(self, prompt: Sequence[int], reply: Reply, budget: int) -> Reply:
        """A reply with the end that it lacks: one request. Behind as many tokens as the budget it is the token more.

        Raises: as `next_rows`.
        """
        logp, row = self._echoed([*prompt, *reply.tokens])
        finish = "stop" if len(reply.tokens) < budget else "length"
        return Reply([*reply.tokens, self._eos], [*reply.logp, logp], [*reply.rows, row], finish)

    def each(self, items: Iterable[A], do: Callable[[A], None]) -> None:
        """`do` every item, `serving.concurrency` at a time.

        Raises: what one of them raises first, once those that are in flight have ended; none is begun any more.
        """
        queue, running = iter(items), set[Future[None]]()
        try:
            with ThreadPoolExecutor(self.serving.concurrency) as pool:
                try:
                    while True:
                        running |= {
                            pool.submit(do, item) for item in islice(queue, self.serving.concurrency - len(running))
                        }
                        if not running:
                            return
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                except BaseException:
                    self.client.stopping.set()  # ends waits for another attempt; answers on their way are taken
                    raise
        finally:
            self.client.stopping.clear()

    def _ask(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        read: Callable[[Any], T],
        *,
        seed: int | None = None,
        echo: bool = False,
    ) -> T:
        """What `read` makes of the continuations of these prompts, by at most so many tokens each."""
        body = self.manner.body([list(prompt) for prompt in prompts], tokens, self.serving.logprobs)
        body |= {"seed": seed} if seed is not None else {}
        body |= {"echo": True} if echo else {}
        sent = sum(map(len, prompts))
        count = partial(used, prompt_tokens=sent, echo=echo)
        return self.client.ask("completions", body, read, count, sent + tokens * len(prompts))

    def _next_row(self, text: Sequence[int]) -> Row:
        def read(answer: Any) -> Row | None:
            choice = choices_of(answer, 1)[0]
            rows = rows_of(choice, self.words, self.manner.top)
            if not rows and choice.get("finish_reason") == "length" and not self.manner.echoes:
                raise MalformedError("it tells nothing of the token that it has drawn")
            return next(iter(rows), None)

        row = self._ask([text], 1, read)  # at temperature 1: some servers tell what a temperature makes of the softmax
        return row or self._echoed(text)[1]  # it would end here, and says nothing of endings

    def _cut(self, reply: Reply, budget: int) -> Reply:
        """The reply up to its EOS, or with one token more than the budget, or as it is where its end was left out."""
        ends = [place for place, token in enumerate(reply.tokens[:budget]) if token in self.eos_ids]
        if ends or len(reply.tokens) > budget:
            stop = ends[0] + 1 if ends else budget + 1
            return Reply(reply.tokens[:stop], reply.logp[:stop], reply.rows[:stop], "stop" if ends else "length")
        if reply.finish != "stop":
            raise InputError(
                f"the server ended a reply after {len(reply.tokens)} tokens of {budget + 1} ({reply.finish!r}); lower "
                "--max-new-tokens to what it gives, less one"
            )
        if reply.tokens and (last := reply.tokens[-1]) in self._special:
            raise InputError(
                f"the server ended a reply with token {last} ({self.words.shown['raw'][last]!r}), the tokenizer's ends "
                f"are {sorted(self.eos_ids)}; put the model's generation_config.json, which names all, beside it"
            )
        return reply

    def _echoed(self, text: Sequence[int]) -> tuple[float, Row]:
        """The log-probability of an end of this text, and the row before it, of a server that leaves endings out of
        what it generates: the text is sent with the end behind it, and read back."""
        if not self.manner.echoes:
            raise InputError(
                f"{self.client.url} returns no log-probabilities of the token that ends a text, and does not echo; its "
                "replies cannot be learnt from (vLLM's and llama.cpp's own servers return them)"
            )

        def read(answer: Any) -> tuple[float, Row]:
            return self._echo(choices_of(answer, 1)[0], len(text))

        return self._ask([[*text, self._eos]], 1, read, echo=True)

    def _echo(self, choice: dict[str, Any], place: int) -> tuple[float, Row]:
        told = choice.get("logprobs") or {}
        try:
            columns = {name: [told[name][place]] for name in ("tokens", "token_logprobs", "top_logprobs")}
        except (KeyError, IndexError, TypeError) as error:
            raise MalformedError("the echo is shorter than the text") from error
        reply = reply_of({"logprobs": columns}, self.words, self.manner.top)
        if reply.tokens[0] != self._eos:
            raise MalformedError(f"the echo ends with token {reply.tokens[0]}, {self._eos} was sent")
        return reply.logp[0], reply.rows[0]

    @property
    def _eos(self) -> int:
        own = self.tokenizer.eos_token_id
        return int(own) if own in self.eos_ids else min(self.eos_ids)


def _of(url: str, tokenizer: str, serving: Serving, chat_template: bool) -> ServedTeacher:
    return ServedTeacher(url, tokenizer, serving, chat_template=chat_template)


class ServedWalk:
    """N texts of a served teacher, a request a step and text: what is not among the N tokens has −∞.

    The sets are `envs.candidates.top_p`'s of these rows. See `envs.walk.Walk`.
    """

    def __init__(self, teacher: ServedTeacher, rows: int) -> None:
        self._teacher = teacher
        self._texts: list[list[int]] = [[] for _ in range(rows)]
        self.log_probs = torch.zeros(rows, teacher.vocab_size)  # (N, V)

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        for row, prompt in zip(rows, prompts, strict=True):
            self._texts[row] = list(prompt)
        self._look(list(rows))

    def step(self, tokens: Tensor, active: Tensor) -> None:
        rows = active.nonzero()[:, 0].tolist()
        for row in rows:
            self._texts[row].append(int(tokens[row]))
        self._look(rows)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self._texts = [self._texts[row] for row in rows]
        self.log_probs = self.log_probs[list(rows)]

    def _look(self, rows: list[int]) -> None:
        found = self.log_probs.clone()
        for row, told in zip(rows, self._teacher.next_rows([self._texts[row] for row in rows]), strict=True):
            found[row] = -torch.inf
            found[row, told.ids] = torch.tensor(told.logp)
        self.log_probs = found


def _tokenizer_of(source: str) -> Any:
    """Raises: InputError: there is none."""
    try:
        return load_tokenizer(source)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"no tokenizer in {source!r} ({first_line(error)}); give the directory of the served model's, as "
            "save_pretrained writes it, or a hub id and a network"
        ) from error


def eos_ids_of(tokenizer: Any, source: str | Path) -> frozenset[int]:
    """Tokens that end a text: the tokenizer's, and those of a generation configuration that lies beside it.

    Raises: InputError: there is none.
    """
    found = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    beside = Path(source) / "generation_config.json"
    if beside.is_file():
        try:
            told = json.loads(beside.read_text(encoding="utf-8")).get("eos_token_id")
            found.update(map(int, told if isinstance(told, list) else [] if told is None else [told]))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{beside} names no EOS tokens ({error}); mend it, or take it away") from error
    if not found:
        raise InputError(f"the tokenizer {str(source)!r} names no EOS token; set its eos_token")
    return frozenset(found)
