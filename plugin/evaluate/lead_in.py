"""What a model says before an answer (a blank, a quotation mark, a few words), found on easy items.

A lead-in must hold nothing of the item and be short; of those in question the one wins under which the expected answers
are likeliest.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from ropebend.context import Context
from ropebend.errors import RopebendError
from ropebend.evaluate.logits import token_logprobs
from ropebend.evaluate.prompts import Prompts
from ropebend.model import Model
from ropebend.runtime import Runtime
from ropebend.tasks.task import Question, RetrievalTask

CANDIDATES = (' "', " ", '"', "\n", "")
KEPT = (3, 2, 1)  # candidates after each question
N_TALKS = 2  # times that a model which has no candidate right may say its own
MAX_LENGTH = 40  # characters of a lead-in of the model's own
MORE_TOKENS = 24  # beyond those of the answer, in which it may say it


@dataclass(frozen=True)
class LeadIn:
    """What stands before answers, the share of the easy questions that the model answers right, and the log-probability
    of the expected answers with it, summed.
    """

    text: str
    easy: float
    logprob: float


def choose_prompts(model: Model, task: RetrievalTask, runtime: Runtime) -> tuple[Prompts, LeadIn]:
    """Plain text or the model's chat template: as `task.chat` says, else what the easy items go better with.

    Raises RopebendError if the task wants a chat template and there is none that works, or if the context for the easy
    items cannot be made.
    """
    plain = Prompts(model)
    choices = [Prompts(model, chat=True)] if task.chat else [plain]
    if task.chat is None and model.chat_template is not None:
        with contextlib.suppress(RopebendError):  # a broken template, or one that refuses: nobody has asked for it
            chat_prompts = Prompts(model, chat=True)
            chat_prompts("")
            choices.append(chat_prompts)
    questions = [q for q, _ in _questions(task)]
    n_prompt = max(len(prompts(q.prompt, q.prefix)) for prompts in choices for q in questions)
    n_answer = max(len(plain(q.expected or q.answers[0])) for q in questions)
    n_ctx = n_prompt + 2 * (n_answer + MAX_LENGTH + MORE_TOKENS)
    with Context(model, n_ctx=n_ctx, n_seq_max=2, kv_unified=True, scaling=None, **runtime.context) as context:
        rolls_back = context.can_roll_back()
        best, found = choices[0], find_lead_in(context, task, choices[0], rolls_back=rolls_back)
        if len(choices) > 1 and found.easy < 1:
            chat = find_lead_in(context, task, choices[1], rolls_back=rolls_back)
            if (chat.easy, chat.logprob) > (found.easy, found.logprob):
                best, found = choices[1], chat
    return best, found


def _questions(task: RetrievalTask) -> list[tuple[Question, str]]:
    """Easy questions, each with the prompt of another item."""
    first_item, second_item = (task.easy_item(i).questions for i in range(2))
    return [(q, second_item[0].prompt) for q in first_item[:2]] + [(second_item[0], first_item[0].prompt)]


def find_lead_in(context: Context, task: RetrievalTask, prompts: Prompts, *, rolls_back: bool) -> LeadIn:
    """Measure the candidates on the task's easy items, under the scales that are set.  Forgets every sequence.

    rolls_back  whether the end of a sequence can be removed, so that two questions share what they begin with
    """
    questions = _questions(task)
    cached: list[int] = []
    context.clear()
    known = all(q.expected is not None for q, _ in questions)  # it is known what comes next
    candidates = [""] if known else list(CANDIDATES)
    logprob: dict[str, float] = dict.fromkeys(candidates, 0.0)
    certain: dict[str, list[bool]] = {c: [] for c in candidates}  # it says the answer with exactly this before it
    own: dict[str, int] = {}
    said: list[bool] = []  # it says the answer anyhow
    for number, (q, other) in enumerate(questions):
        first = _prefill(context, q, prompts, cached if rolls_back else [])
        cached = prompts(q.prompt, q.prefix)
        for c in candidates:
            value, greedy = _forced(context, q, prompts, c, first)
            logprob[c] += value
            certain[c].append(greedy)
        candidates = sorted(candidates, key=lambda c: -logprob[c])[: KEPT[number]]
        if any(certain[c][-1] for c in candidates):
            said.append(True)
            continue
        if said.count(False) == N_TALKS:
            said.append(False)
            continue
        text = _greedy(context, task, q, prompts, first)
        start = text.lower().find(q.answers[0].lower())
        said.append(task.is_right(text, q))
        if start >= 0 and may_lead(text[:start], q, other):
            own[text[:start]] = own.get(text[:start], 0) + 1
    best = max(candidates, key=lambda c: logprob[c])
    mine = max(own, key=lambda c: own[c]) if own else None
    if mine is not None and mine not in CANDIDATES and not known:
        total = 0.0
        for q, _ in questions:
            total += _forced(context, q, prompts, mine, _prefill(context, q, prompts, []))[0]
        if total > logprob[best]:
            best, logprob[mine] = mine, total
    context.clear()
    return LeadIn(best, sum(said) / len(said), logprob[best])


def may_lead(text: str, question: Question, other: str) -> bool:
    """Short, and no word in it that this item has and another one has not."""
    words, elsewhere = (set(re.findall(r"\w{3,}", t.lower())) for t in (text, other))
    return len(text) <= MAX_LENGTH and not any(w in question.prompt.lower() for w in words - elsewhere)


def _prefill(context: Context, q: Question, prompts: Prompts, cached: list[int]) -> npt.NDArray[np.float32]:
    """The prompt alone in sequence 0, where `cached` is; logits of what comes next, [n_vocab]."""
    tokens = prompts(q.prompt, q.prefix)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(tokens[:-1], cached, strict=False))
    n_shared = sum(1 for _ in same)
    if n_shared:
        context.seq_rm(0, n_shared)
    else:
        context.clear()
    context.decode(tokens[n_shared:], n_shared)
    return context.logits(-1).copy()


def _forced(
    context: Context, q: Question, prompts: Prompts, lead_in: str, first: npt.NDArray[np.float32]
) -> tuple[float, bool]:
    """Log-probability of lead-in and answer together, and whether both are what greedy decoding says."""
    expected = lead_in + q.answers[0] if q.expected is None else q.expected
    prompt, gold = prompts.with_answer(q, expected)
    gold = gold[: context.n_batch]
    rows = [first]
    if len(gold) > 1:
        context.seq_cp(0, 1)
        context.decode(gold[:-1], len(prompt), 1, all_logits=True)
        rows += [*context.all_logits(len(gold) - 1)]
    logits = np.stack(rows)
    context.seq_rm(1)
    logprob = float(token_logprobs(logits, gold).sum())
    return logprob, logits.argmax(axis=1).tolist() == gold


def _greedy(
    context: Context, task: RetrievalTask, q: Question, prompts: Prompts, first: npt.NDArray[np.float32]
) -> str:
    """What the model says, a little longer than the answer."""
    model = context.model
    pos = len(prompts(q.prompt, q.prefix))
    limit = len(model.tokenize(q.expected or q.answers[0], add_special=False)) + MORE_TOKENS
    out: list[int] = []
    row = first
    context.seq_cp(0, 1)
    while len(out) < limit:
        token = int(row.argmax())
        if model.is_eog(token):
            break
        out.append(token)
        if task.is_settled(model.detokenize(out), q):
            break
        context.decode([token], pos + len(out) - 1, 1)
        row = context.logits(-1)
    context.seq_rm(1)
    return model.detokenize(out)
