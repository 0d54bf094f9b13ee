"""Parameters of OpenAI's, llama-server's and vLLM's API that are not supported, and the values of them that ask for
nothing, so that a client which always sends them is served.  Any other value is refused by name.

A parameter that gets supported leaves this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """Which values of a parameter change nothing.

    expected  for the error message; "" if only null does
    accepts   of (value, whole body)
    """

    expected: str
    accepts: Callable[[Any, Mapping[str, Any]], bool]

    def lets_pass(self, value: Any, body: Mapping[str, Any]) -> bool:
        """Whether the body asks for the same with this value as without the parameter."""
        return self.accepts(value, body)


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    return a == b and isinstance(a, bool) is isinstance(b, bool)


def only(*values: Any) -> Rule:
    """These values; none: null only."""
    return Rule(" or ".join(_json(v) for v in values), lambda value, _: any(_same(value, v) for v in values))


def _json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


#: It has no influence on the answer, whatever it is.
ANYTHING = Rule("anything", lambda _value, _body: True)
NOT_POSITIVE = Rule("a number up to 0", lambda value, _: _is_number(value) and value <= 0)
AS_MANY_AS_N = Rule("the value of n", lambda value, body: _same(value, body.get("n") or 1))
NO_LORA = Rule(
    "[] or adapters of scale 0",
    lambda value, _: isinstance(value, list) and all(isinstance(x, dict) and x.get("scale") == 0 for x in value),
)
#: Of every request that generates text.
GENERATION: dict[str, Rule] = {
    # OpenAI
    "user": ANYTHING,
    "metadata": ANYTHING,
    "store": ANYTHING,
    "prompt_cache_key": ANYTHING,
    "prompt_cache_options": ANYTHING,
    "prompt_cache_retention": ANYTHING,
    "safety_identifier": ANYTHING,
    "service_tier": ANYTHING,
    "best_of": AS_MANY_AS_N,
    # llama-server: where a text runs and what is cached
    "cache_prompt": ANYTHING,
    "id_slot": ANYTHING,
    "n_cache_reuse": ANYTHING,
    "n_keep": ANYTHING,  # of a context shift, which there is none of: what does not fit is refused
    "n_discard": ANYTHING,
    "sse_ping_interval": ANYTHING,
    "lora": NO_LORA,
    "backend_sampling": ANYTHING,  # where it runs
    # llama-server: samplers that are not there; without effect while the switch of theirs is off
    "tfs_z": only(1),
    "penalize_nl": only(False),
    "n_indent": only(0),
    "t_max_predict_ms": NOT_POSITIVE,
    "t_max_prompt_ms": NOT_POSITIVE,
    # llama-server: what more to answer
    "n_probs": only(0),
    "post_sampling_probs": only(False),
    "return_tokens": only(False),
    "response_fields": only([]),
    # llama-server: grammars
    "grammar_lazy": only(False),
    "grammar_triggers": only([]),
    "grammar_type": ANYTHING,
    "preserved_tokens": only([]),
    # llama-server: how chats are read
    "parse_tool_calls": only(True),
    "reasoning_in_content": only(False),
    "reasoning_control": only(False),
    "reasoning_budget_tokens": only(-1),
    "reasoning_budget_start_tag": only(""),
    "reasoning_budget_end_tag": only(""),
    "reasoning_budget_end_tags": only([]),
    "reasoning_budget_message": only(""),
    "thinking_budget_tokens": only(-1),
    "chat_format": only(0),
    "chat_parser": only(""),
    "generation_prompt": only(""),
    # vLLM and other servers
    "min_tokens": only(0),
    "skip_special_tokens": only(True),
    "spaces_between_special_tokens": only(True),
    "include_stop_str_in_output": only(False),
    "stop_token_ids": only([]),
    "bad_words": only([]),
    "repetition_penalty": only(1),
    "length_penalty": only(1),
    "early_stopping": only(False),
    "use_beam_search": only(False),
    "add_special_tokens": only(True),
    "detokenize": only(True),
    "priority": ANYTHING,
    "request_id": ANYTHING,
}

#: Of completions.
COMPLETION = {
    **GENERATION,
    "suffix": only(""),
    "reasoning_format": only("none", "auto"),
    "add_generation_prompt": only(True),
    "continue_final_message": only(False),
}

#: Of chats.
CHAT = {
    **GENERATION,
    "echo": only(False),
    "modalities": only(["text"]),
    "functions": only([]),
    "function_call": only("none", "auto"),
    "audio": only(),
    "prediction": only(),
    "moderation": only(),
    "verbosity": only("medium"),
    "web_search_options": only(),
}

NO_MORE_THAN_SHOWN = Rule(
    'a list of nothing but "reasoning.encrypted_content", which is not encrypted here',
    lambda value, _: isinstance(value, list) and set(map(str, value)) <= {"reasoning.encrypted_content"},
)

#: Of responses.
RESPONSES: dict[str, Rule] = {
    **dict.fromkeys(("user", "safety_identifier", "service_tier", "client_metadata"), ANYTHING),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"), ANYTHING),
    "stream_options": ANYTHING,  # obfuscation only
    "store": only(False),
    "background": only(False),
    "truncation": only("disabled"),
    "include": NO_MORE_THAN_SHOWN,
    "top_logprobs": only(0),
    "max_tool_calls": only(),
    "prompt": only(),
    "moderation": only(),
    "context_management": only(),
}

#: Of `/apply-template`: what does not change the prompt.
APPLIED = {
    **dict.fromkeys((*CHAT, "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p"), ANYTHING),
    **dict.fromkeys(("seed", "stop", "n", "stream", "stream_options", "logprobs", "top_logprobs"), ANYTHING),
    **dict.fromkeys(("reasoning_format", "tool_choice", "parallel_tool_calls", "response_format", "grammar"), ANYTHING),
}

#: Of embeddings.
EMBEDDING = {"user": ANYTHING, "dimensions": only(), "priority": ANYTHING}

#: Of `stream_options`.
STREAM = {"include_obfuscation": only(False), "continuous_usage_stats": only(False)}
