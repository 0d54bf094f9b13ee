"""Chat templates by name, as llama.cpp calls them: for base models, and for files without a template of their own.

They write what llama.cpp's built-in ones write.  None of them knows tools; `adapt` writes those out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ropebend.errors import UsageError


@dataclass(frozen=True)
class _Turns:
    """What stands around a message of each role; "{}" is the content, "{|}" the content without blanks around it.

    opening  how an answer begins
    start    before everything
    system   None: the template refuses system messages, so they become part of the user's
    """

    system: str | None
    user: str
    assistant: str
    opening: str = ""
    start: str = ""

    def jinja(self) -> str:
        """The template."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        cases = [f"m.role == {_text(role)} %}}{_turn(form)}" for role, form in roles.items() if form is not None]
        refuse = "{% else %}{{ raise_exception('there is no role ' + m.role) }}{% endif %}"
        loop = f"{{% for m in messages %}}{{% if {'{% elif '.join(cases)}{refuse}{{% endfor %}}"
        opening = (
            f"{{% if add_generation_prompt %}}{{{{ {_text(self.opening)} }}}}{{% endif %}}" if self.opening else ""
        )
        return (f"{{{{ {_text(self.start)} }}}}" if self.start else "") + loop + opening


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _turn(form: str) -> str:
    trim = "{|}" in form
    before, after = form.split("{|}" if trim else "{}")
    return f"{{{{ {_text(before)} + m.content{' | trim' if trim else ''} + {_text(after)} }}}}"


def _each(form: str, opening: str, *, assistant: str | None = None, start: str = "") -> _Turns:
    """The same for every role; ROLE stands for its name."""
    roles = ("system", "user", "assistant")
    system, user, said = (form.replace("ROLE", role) for role in roles)
    return _Turns(system, user, assistant or said, opening, start)


def _mistral(before: str, inside: str, answer: str) -> _Turns:
    return _Turns(None, f"{before}[INST]{inside}{{}}{before}[/INST]", f"{inside}{answer}</s>")


def _llama2(*, system: str, again: str = "[INST] ", content: str = "m.content") -> str:
    return (
        "{% for m in messages %}"
        f"{{% if loop.first %}}[INST] {{% elif loop.previtem.role == 'assistant' %}}{again}{{% endif %}}"
        f"{{% if m.role == 'system' %}}{{{{ {system.format(content)} }}}}"
        f"{{% elif m.role == 'user' %}}{{{{ {content} + ' [/INST]' }}}}"
        f"{{% elif m.role == 'assistant' %}}{{{{ {content} + '</s>' }}}}"
        "{% else %}{{ raise_exception('there is no role ' + m.role) }}{% endif %}{% endfor %}"
    )


_GRANITE = _each("<|start_of_role|>ROLE<|end_of_role|>{}<|end_of_text|>\n", "<|start_of_role|>assistant<|end_of_role|>")
_SYS = "'<<SYS>>\\n' + {} + '\\n<</SYS>>\\n\\n'"
_BAILING = _Turns("<role>SYSTEM</role>{}", "<role>HUMAN</role>{}", "<role>ASSISTANT</role>{}", "<role>ASSISTANT</role>")

