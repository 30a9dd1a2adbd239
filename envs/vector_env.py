"""The environment: N texts over one teacher, one batched forward a step. Everything else is a face of this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.candidates import PAD_LOGP, Candidates, check_top_p, top_p, width_of
from envs.errors import InputError
from envs.prompts import Prompt, encode_prompts
from envs.rendering import render_state, token_text
from envs.rewards import Reward, Step, make_reward
from envs.teachers import Teacher, load_teacher

Array = npt.NDArray[Any]
Observation = dict[str, Array]
Prompts = str | Path | Sequence[str] | Sequence[Sequence[int]] | Sequence[Prompt] | None


class TopPTokenVectorEnv(VectorEnv[Observation, Array, Array]):
    """N episodes of token generation on a teacher's nucleus, stepped by one batched teacher forward.

    ## Description
    The state is a prompt and the tokens so far, the transition appends a token: P(s·a | s, a) = 1.
    Source: arXiv:2505.20335, section 3; the design's equations (1) and (2).

    ## Action Space
    A **slot** per row, `Discrete(K)`: slot k is the candidate with the k-th highest teacher probability. K =
    min(max_candidates, V), or V at `top_p = 1`. A slot without a candidate raises `InvalidAction`. `step_tokens` takes
    token ids instead, also outside the set.

    ## Observation Space
    | key | space | what |
    |---|---|---|
    | `context` | Box int32 (L,) | prompt and reply, left-aligned, padding 0; L = max_prompt_tokens + max_new_tokens |
    | `length` | Discrete(L + 1) | tokens in `context` |
    | `ids` | Box int32 (K,) | token ids of the candidates; padding 0 |
    | `logp` | Box float32 (K,) | their full-softmax log-probabilities, nats; padding −10,000, finite |
    | `mask` | MultiBinary (K,) | 1 = candidate; all 0 after EOS |

    ## Rewards
    Equation (2), chosen by `reward`; by default log π_T(a|s) in nats. See `envs.rewards`.

    ## Starting State
    A prompt; prompts are visited in a seeded random order, each once per pass. `reset(options={"prompts": [...]})`
    chooses them, one a row (texts or lists of token ids).

    ## Episode Termination and Truncation
    Any EOS id of the teacher, or a stop string, **terminates**. The token budget or the teacher's context
    **truncates**; the observation then holds the candidates of the state that was cut, to bootstrap from.

    ## Information
    Per row: `action_mask` int8 (K,), `token` (the one just taken; −1 after a reset), `in_set` (it was a candidate), and
    of the state reached `lost_mass` = 1 − Z (0 after EOS) and `cut` (`max_candidates` shortened the set).

    ## Autoreset
    `"next_step"` (default): the step after an episode's last one resets the row and ignores its action. `"same_step"`:
    the last step resets at once, its observation and info are in `final_obs` and `final_info`. `"disabled"`: rows wait
    for `reset(options={"reset_mask": ...})`.

    ## Arguments
    teacher: a name, a directory, a hub id, a `Teacher`, or `(model, tokenizer)`. Its sampling settings (top_k,
    penalties) are ignored. prompts: a file, texts, lists of token ids, or None, the embedded training split.
    gamma: for the rewards that need it; nothing is discounted here.

    Raises: InputError: an argument out of range, no prompt, or one longer than max_prompt_tokens or the context.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        teacher: Any = "embedded",
        prompts: Prompts = None,
        top_p: float = 0.9,
        max_candidates: int | None = 64,
        max_prompt_tokens: int | None = None,
        max_new_tokens: int = 64,
        reward: str | Reward | Callable[[str, str], float] = "logprob",
        gamma: float = 1.0,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        stop_strings: Sequence[str] = (),
    ) -> None:
        check_top_p(top_p, max_candidates)
        for name, value in {"num_envs": num_envs, "max_new_tokens": max_new_tokens}.items():
            if value < 1:
                raise InputError(f"{name} = {value} is below 1")
        if render_mode not in {None, *self.metadata["render_modes"]}:
            raise InputError(f"render_mode {render_mode!r} is none of 'ansi', 'human' and None")
        self.teacher: Teacher = load_teacher(teacher)
        self.reward = make_reward(reward, gamma)
        self.top_p, self.max_new_tokens, self.gamma = top_p, max_new_tokens, gamma
        self.render_mode, self.stop_strings = render_mode, tuple(stop_strings)
        self.autoreset_mode = AutoresetMode(_mode_value(autoreset_mode))
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.prompts, self._prompt_ids = encode_prompts(self.teacher, prompts)
        self.max_prompt_tokens = max_prompt_tokens or max(map(len, self._prompt_ids))
        for index, ids in enumerate(self._prompt_ids):
            self._check_prompt(ids, f"prompt {index}")
        self.num_envs = num_envs
        self._slots = width_of(self.teacher.vocab_size, top_p, max_candidates)
        self._make_spaces()
        self._make_state()

    def _make_spaces(self) -> None:
        vocabulary, slots = self.teacher.vocab_size, self._slots
        self._width = self.max_prompt_tokens + self.max_new_tokens  # L
        spaces = gymnasium.spaces
        self.single_action_space = spaces.Discrete(slots)
        self.single_observation_space = spaces.Dict(
            {
                "context": spaces.Box(0, vocabulary - 1, (self._width,), np.int32),
                "length": spaces.Discrete(self._width + 1),
                "ids": spaces.Box(0, vocabulary - 1, (slots,), np.int32),
                "logp": spaces.Box(PAD_LOGP, 0.0, (slots,), np.float32),
                "mask": spaces.MultiBinary(slots),
            }
        )
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _make_state(self) -> None:
        rows = self.num_envs
        self._walk = self.teacher.walk(rows)
        self._eos = torch.tensor(sorted(self.teacher.eos_ids))
        self._context = np.zeros((rows, self._width), dtype=np.int32)
        self._length = np.zeros(rows, dtype=np.int64)
        self._prompt_length = np.zeros(rows, dtype=np.int64)
        self.prompt_index = np.full(rows, -1)
        """Which prompt each row answers, (N,) int64; −1 for one that `reset` was given."""
        self._ended = np.ones(rows, dtype=bool)  # rows that wait for a reset
        self._queue: list[int] = []
        self._candidates: Candidates | None = None

    @property
    def log_probs(self) -> Tensor:
        """log π_T(·|s) of the current states, (N, V) float32, nats; unspecified for rows that ended."""
        return self._walk.log_probs

    @property
    def candidates(self) -> Candidates:
        """Candidate sets of the current states, (N, K); empty after EOS.

        Raises: ResetNeeded: before the first reset.
        """
        if self._candidates is None:
            raise ResetNeeded("the environment has no state yet; call reset first")
        return self._candidates

    def prompt_tokens(self, row: int) -> list[int]:
        """The prompt that a row answers, as token ids."""
        return list(map(int, self._context[row, : self._prompt_length[row]]))

    def reply_tokens(self, row: int) -> list[int]:
        """The tokens of a row's reply so far."""
        return list(map(int, self._context[row, self._prompt_length[row] : self._length[row]]))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin all rows, or those of `options["reset_mask"]`; `options["prompts"]` gives each row its prompt."""
        if isinstance(seed, list):
            raise InputError("one seed serves all rows, which are stepped together; give an int")
        if seed is not None:
            self._np_random, self._np_random_seed = gymnasium.utils.seeding.np_random(seed)
            self._queue = []
        options = options or {}
        chosen = np.asarray(options.get("reset_mask", np.ones(self.num_envs)), dtype=bool)
        if chosen.shape != (self.num_envs,) or not chosen.any():
            raise InputError(f"reset_mask must be {self.num_envs} flags with one True at least, not {chosen!r}")
        self._begin(chosen, options.get("prompts"))
        self._look(np.zeros(self.num_envs, dtype=bool))
        if self.render_mode == "human":
            print("\n\n".join(self._texts_shown()))
        return self._observe(), self._infos(np.full(self.num_envs, -1), np.ones(self.num_envs, dtype=bool))

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Take a slot in every row; see the class for what rows that wait do.

        Raises: InvalidAction: a slot without a candidate; nothing has happened then. ResetNeeded: see `step_tokens`.
        """
        slots = torch.as_tensor(np.asarray(actions), dtype=torch.int64).reshape(-1)
        inside = (slots >= 0) & (slots < self._slots)
        found = self.candidates
        index = slots.clamp(0, self._slots - 1)[:, None]
        legal = inside & found.mask.gather(1, index)[:, 0] | torch.from_numpy(self._ended)
        if not legal.all():
            row = int((~legal).nonzero()[0])
            count = int(found.mask[row].sum())
            raise InvalidAction(
                f"slot {int(slots[row])} of row {row} has no candidate; slots 0 to {count - 1} have one"
            )
        return self._advance(found.ids.gather(1, index)[:, 0])

    def step_tokens(self, tokens: Array | Tensor) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Take a token in every row, inside the set or not: a student's own walk.

        A token outside pays its full log π_T and is marked `in_set = False`.

        Raises: InvalidAction: no token of the vocabulary. ResetNeeded: a row that ended, without autoreset.
        """
        taken = torch.as_tensor(tokens, dtype=torch.int64).reshape(-1)
        wrong = ((taken < 0) | (taken >= self.teacher.vocab_size)) & ~torch.from_numpy(self._ended)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            limit = self.teacher.vocab_size
            raise InvalidAction(f"token {int(taken[row])} of row {row} is outside the vocabulary of {limit}")
        return self._advance(taken.clamp(0, self.teacher.vocab_size - 1))

    def _advance(self, tokens: Tensor) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        resetting = self._ended.copy()
        if resetting.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            row = int(resetting.argmax())
            raise ResetNeeded(f'row {row} has ended; reset it with options={{"reset_mask": ...}}')
        before, acting = self.candidates, ~resetting
        active = torch.from_numpy(acting)
        taken_logp = self.log_probs.gather(1, tokens[:, None])[:, 0].clamp(min=PAD_LOGP, max=0.0)
        in_set = ((before.ids == tokens[:, None]) & before.mask).any(1).numpy() | resetting
        rows = acting.nonzero()[0]
        self._context[rows, self._length[rows]] = tokens.numpy()[rows]
        self._length[rows] += 1
        terminated = acting & (torch.isin(tokens, self._eos).numpy() | self._stopped(rows))
        new = self._length - self._prompt_length
        full = (new >= self.max_new_tokens) | (self._length >= self.teacher.context_limit)
        truncated = acting & full & ~terminated
        self._walk.step(tokens, active & ~torch.from_numpy(terminated))
        self._ended = terminated | truncated
        if resetting.any():
            self._begin(resetting)
        self._look(terminated)
        step = Step(
            taken_logp=torch.where(active, taken_logp, 0.0),
            log_mass=torch.where(active, before.log_mass, 0.0),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            after=self._candidates,
            texts=self._texts,
        )
        rewards = torch.where(active, self.reward(step), 0.0).numpy()
        infos = self._infos(np.where(acting, tokens.numpy(), -1), in_set)
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._ended.any():
            infos = self._begin_at_once(infos)
        if self.render_mode == "human":
            print("\n\n".join(self._texts_shown()))
        return self._observe(), rewards, terminated, truncated, infos

    def _begin_at_once(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Same-step autoreset: keep what the ended rows saw last, and begin them anew."""
        last, ended = self._observe(), self._ended.copy()
        finals: dict[str, Any] = {}
        for row in ended.nonzero()[0]:
            single = {key: value[row].copy() for key, value in last.items()}
            info = {key: value[row] for key, value in infos.items() if not key.startswith("_")}
            finals = self._add_info(finals, {"final_obs": single, "final_info": info}, int(row))
        self._begin(ended)
        self._look(np.zeros_like(ended))
        fresh = self._infos(np.full(self.num_envs, -1), np.ones_like(ended))
        merged = {
            key: np.where(ended.reshape(-1, *[1] * (value.ndim - 1)), fresh[key], value) for key, value in infos.items()
        }
        return {**merged, **finals}

    def _begin(self, chosen: npt.NDArray[np.bool_], prompts: Sequence[Any] | None = None) -> None:
        rows = chosen.nonzero()[0].tolist()
        if prompts is not None:
            _, texts = encode_prompts(self.teacher, prompts)
            if len(texts) != len(rows):
                raise InputError(f"{len(texts)} prompts were given for {len(rows)} rows; give one a row")
            for number, text in enumerate(texts):
                self._check_prompt(text, f"prompt {number}")
            self.prompt_index[rows] = -1
        else:
            self.prompt_index[rows] = [self._next_prompt() for _ in rows]
            texts = [self._prompt_ids[index] for index in self.prompt_index[rows]]
        for row, text in zip(rows, texts, strict=True):
            self._context[row] = 0
            self._context[row, : len(text)] = text
            self._length[row] = self._prompt_length[row] = len(text)
        self._ended[rows] = False
        self._walk.start(rows, texts)

    def _next_prompt(self) -> int:
        if not self._queue:
            self._queue = self.np_random.permutation(len(self._prompt_ids)).tolist()
        return self._queue.pop()

    def _look(self, terminated: npt.NDArray[np.bool_]) -> None:
        """The candidates of every row's state; none where the text has ended by itself."""
        gone = torch.from_numpy(terminated)[:, None]
        ids, logp, mask, cut = top_p(self.log_probs, self.top_p, self._slots)
        self._candidates = Candidates(
            ids=ids.masked_fill(gone, 0),
            logp=logp.masked_fill(gone, PAD_LOGP),
            mask=mask & ~gone,
            cut=cut & ~gone[:, 0],
        )

    def _observe(self) -> Observation:
        found = self.candidates
        return {
            "context": self._context.copy(),
            "length": self._length.copy(),
            "ids": found.ids.numpy().astype(np.int32),
            "logp": found.logp.clamp(max=0.0).numpy().copy(),
            "mask": found.mask.numpy().astype(np.int8),
        }

    def _infos(self, tokens: Array, in_set: Array) -> dict[str, Any]:
        found = self.candidates
        alive = found.mask.any(1)
        infos: dict[str, Any] = {
            "action_mask": found.mask.numpy().astype(np.int8),
            "token": tokens,
            "lost_mass": torch.where(alive, found.lost_mass, 0.0).numpy(),
            "cut": found.cut.numpy().copy(),
            "in_set": in_set,
        }
        return infos | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in infos}

    def _stopped(self, rows: Iterable[int]) -> npt.NDArray[np.bool_]:
        stopped = np.zeros(self.num_envs, dtype=bool)
        if self.stop_strings:
            for row in rows:
                text = self.teacher.decode(self.reply_tokens(row))
                stopped[row] = any(stop in text for stop in self.stop_strings)
        return stopped

    def _texts(self, row: int) -> tuple[str, str]:
        return self.teacher.decode(self.prompt_tokens(row)), self.teacher.decode(self.reply_tokens(row))

    def _check_prompt(self, ids: Sequence[int], who: str) -> None:
        limit = min(self.max_prompt_tokens, self.teacher.context_limit - 1)
        if not 0 < len(ids) <= limit:
            raise InputError(
                f"{who} has {len(ids)} tokens, the limit is {limit} (max_prompt_tokens, and one less than the "
                f"teacher's context of {self.teacher.context_limit}); shorten it or leave it out"
            )

    def _texts_shown(self) -> list[str]:
        found, show = self.candidates, partial(token_text, self.teacher)
        return [
            render_state(
                self.teacher.decode(self.prompt_tokens(row)),
                [show(token) for token in self.reply_tokens(row)],
                [(show(token), logp) for token, logp in _pairs(found, row)],
            )
            for row in range(self.num_envs)
        ]

    def render(self) -> tuple[str, ...] | None:
        """Every row's text so far and its candidates; None in mode "human", which prints at every step."""
        return tuple(self._texts_shown()) if self.render_mode == "ansi" else None


def _pairs(found: Candidates, row: int) -> list[tuple[int, float]]:
    mask = found.mask[row]
    return list(zip(found.ids[row, mask].tolist(), found.logp[row, mask].tolist(), strict=True))


def _mode_value(mode: str | AutoresetMode) -> str:
    if isinstance(mode, AutoresetMode):
        return str(mode.value)
    values = {item.name.lower(): str(item.value) for item in AutoresetMode}
    if mode.lower() not in values:
        raise InputError(f"autoreset_mode {mode!r} is none of {', '.join(values)}")
    return values[mode.lower()]
