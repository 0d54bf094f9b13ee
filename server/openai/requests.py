"""Requests of the OpenAI API, as far as this server takes part in it.

A parameter that would change the output and is not supported is here too, with a type that allows only values
without effect, so that it is refused by name.  Anything else unknown is refused as unrecognised.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ropebend.server.engine.sampling import MAX_GRAMMAR, Sampling


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which is not Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopText = Annotated[str, Field(min_length=1), AfterValidator(_encodable)]

#: What a factor is that changes nothing.
Neutral = Annotated[float, Field(ge=1, le=1)]

#: -1 is "until the context is full", as llama.cpp's programs say it.
MaxTokens = Annotated[int, Field(ge=-1, lt=2**31)]

T = TypeVar("T")
# One error is enough: a million of them would hold up every other request and take a gigabyte.
ListOf = Annotated[list[T], Field(fail_fast=True)]


class _Request(BaseModel):
    # strict: "5" is no number and true is no 1; a field may be called model_… or schema
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_is_enough(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() <= (known := _names(cls)):
            return value
        # null asks for nothing
        unknown = next((key for key in value if key not in known and value[key] is not None), None)
        return {key: value[key] for key in value if key in known or key == unknown}


@functools.cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """What the fields of a model are called in JSON."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


class StreamOptions(_Request):
    """include_usage: one more chunk at the end with the token counts."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class _GenerateRequest(_Request):
    model: Text | None = None
    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    grammar: Annotated[Text, Field(max_length=MAX_GRAMMAR)] | None = None

    # without influence on the output
    user: Any = None
    cache_prompt: Any = None

    # other servers' parameters, at the value that does nothing
    min_tokens: Literal[0] | None = None
    ignore_eos: Literal[False] | None = None
    skip_special_tokens: Literal[True] | None = None
    repetition_penalty: Neutral | None = None
    length_penalty: Neutral | None = None
    typical_p: Neutral | None = None
    best_of: Literal[1] | None = None

    @field_validator("seed")
    @classmethod
    def _any_seed(cls, value: int | None) -> int | None:
        return None if value == -1 else value  # as llama.cpp's programs say it

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _one_wrong_is_enough(cls, value: Any) -> Any:
        biases = value.items() if isinstance(value, dict) else ()
        wrong = next((k for k, v in biases if type(v) not in (int, float) or not -100 <= v <= 100), None)
        return value if wrong is None else {wrong: value[wrong]}

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"the keys are token ids, got {key!r}")
        return value

    def sampling(self, seed: int, grammar: str | None) -> Sampling:
        """The sampling parameters with OpenAI's defaults."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            seed=seed,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repeat_penalty=1.0 if self.repeat_penalty is None else self.repeat_penalty,
            logit_bias={int(k): v for k, v in (self.logit_bias or {}).items()},
            grammar=grammar,
        )

    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


#: Texts of one request, prompts times n.
MAX_CHOICES = 2048

#: Square of the characters of one request's grammar, times its texts.  Each text has it read once more, and what that
#: takes grows with the square where there are many alternatives: 0.34 s for 84,000 characters.
MAX_GRAMMARS = 2**33


def _prompt_shape(value: Any) -> Any:
    kinds = {type(x) for x in value} if isinstance(value, list) else set()
    if kinds and kinds != {int} and len(value) > MAX_CHOICES:
        raise ValueError(f"expected at most {MAX_CHOICES} texts, got {len(value)}")
    if isinstance(value, str) or (len(kinds) == 1 and kinds <= {str, int, list}):
        return value
    raise ValueError("expected a string, a list of strings, a list of token ids or a list of such lists")


Prompts = Text | ListOf[Text] | ListOf[int] | ListOf[ListOf[int]]


class CompletionRequest(_GenerateRequest):
    """Body of POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None

    suffix: Annotated[str, Field(max_length=0)] | None = None

    _prompt_shape = field_validator("prompt", mode="before")(_prompt_shape)


class TextPart(_Request):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text
    cache_control: Any = Field(default=None, exclude=True)  # what begins alike is shared without it


class CalledFunction(_Request):
    """arguments: JSON as the model wrote it, or what it says."""

    name: Text
    arguments: Text | dict[str, Any]


class CalledTool(_Request):
    """A tool call of an earlier answer, sent back."""

    id: Text | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Any = Field(default=None, exclude=True)


class Message(_Request):
    """One message of a chat.  The fields that must be null come back with the answers of the openai client."""

    role: Annotated[Text, Field(min_length=1)]
    content: Text | ListOf[TextPart] | None = None
    name: Text | None = None
    tool_calls: ListOf[CalledTool] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    cache_control: Any = Field(default=None, exclude=True)

    refusal: None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _something_said(self) -> Message:
        # an empty answer and a tool that returned nothing come back as null
        if self.content is None and not self.tool_calls and self.role not in ("assistant", "tool"):
            raise PydanticCustomError("no_content", "content: expected a text, or tool_calls")
        return self

    def for_template(self) -> dict[str, Any]:
        """As `ropebend.server.chat` takes it: OpenAI's fields, without what says nothing to a template."""
        keys = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"}
        return self.model_dump(include=keys, exclude_none=True)


Messages = Annotated[ListOf[Message], Field(min_length=1, max_length=10_000)]


FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]


class Function(_Request):
    """A function the model may call.  parameters: JSON schema of its arguments."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Request):
    """A tool the model may call."""

    type: Literal["function"]
    function: Function
    cache_control: Any = Field(default=None, exclude=True)


class NamedFunction(_Request):
    """The name of one function."""

    name: FunctionName


class NamedTool(_Request):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Request):
    """A JSON schema with a name."""

    name: Text | None = None
    description: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(_Request):
    """text, json_object, or json_schema with the schema that the answer follows.

    schema: llama.cpp's way to say it, with json_object
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ChatRequest(_GenerateRequest):
    """Body of POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    echo: Literal[False] | None = None
    modalities: ListOf[Literal["text"]] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    audio: None = None
    prediction: None = None
    moderation: None = None
    reasoning_effort: None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None

    # without influence on the output
    metadata: Any = None
    store: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None

    @field_validator("max_tokens", "max_completion_tokens")
    @classmethod
    def _an_answer(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("expected at least 1 token, or -1: until the context is full")
        return value


class EmbeddingRequest(_Request):
    """Body of POST /v1/embeddings."""

    model: Text | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = None
    user: Any = None

    _input_shape = field_validator("input", mode="before")(_prompt_shape)


class TokenizeRequest(_Request):
    """Body of POST /tokenize: llama-server's `content` or vLLM's `prompt` or `messages`.

    add_special (vLLM: add_special_tokens)  BOS and EOS as the model wants them; default: true only with `prompt`
    parse_special                           control tokens written in the text are read as such
    with_pieces                             llama-server: each token with its text; vLLM: return_token_strs
    """

    model: Text | None = None
    content: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool = True
    with_pieces: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(_Request):
    """Body of POST /detokenize; the answer has llama-server's `content` and vLLM's `prompt`."""

    model: Text | None = None
    tokens: Annotated[ListOf[int], Field(max_length=2**20)]