_TEMPLATES: dict[str, _Turns | str] = {
    "bailing": _BAILING,
    "bailing-think": _Turns(_BAILING.system, _BAILING.user, _BAILING.assistant, "<role>ASSISTANT</role><think>"),
    "bailing2": "{% if messages[0].role != 'system' %}<role>SYSTEM</role>detailed thinking off<|role_end|>{% endif %}"
    + _Turns(
        "<role>SYSTEM</role>{}<|role_end|>",
        "<role>HUMAN</role>{}<|role_end|>",
        "<role>ASSISTANT</role>{}<|role_end|>",
        "<role>ASSISTANT</role>",
    ).jinja(),
    "chatglm3": _each("<|ROLE|>\n {}", "<|assistant|>", start="[gMASK]sop"),
    "chatglm4": _each("<|ROLE|>\n{}", "<|assistant|>\n", start="[gMASK]<sop>"),
    "chatml": _each("<|im_start|>ROLE\n{}<|im_end|>\n", "<|im_start|>assistant\n"),
    "command-r": _Turns(
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{|}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{|}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{|}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    "deepseek": _Turns("{}", "### Instruction:\n{}\n", "### Response:\n{}\n<|EOT|>\n", "### Response:\n"),
    "deepseek2": _Turns("{}\n\n", "User: {}\n\n", "Assistant: {}<｜end▁of▁sentence｜>", "Assistant:"),
    "deepseek3": _Turns("{}\n\n", "<｜User｜>{}", "<｜Assistant｜>{}<｜end▁of▁sentence｜>", "<｜Assistant｜>"),
    "deepseek-ocr": _Turns("{}", "{}", "{}"),
    "exaone-moe": _each("<|ROLE|>\n{|}<|endofturn|>\n", "<|assistant|>\n"),
    "exaone3": _Turns(
        "[|system|]{|}[|endofturn|]\n", "[|user|]{|}\n", "[|assistant|]{|}[|endofturn|]\n", "[|assistant|]"
    ),
    "exaone4": _Turns(
        "[|system|]{|}[|endofturn|]\n", "[|user|]{|}\n", "[|assistant|]{|}[|endofturn|]\n", "[|assistant|]"
    ),
    "falcon3": _each("<|ROLE|>\n{}\n", "<|assistant|>\n"),
    "gemma": _Turns(
        None,
        "<start_of_turn>user\n{|}<end_of_turn>\n",
        "<start_of_turn>model\n{|}<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
    "gigachat": _Turns(
        "{}<|message_sep|>",
        "user<|role_sep|>{}<|message_sep|>available functions<|role_sep|>[]<|message_sep|>",
        "assistant<|role_sep|>{}<|message_sep|>",
        "assistant<|role_sep|>",
        "<s>",
    ),
    "glmedge": _each("<|ROLE|>\n{}", "<|assistant|>"),
    "gpt-oss": _each(
        "<|start|>ROLE<|message|>{}<|end|>",
        "<|start|>assistant",
        assistant="<|start|>assistant<|message|>{}<|return|>",
    ),
    "granite": _GRANITE,
    "granite-4.0": _GRANITE,
    "granite-4.1": _GRANITE,
    "grok-2": _Turns(
        "System: {|}<|separator|>\n\n", "Human: {|}<|separator|>\n\n", "Assistant: {}<|separator|>\n\n", "Assistant:"
    ),
    "hunyuan-dense": _Turns(
        "{}<｜hy_place▁holder▁no▁3｜>",
        "<｜hy_User｜>{}<｜hy_Assistant｜>",
        "<｜hy_Assistant｜>{}<｜hy_place▁holder▁no▁2｜>",
    ),
    "hunyuan-moe": _Turns("<|startoftext|>{}<|extra_4|>", "<|startoftext|>{}<|extra_0|>", "{}<|eos|>"),
    "hunyuan-vl": _Turns(
        "{}<｜hy_place▁holder▁no▁3｜>", "{}<｜hy_User｜>", "{}<｜hy_Assistant｜>", start="<｜hy_begin▁of▁sentence｜>"
    ),
    "kimi-k2": _Turns(
        "<|im_system|>system<|im_middle|>{}<|im_end|>",
        "<|im_user|>user<|im_middle|>{}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>{}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>",
    ),
    "llama2": _llama2(system="{} + '\\n'"),
    "llama2-sys": _llama2(system=_SYS),
    "llama2-sys-bos": _llama2(system=_SYS, again="<s>[INST] "),
    "llama2-sys-strip": _llama2(system=_SYS, content="m.content | trim"),
    "llama3": _each(
        "<|start_header_id|>ROLE<|end_header_id|>\n\n{|}<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "llama4": _each("<|header_start|>ROLE<|header_end|>\n\n{|}<|eot|>", "<|header_start|>assistant<|header_end|>\n\n"),
    "megrez": _each("<|role_start|>ROLE<|role_end|>{}<|turn_end|>", "<|role_start|>assistant<|role_end|>"),
    "minicpm": _Turns("{|}", "<用户>{|}<AI>", "{|}"),
    "mistral-v1": _mistral(" ", " ", "{}"),
    "mistral-v3": _mistral("", " ", "{|}"),
    "mistral-v3-tekken": _mistral("", "", "{}"),
    "mistral-v7": _Turns("[SYSTEM_PROMPT] {}[/SYSTEM_PROMPT]", "[INST] {}[/INST]", " {}</s>"),
    "mistral-v7-tekken": _Turns("[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", "[INST]{}[/INST]", "{}</s>"),
    "monarch": "{% for m in messages %}{{ ('' if loop.first else '<s>') + m.role + '\\n' + m.content + '</s>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}",
    "openchat": _Turns(
        "{}<|end_of_turn|>",
        "GPT4 Correct User: {}<|end_of_turn|>",
        "GPT4 Correct Assistant: {}<|end_of_turn|>",
        "GPT4 Correct Assistant:",
    ),
    "orion": _Turns(None, "Human: {}\n\nAssistant: </s>", "{}</s>"),
    "pangu-embedded": "{% if messages[0].role != 'system' %}[unused9]系统：[unused10]{% endif %}"
    + _Turns(
        "[unused9]系统：{}[unused10]", "[unused9]用户：{}[unused10]", "[unused9]助手：{}[unused10]", "[unused9]助手："
    ).jinja(),
    "phi3": _each("<|ROLE|>\n{}<|end|>\n", "<|assistant|>\n"),
    "phi4": _each("<|im_start|>ROLE<|im_sep|>{}<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "rwkv-world": _Turns("System: {|}\n\n", "User: {|}\n\n", "Assistant: {|}\n\n", "Assistant:"),
    "seed_oss": _each(
        "<seed:bos>ROLE\n{}<seed:eos>", "<seed:bos>assistant\n", assistant="<seed:bos>assistant\n{|}<seed:eos>"
    ),
    "smolvlm": _Turns(
        "{}\n\n", "User: {}<end_of_utterance>\n", "Assistant: {}<end_of_utterance>\n", "Assistant:", "<|im_start|>"
    ),
    "solar-open": _each("<|begin|>ROLE<|content|>{}<|end|>", "<|begin|>assistant"),
    "vicuna": _Turns("{}\n\n", "USER: {}\n", "ASSISTANT: {}</s>\n", "ASSISTANT:"),
    "vicuna-orca": _Turns("SYSTEM: {}\n", "USER: {}\n", "ASSISTANT: {}</s>\n", "ASSISTANT:"),
    "yandex": _Turns(None, " Пользователь: {}\n\n", " Ассистент: {}\n\n", " Ассистент:[SEP]"),
    "zephyr": _each("<|ROLE|>\n{}<|endoftext|>\n", "<|assistant|>\n"),
}  # fmt: skip

#: The names there are.
NAMES = tuple(_TEMPLATES)

#: For models without a template.
FALLBACK = "chatml"


def source(name: str) -> str:
    """The jinja of a built-in template.  UsageError if there is none of that name."""
    if name not in _TEMPLATES:
        raise UsageError(f"no chat template is called {name!r}; there are {', '.join(NAMES)}")
    found = _TEMPLATES[name]
    return found if isinstance(found, str) else found.jinja()
