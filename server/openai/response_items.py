"""The answer of /v1/responses while it comes: its items, and the events that tell of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from ropebend.server.chat.events import CallArguments, CallBegin, Content, Event, Reasoning

Data = dict[str, Any]


def new_id(kind: str) -> str:
    """An id as OpenAI writes it."""
    return f"{kind}_{uuid.uuid4().hex}"


class Items:
    """The output of one response.

    Events of the parser go in, events of the stream come out: each item is added, grows, and is done when another kind
    of item begins or the answer ends.
    """

    def __init__(self) -> None:
        self.output: list[Data] = []
        self._open: Data | None = None

    def add(self, event: Event) -> Iterator[Data]:
        """Take in what the model wrote."""
        if isinstance(event, CallBegin):
            item = {"call_id": event.id, "name": event.name, "arguments": ""}
            yield from self._begin({"id": new_id("fc"), "type": "function_call", "status": "in_progress", **item})
        elif isinstance(event, CallArguments):
            item = self._current()
            item["arguments"] += event.text
            yield self._event("function_call_arguments.delta", delta=event.text)
        elif isinstance(event, Reasoning):
            yield from self._text("reasoning", event.text)
        elif isinstance(event, Content):
            yield from self._text("message", event.text)

    def finish(self, complete: bool) -> Iterator[Data]:
        """End the answer.  complete: False if it was cut off."""
        if not self.output:  # an answer of nothing is an empty message
            yield from self._text("message", "")
        yield from self._done("completed" if complete else "incomplete")

    def _current(self) -> Data:
        assert self._open is not None
        return self._open

    def _event(self, event: str, /, **more: Any) -> Data:
        """An event about the open item."""
        return {"type": f"response.{event}", "item_id": self._current()["id"], "output_index": self._index, **more}

    @property
    def _index(self) -> int:
        return len(self.output) - 1

    def _begin(self, item: Data) -> Iterator[Data]:
        yield from self._done("completed")
        self.output.append(item)
        self._open = item
        shown = {**item, "content": []} if "content" in item else dict(item)
        yield {"type": "response.output_item.added", "output_index": self._index, "item": shown}

    def _text(self, kind: str, text: str) -> Iterator[Data]:
        """More text of a message or of the thinking."""
        if self._open is None or self._open["type"] != kind:
            if kind == "message":
                part: Data = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                item: Data = {"id": new_id("msg"), "type": kind, "role": "assistant", "status": "in_progress"}
            else:
                part = {"type": "reasoning_text", "text": ""}
                item = {"id": new_id("rs"), "type": kind, "summary": [], "status": "in_progress"}
            yield from self._begin({**item, "content": [part]})
            yield self._event("content_part.added", content_index=0, part=dict(part))
        if text:
            self._current()["content"][0]["text"] += text
            name = "output_text" if kind == "message" else "reasoning_text"
            more: Data = {"logprobs": []} if kind == "message" else {}
            yield self._event(f"{name}.delta", content_index=0, delta=text, **more)

    def _done(self, status: str) -> Iterator[Data]:
        item = self._open
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            whole = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("function_call_arguments.done", **whole)
        else:
            part = item["content"][0]
            text = part["text"]
            more: Data = {"logprobs": []} if item["type"] == "message" else {}
            yield self._event(f"{part['type']}.done", content_index=0, text=text, **more)
            yield self._event("content_part.done", content_index=0, part=dict(part))
        yield {"type": "response.output_item.done", "output_index": self._index, "item": item}
        self._open = None
