"""Published chat templates and what transformers makes of them: written by bench/chat_templates.py."""

from __future__ import annotations

import datetime
import functools
import json
import zipfile
from pathlib import Path
from typing import Any

from ropebend.server.chat.templates import ChatTemplate


@functools.cache
def load() -> dict[str, Any]:
    """Every file of the zip, JSON parsed."""
    with zipfile.ZipFile(Path(__file__).with_name("published_templates.zip")) as z:
        texts = {name: z.read(name).decode() for name in z.namelist()}
    return {name: json.loads(text) if name.endswith(".json") else text for name, text in texts.items()}


NAMES = sorted(name.removesuffix(".jinja") for name in load() if name.endswith(".jinja"))
CONVERSATIONS = load()["conversations.json"]
EXPECTED = load()["expected.json"]
ABOUT = load()["about.json"]
TODAY = datetime.datetime.fromisoformat(ABOUT["today"])


@functools.cache
def template(name: str) -> ChatTemplate:
    """A published template, ready."""
    return ChatTemplate(load()[f"{name}.jinja"], ABOUT["bos"], ABOUT["eos"])
