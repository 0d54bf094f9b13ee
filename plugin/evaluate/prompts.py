"""From a question to what the model is given: plain text, or a message in the model's own chat template."""

from __future__ import annotations

from ropebend.chat_template import Renderer
from ropebend.errors import RopebendError
from ropebend.model import Model
from ropebend.tasks.task import Question


class Prompts:
    """Tokens of a model's prompts.

    chat: in the GGUF's chat template, without thinking.  Raises RopebendError if there is none, or if it is broken.
    """

    def __init__(self, model: Model, chat: bool = False):
        self._model, self.chat = model, chat
        self._bos = ""
        if chat:
            if model.chat_template is None:
                raise RopebendError("--chat: this model has no chat template")
            self._bos, eos = (
                model.piece(t, special=True).decode(errors="replace") if t >= 0 else ""
                for t in (model.bos_token, model.eos_token)
            )
            self._renderer = Renderer(model.chat_template, self._bos, eos)

    def __call__(self, prompt: str, prefix: str = "", /) -> list[int]:
        """Tokens of the prompt and of what the answer begins with.

        Raises RopebendError if the chat template refuses the prompt, TextError if it cannot be tokenised.
        """
        if not self.chat:
            return self._model.tokenize(prompt + prefix)
        messages = [{"role": "user", "content": prompt}]
        text = self._renderer.render(messages, variables={"enable_thinking": False})
        has_bos = bool(self._bos) and text.startswith(self._bos)
        return self._model.tokenize(text + prefix, add_special=not has_bos, parse_special=True)

    def with_answer(self, question: Question, answer: str) -> tuple[list[int], list[int]]:
        """Tokens of the prompt, and of the answer behind it.  Raises as a call does."""
        prompt = self(question.prompt, question.prefix)
        together = self(question.prompt, question.prefix + answer)
        if together[: len(prompt)] == prompt:
            return prompt, together[len(prompt) :]
        return prompt, self._model.tokenize(answer, add_special=False)  # the seam would be tokenised otherwise
