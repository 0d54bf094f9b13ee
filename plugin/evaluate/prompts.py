"""From a question to what the model is given."""

from __future__ import annotations

from ropebend.model import Model
from ropebend.tasks.task import Question


class Prompts:
    """Tokens of a model's prompts."""

    def __init__(self, model: Model):
        self._model = model

    def __call__(self, prompt: str, prefix: str = "", /) -> list[int]:
        """Tokens of the prompt and of what the answer begins with."""
        return self._model.tokenize(prompt + prefix)

    def with_answer(self, question: Question, answer: str) -> tuple[list[int], list[int]]:
        """Tokens of the prompt, and of the answer behind it."""
        prompt = self(question.prompt, question.prefix)
        together = self(question.prompt, question.prefix + answer)
        if together[: len(prompt)] == prompt:
            return prompt, together[len(prompt) :]
        return prompt, self._model.tokenize(answer, add_special=False)  # the seam would be tokenised otherwise
