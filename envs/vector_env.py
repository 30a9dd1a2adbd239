"""The environment: N texts over one teacher, one batched forward a step. Everything else is a face of this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

from envs import checks
from envs.candidates import PAD_LOGP, Candidates, check_top_p, width_of
from envs.deck import Card, Deck
from envs.errors import InputError
from envs.extras import Extras, fitting, hybrid
from envs.prompts import Prompt
from envs.rendering import render_state
from envs.rewards import Reward, Step, make_reward
from envs.spaces import observation_space, row_of
from envs.teachers import Teacher, load_teacher
from envs.walk import Expectant, full_of, scores_of

Array = npt.NDArray[Any]
Observation = dict[str, Array]
Prompts = str | Path | Sequence[str] | Sequence[Sequence[int]] | Sequence[Prompt] | None


class TopPTokenVectorEnv(VectorEnv[Observation, Array, Array]):
    """N episodes of token generation on a teacher's nucleus, stepped by one batched teacher forward.

    ## Description
    The state is a prompt and the tokens so far, the transition appends a token: P(s·a | s, a) = 1. The actions of a
    state are the teacher's nucleus A_p(s). A row that finished is refilled without stopping the others.
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

    ## Starting State
    A prompt; prompts are visited in a seeded random order, each once per pass; a reset without a seed goes on in it.
    `reset(options={"prompts": [...]})` chooses them, one a row to be reset (texts, or lists of token ids), and
    `{"prompt": ...}` one for all.

    ## Rewards
    Equation (2), chosen by `reward`; by default log π_T(a|s) in nats, not below −10,000. See `envs.rewards`.

    ## Episode End
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
    * `teacher`: a name, a directory, a hub id, a `Teacher`, or `(model, tokenizer)`. Its sampling settings (top_k,
      penalties) are ignored. It is a handle: Gymnasium deep-copies specs, and a `Teacher` stays itself.
    * `prompts`: a file, texts, lists of token ids, or None, the embedded training split.
    * `top_p`, `max_candidates`: equation (1); None keeps every slot, K = V.
    * `max_prompt_tokens`: None = the longest prompt given. `max_new_tokens`: the budget, EOS included.
    * `reward`, `gamma`: equation (2); gamma is for the rewards that need it, nothing is discounted here.
    * `render_mode`: "ansi" returns what "human" prints: the text, the choice, the candidates.
    * `stop_strings`: texts that end a reply which contains one.
    * `extras`: what joins every nucleus, such as a protected lexicon: `envs.extras`; None adds nothing.

    ## Version History
    * v0: first version.

    Raises: InputError: an argument out of range or of another type, no prompt, one longer than max_prompt_tokens or the
        context, a budget that the context has no room for after any prompt, or extras that K slots may not hold.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

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
        extras: Extras | None = None,
    ) -> None:
        num_envs, max_new_tokens = checks.whole("num_envs", num_envs), checks.whole("max_new_tokens", max_new_tokens)
        max_candidates = None if max_candidates is None else checks.whole("max_candidates", max_candidates)
        top_p, gamma = checks.real("top_p", top_p), checks.real("gamma", gamma)
        check_top_p(top_p, max_candidates)
        if render_mode not in {None, *self.metadata["render_modes"]}:
            raise InputError(f"render_mode {render_mode!r} is none of 'ansi', 'human' and None")
        self.teacher: Teacher = load_teacher(teacher)
        self.reward = make_reward(reward, gamma)
        self.top_p, self.max_new_tokens, self.gamma = top_p, max_new_tokens, gamma
        self.render_mode, self.stop_strings = render_mode, checks.stop_strings_of(stop_strings)
        self.autoreset_mode = checks.autoreset_of(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        context = self.teacher.context_limit
        checks.check_prompt_limit(max_prompt_tokens, context)
        self._deck = Deck(self.teacher, prompts, max_prompt_tokens)
        checks.check_budget(max_new_tokens, self._deck.shortest, context)
        self.prompts = self._deck.prompts
        """The prompts given, which `prompt_index` counts; empty where they were given as ids."""
        self.max_prompt_tokens = self._deck.longest
        self.num_envs = num_envs
        self._slots = width_of(self.teacher.vocab_size, top_p, max_candidates)
        self.extras = fitting(extras, self._slots, self.teacher.vocab_size, self.max_prompt_tokens)
        self._make_spaces()
        self._make_state()

    def _make_spaces(self) -> None:
        self._width = self.max_prompt_tokens + self.max_new_tokens  # L
        self.single_action_space = gymnasium.spaces.Discrete(self._slots)
        self.single_observation_space = observation_space(self.teacher.vocab_size, self._slots, self._width)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _make_state(self) -> None:
        rows = self.num_envs
        self._walk = self.teacher.walk(rows)
        self._is_eos = np.isin(np.arange(self.teacher.vocab_size), list(self.teacher.eos_ids))
        self._context = np.zeros((rows, self._width), dtype=np.int32)
        self._length = np.zeros(rows, dtype=np.int64)
        self._prompt_length = np.zeros(rows, dtype=np.int64)
        self._cards: list[Card | None] = [None] * rows  # the prompt that each row answers
        self._token = np.full(rows, -1)  # the token just taken; −1 after a reset
        self._in_set = np.ones(rows, dtype=bool)
        self._terminated = np.zeros(rows, dtype=bool)  # rows whose text is over
        self._ended = np.ones(rows, dtype=bool)  # rows that wait for a reset: terminated, truncated, or never begun
        self._candidates: Candidates | None = None
        self._log_mass = torch.zeros(rows)  # of `_candidates`, log Z, nats

    @property
    def log_probs(self) -> Tensor:
        """log π_T(·|s) of the current states, (N, V) float32, nats; unspecified for rows that ended."""
        checks.check_open(self.closed)
        return self._walk.log_probs

    @property
    def scores(self) -> tuple[Tensor, Tensor]:
        """The same without writing it out: logits (N, V), on the teacher's device, and their log Σ exp (N,)."""
        checks.check_open(self.closed)
        return scores_of(self._walk)

    @property
    def candidates(self) -> Candidates:
        """Candidate sets of the current states, (N, K); empty after EOS.

        Raises: ResetNeeded: before the first reset. ClosedEnvironmentError: after `close`.
        """
        checks.check_open(self.closed)
        if self._candidates is None:
            raise ResetNeeded("the environment has no state yet; call reset first")
        return self._candidates

    @property
    def prompt_index(self) -> npt.NDArray[np.int64]:
        """Which prompt each row answers, (N,); −1 for one that `reset` was given."""
        return np.array([-1 if card is None else card.number for card in self._cards])

    def prompt_tokens(self, row: int) -> list[int]:
        """The prompt that a row answers, as token ids."""
        return list(map(int, self._context[row, : self._prompt_length[row]]))

    def reply_tokens(self, row: int) -> list[int]:
        """The tokens of a row's reply so far."""
        return list(map(int, self._context[row, self._prompt_length[row] : self._length[row]]))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin all rows, or those of `options["reset_mask"]`; the infos' masks say which.

        Raises: InputError: what cannot be used; nothing has happened then. ClosedEnvironmentError: after `close`.
        """
        checks.check_open(self.closed)
        options = checks.options_of(options, ("prompts", "prompt", "reset_mask"))
        chosen, seed = checks.reset_mask_of(options.get("reset_mask"), self.num_envs), checks.seed_of(seed)
        if self._candidates is None and not chosen.all():
            raise ResetNeeded("the first reset begins every row; leave reset_mask out")
        count = int(chosen.sum())
        prompts = checks.prompts_of(options, count)
        given = None if prompts is None else self._deck.given(prompts, count)
        if seed is not None:
            self._np_random, self._np_random_seed = gymnasium.utils.seeding.np_random(seed)
            self._deck.restart()
            if chosen.all():
                self._walk = self.teacher.walk(self.num_envs)  # what was read before must not tell in the last digits
        self._begin(chosen, given)
        self._look()
        self._print()
        infos = self._infos()
        return self._observe(), infos | {key: chosen.copy() for key in infos if key.startswith("_")}

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Take a slot in every row; see the class for what rows that wait do.

        Raises: InvalidAction: a slot without a candidate; nothing has happened then. ResetNeeded: see `step_tokens`.
        """
        found, slots = self.candidates, checks.actions_of(actions, self.num_envs, "slot")
        index = slots.clamp(0, self._slots - 1)[:, None]
        legal = (slots == index[:, 0]) & found.mask.gather(1, index)[:, 0] | torch.from_numpy(self._ended)
        if not legal.all():
            row = int((~legal).nonzero()[0])
            count = int(found.mask[row].sum())
            raise InvalidAction(
                f"slot {int(slots[row])} of row {row} has no candidate; it has {count}, from slot 0: choose by `mask`"
            )
        return self._advance(found.ids.gather(1, index)[:, 0], found.logp.gather(1, index)[:, 0])

    def step_tokens(self, tokens: Array | Tensor) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Take a token in every row, inside the set or not: a student's own walk.

        A token outside pays its full log π_T and is marked `in_set = False`.

        Raises: InvalidAction: no token of the vocabulary. ResetNeeded: a row that ended, without autoreset.
        """
        checks.check_open(self.closed)
        taken = checks.actions_of(tokens, self.num_envs, "token")
        wrong = ((taken < 0) | (taken >= self.teacher.vocab_size)) & ~torch.from_numpy(self._ended)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            limit = self.teacher.vocab_size
            raise InvalidAction(f"token {int(taken[row])} of row {row} is outside the vocabulary of {limit}")
        taken = taken.clamp(0, self.teacher.vocab_size - 1)
        logits, norm = scores_of(self._walk)
        logp = logits.gather(1, taken[:, None].to(logits.device))[:, 0].float() - norm
        return self._advance(taken, checks.known(logp.cpu(), self._ended, self.teacher).clamp(min=PAD_LOGP, max=0.0))

    def _advance(self, tokens: Tensor, taken_logp: Tensor) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        before, log_mass, resetting = self.candidates, self._log_mass, self._ended.copy()
        if resetting.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            row = int(resetting.argmax())
            raise ResetNeeded(f'row {row} has ended; reset it with options={{"reset_mask": ...}}')
        self._candidates = None  # an error from here on leaves half a step, and nothing to go on from
        acting = torch.from_numpy(~resetting)
        in_set = ((before.ids == tokens[:, None]) & before.mask).any(1)
        self._in_set = (in_set | ~acting).numpy()
        self._token = torch.where(acting, tokens, -1).numpy()
        self._append(tokens.numpy(), ~resetting)
        self._walk.step(tokens, acting & ~torch.from_numpy(self._terminated))
        self._ended |= (acting & full_of(self._walk, self.num_envs)).numpy()
        if resetting.any():
            self._begin(resetting)
        self._look()
        terminated, truncated = self._terminated.copy(), self._ended & ~self._terminated
        step = Step(
            taken_logp=torch.where(acting, taken_logp, 0.0),
            log_mass=torch.where(acting, log_mass, 0.0),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            after=self.candidates,
            texts=self._texts,
        )
        rewards = torch.where(acting, self.reward(step), 0.0).numpy()
        self._print()
        infos = self._begin_at_once() if self.autoreset_mode == AutoresetMode.SAME_STEP else self._infos()
        return self._observe(), rewards, terminated, truncated, infos

    def _append(self, tokens: Array, acting: npt.NDArray[np.bool_]) -> None:
        """Write the tokens of the rows that act, and see which of these end: by themselves, or because they must."""
        rows = acting.nonzero()[0]
        self._context[rows, self._length[rows]] = tokens[rows]
        self._length[rows] += 1
        self._terminated = acting & (self._is_eos[tokens] | self._stopped(rows))
        spent = self._length - self._prompt_length >= self.max_new_tokens
        self._ended = acting & (self._terminated | spent | (self._length >= self.teacher.context_limit))

    def _begin_at_once(self) -> dict[str, Any]:
        """Same-step autoreset: begin the ended rows anew; infos, with what those rows saw last."""
        finals: dict[str, Any] = {}
        if self._ended.any():
            last, infos, ended = self._observe(), self._infos(), self._ended.copy()
            for row in ended.nonzero()[0].tolist():
                single = {key: value[row] for key, value in last.items()}
                finals = self._add_info(finals, {"final_obs": single, "final_info": row_of(infos, row)}, row)
            self._begin(ended)
            self._look(ended.nonzero()[0])
        return self._infos() | finals

    def _begin(self, chosen: npt.NDArray[np.bool_], given: list[Card] | None = None) -> None:
        rows = chosen.nonzero()[0].tolist()
        cards = self._deck.deal(len(rows), self.np_random) if given is None else given
        for row, card in zip(rows, cards, strict=True):
            self._cards[row] = card
            self._context[row] = 0
            self._context[row, : len(card.ids)] = card.ids
            self._length[row] = self._prompt_length[row] = len(card.ids)
        self._ended[rows] = self._terminated[rows] = False
        self._token[rows], self._in_set[rows] = -1, True
        if isinstance(self._walk, Expectant):
            self._walk.expect(() if given else self._deck.next_ids(self.num_envs, self.np_random))
        self._walk.start(rows, [card.ids for card in cards])

    def _look(self, rows: npt.NDArray[np.int64] | None = None) -> None:
        """The candidates of every row's state, or of these rows'; none where the text has ended by itself."""
        logits, norm = scores_of(self._walk)
        index = torch.from_numpy(np.arange(self.num_envs) if rows is None else rows)
        if rows is not None:
            logits, norm = logits[index.to(logits.device)], norm[index.to(norm.device)]
        chosen, state = [] if self.extras is None else index.tolist(), self._context
        joined = [(state[row, : self._length[row]], int(self._prompt_length[row])) for row in chosen]
        sets = hybrid(logits, self.top_p, self._slots, log_norm=norm, extras=self.extras, texts=joined)
        found, gone = Candidates(*(part.cpu() for part in sets)), torch.from_numpy(self._terminated)[index]
        if gone.any():
            found = found.emptied(gone)
        if rows is not None:
            parts = zip(self.candidates, found, strict=True)
            found = Candidates(*(whole.index_copy(0, index, part) for whole, part in parts))
        self._candidates, self._log_mass = found, found.log_mass

    def _observe(self) -> Observation:
        found = self.candidates
        return {
            "context": self._context.copy(),
            "length": self._length.copy(),
            "ids": found.ids.numpy().astype(np.int32),
            "logp": found.logp.clamp(max=0.0).numpy(),
            "mask": found.mask.numpy().astype(np.int8),
        }

    def _infos(self) -> dict[str, Any]:
        found, lost = self.candidates, -torch.expm1(self._log_mass)
        infos: dict[str, Any] = {
            "action_mask": found.mask.numpy().astype(np.int8),
            "token": self._token.copy(),
            "lost_mass": lost.masked_fill_(torch.from_numpy(self._terminated), 0.0).numpy(),
            "cut": found.cut.numpy().copy(),
            "in_set": self._in_set.copy(),
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
        """The prompt as it was given, and the reply."""
        card = self._cards[row]
        given = None if card is None else card.text
        prompt = self.teacher.decode(self.prompt_tokens(row)) if given is None else given
        return prompt, self.teacher.decode(self.reply_tokens(row))

    def _shown(self) -> list[str]:
        found = self.candidates
        shown = []
        for row, count in enumerate(found.sizes.tolist()):
            slots = zip(found.ids[row, :count].tolist(), found.logp[row, :count].tolist(), strict=True)
            shown.append(render_state(self.teacher, self.prompt_tokens(row), self.reply_tokens(row), list(slots)))
        return shown

    def _print(self) -> None:
        if self.render_mode == "human":
            print("\n\n".join(self._shown()))

    def render(self) -> tuple[str, ...] | None:
        """Every row's text so far and its candidates; None in mode "human", which prints every state by itself."""
        return tuple(self._shown()) if self.render_mode == "ansi" else None

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the teacher's cache; what is called afterwards says that the environment is closed."""
        self._candidates = None
        del self._walk
