"""How a served teacher is asked, and what of a request is not for its user to say."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from envs.errors import InputError

PROMPTS = ("auto", "ids", "text")
NEUTRAL: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What leaves the softmax as it is, of all that servers may do to it."""
OFF: dict[str, float] = {
    **dict.fromkeys("mirostat mirostat_mode xtc_probability dry_multiplier dynatemp_range".split(), 0),
    **dict.fromkeys("dynamic_temperature top_a epsilon_cutoff eta_cutoff smoothing_factor skew".split(), 0),
    **dict.fromkeys("penalty_alpha watermark post_sampling_probs token_healing use_beam_search".split(), 0),
    **dict.fromkeys("min_tokens min_new_tokens min_length no_repeat_ngram_size ignore_eos ban_eos_token".split(), 0),
    **dict.fromkeys("tfs tfs_z cfg_scale guidance_scale encoder_repetition_penalty num_beams do_sample".split(), 1),
    "top_n_sigma": -1,
}
"""The same of fields that are sent only if the user gives them: of vLLM, llama.cpp, SGLang, TGI and others."""
OWN = frozenset(
    "model prompt suffix max_tokens max_completion_tokens n_predict logprobs n best_of stream seed echo stop "
    "stop_token_ids stop_regex logit_bias allowed_token_ids bad_words banned_tokens banned_strings custom_token_bans "
    "grammar grammar_string json_schema guided_json guided_regex guided_choice guided_grammar structured_outputs "
    "response_format regex ebnf logits_processors custom_logit_processor vllm_xargs truncate truncate_prompt_tokens "
    "truncation_length negative_prompt prompt_embeds n_indent t_max_predict_ms lora lora_path adapter_id".split()
)
"""Fields of a request that follow from what is asked, or that would change what is drawn or where it ends."""


@dataclass(frozen=True)
class Serving:
    """How a served teacher is asked.

    Raises: InputError: a number out of range, or `extra` that is no JSON object.
    """

    model: str = ""
    """Name of the model; none: the only one that the server lists."""
    api_key_env: str = ""
    """Environment variable that holds the API key; none: no key is sent. The key is written nowhere."""
    logprobs: int = 20
    """Most probable tokens asked for at each step. vLLM gives 20 unless told otherwise, OpenAI 5."""
    prompts: str = "auto"
    """How prompts are sent: "ids", "text", or "auto": ids where the server takes them."""
    batch: int = 1
    """Prompts of a request. With more than one no seed is sent: a server may give it to all of them alike."""
    concurrency: int = 8
    """Requests in flight at a time."""
    attempts: int = 6
    """How often a request is sent before its failure is the command's."""
    backoff: float = 0.5
    """Seconds before the second attempt, doubled for each further one; a Retry-After of the server wins."""
    longest_wait: float = 300.0
    """Seconds that a server may ask to wait; beyond that the command ends, to be given again later."""
    timeout: float = 120.0
    """Seconds for an answer, from the request to its last byte."""
    requests_per_minute: float = 0.0
    """No more than that; 0: no limit."""
    tokens_per_minute: float = 0.0
    """No more than that, a request counting as its prompts and all the tokens it may be answered with; 0: no limit."""
    price_prompt: float = 0.0
    """What a million prompt tokens cost, in any currency."""
    price_completion: float = 0.0
    """What a million completion tokens cost."""
    context: int | None = None
    """Tokens that the server's model can see; none: what the server or the tokenizer says."""
    extra: str = ""
    """More fields of every request, as a JSON object; none that changes what is drawn."""
    max_megabytes: int = 64
    """A larger answer is refused."""

    def __post_init__(self) -> None:
        for name in ("logprobs", "batch", "concurrency", "attempts", "max_megabytes"):
            if getattr(self, name) < 1:
                raise InputError(f"served.{name} = {getattr(self, name)} is below 1")
        for name in ("timeout", "backoff", "longest_wait"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"served.{name} = {getattr(self, name)} must be a number of seconds above 0")
        for name in ("requests_per_minute", "tokens_per_minute", "price_prompt", "price_completion"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"served.{name} = {getattr(self, name)} is below 0")
        if self.prompts not in PROMPTS:
            raise InputError(f"served.prompts = {self.prompts!r} must be one of {', '.join(PROMPTS)}")
        if self.context is not None and self.context < 3:
            raise InputError(f"served.context = {self.context} is below 3: a prompt, a reply and the token after it")
        _ = self.more

    @property
    def more(self) -> dict[str, Any]:
        """`extra` as a mapping."""
        try:
            found = json.loads(self.extra) if self.extra else {}
        except ValueError as error:
            raise InputError(f"served.extra is not JSON ({error}); write it as in '{{\"top_k\": 0}}'") from None
        if not isinstance(found, dict):
            raise InputError(f"served.extra must be a JSON object, not {type(found).__name__}")
        neutral = NEUTRAL | OFF
        for name, value in found.items():
            if name in OWN or value != neutral.get(name, value) or (name == "top_k" and value not in (0, -1)):
                raise InputError(
                    f"served.extra sets {name} = {value!r}, but replies are drawn from the full softmax at temperature "
                    "1 and end where the model ends them, or the log-probabilities would not be theirs; leave it out"
                )
        return found

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What these tokens cost."""
        return (prompt_tokens * self.price_prompt + completion_tokens * self.price_completion) / 1e6
