"""Retrieval on a model: the fast road (shared prefill, teacher-forced branches) and the slow one.

Fast: what the questions of an item share is prefilled once, each question becomes a branch of those KV cells
(``llama_memory_seq_cp``), and the expected answer is fed along, so that one decode tells whether greedy decoding would
give it.  Where it would not, greedy decoding goes on from the first mismatch before the answer is called wrong, with
guesses looked up in the prompt (prompt lookup decoding) of which only those that are greedy are kept.

A recurrent state (Falcon-H1, Granite 4 and other hybrid models) cannot go back by a few tokens.  There a branch that
has to is made anew from what it shares, replays what stays, and goes on without guesses.

The sums of a batch of branches and of a lone prompt differ in the last bits, so the two roads may
part where two tokens are nearly equally likely; `Answer.margin` tells.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ropebend.context import Batch, Context
from ropebend.errors import RopebendError
from ropebend.evaluate.evaluation import Row
from ropebend.evaluate.evaluator import Evaluator
from ropebend.evaluate.lead_in import LeadIn, find_lead_in
from ropebend.evaluate.logits import margins, token_logprobs
from ropebend.evaluate.prompts import Prompts
from ropebend.model import Model
from ropebend.runtime import Runtime
from ropebend.tasks.task import Question, RetrievalTask

MAX_ANSWER_TOKENS = 100  # of an answer whose task names no limit
MORE_TOKENS = 8  # beyond the expected answer, where a task gives a model no more: room for a few words of its own
MAX_TAIL = 176  # tokens in which the prompts of branches may differ: the question
FIRST_GUESS, MAX_GUESS = 4, 16  # tokens looked up in the prompt and checked in one decode; more while they hold
N_LOOKED_AT = 100  # items; of a task without a bound of its own later ones are as long
N_TOKENISED = 8  # prompts, the longest ones, to know how large the context has to be
CACHED_TOKENS = 1 << 24  # of tokenised prompts kept from one set of scales to the next (64 MiB)

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Answer:
    """What came of one question.

    depth     that of the question, see `Question`
    score     what the greedy answer is worth by the task's metric, 0 to 1; with `full=False` that of the expected one
              where it was greedy, else 0
    logprob   mean log-probability per token of the expected answer, teacher-forced (nats)
    margin    smallest gap between the best and second-best logit on the way: how close the verdict was
    text      the greedy answer as far as it was decoded
    """

    depth: float
    score: float
    logprob: float
    margin: float
    text: str

    @property
    def correct(self) -> bool:
        """True for a full score."""
        return self.score == 1


@dataclass(frozen=True)
class _Prompt:
    """max_answer: tokens after which the answer ends."""

    question: Question
    tokens: Tokens
    gold: list[int]
    max_answer: int


@dataclass
class _Branch:
    """A question on its way: a sequence that shares the cells of what the item's prompts begin with.

    n_cached  tokens of the prompt and then of the answer that are in its cache
    """

    prompt: _Prompt
    seq: int
    n_shared: int
    n_cached: int
    out: list[int]
    logprob: float = 0.0
    margin: float = np.inf
    score: float = 0.0
    done: bool = False
    n_guess: int = FIRST_GUESS

    def missing(self, answer: list[int]) -> list[int]:
        """Tokens of the prompt with this answer that are not in the cache yet."""
        n = len(self.prompt.tokens)
        return [*self.prompt.tokens[self.n_cached :].tolist(), *answer[max(self.n_cached - n, 0) :]]


class RetrievalEvaluator(Evaluator):
    """Runs items of a task; `answers` says how.

    prompts  plain text if not given
    lead_in  found on the task's easy items if not given

    The longest question decides the context; RopebendError if there is no room for it.
    """

    task: RetrievalTask
    lead_in: str

    def __init__(
        self, model: Model, task: RetrievalTask, n_items: int, runtime: Runtime, prompts: Prompts | None = None,
        lead_in: LeadIn | None = None,
    ):  # fmt: skip
        self._prompts: dict[int, list[_Prompt]] = {}
        self._n_cached = 0
        self.prompts = prompts or Prompts(model)
        self.chat = self.prompts.chat
        self._max_answer = task.max_answer_tokens or MAX_ANSWER_TOKENS
        longest = task.max_prompt_tokens or _longest(self.prompts, task, n_items)
        n = max(1, len(task.depths))
        n_branch = MAX_TAIL + self._max_answer + MAX_GUESS
        context = Context(
            model, n_ctx=longest + 64 + n * n_branch, n_seq_max=1 + n, kv_unified=True, scaling=None, **runtime.context
        )
        super().__init__(model, task, n_items, longest + self._max_answer, context)
        self._batch = Batch(context.n_batch)
        self._rolls_back = context.can_roll_back()
        found = lead_in or find_lead_in(context, task, self.prompts, rolls_back=self._rolls_back)
        self.lead_in, self.easy = found.text, found.easy

    def n_to_compute(self, i: int) -> int:
        """Prompt tokens: what the prompts share once, and the rest of each."""
        prompts = [p.tokens for p in self._prompts_of(i)]
        shared = min(_common_prefix(prompts[0], p) for p in prompts)
        if all(len(p) - shared <= MAX_TAIL for p in prompts):
            return shared + sum(len(p) - shared for p in prompts)
        return len(prompts[0]) + sum(len(b) - _common_prefix(a, b) for a, b in itertools.pairwise(prompts))

    def measure(self, i: int, *, full: bool = True) -> Row:
        """The answers to item i, see `answers`; tasks without exact answers are always run in full."""
        answers = self.answers(i, full=full or not self.task.exact)
        return Row(
            tuple(a.score for a in answers),
            tuple(a.logprob for a in answers),
            tuple(a.margin for a in answers),
            tuple(a.text for a in answers),
        )

    def answers(self, i: int, *, full: bool = True) -> list[Answer]:
        """Answers to the questions of item i, by depth.

        full=False stops at the first mismatch: stricter (another lead-in counts as wrong) and much faster where
        most answers are wrong; meant for searches on tasks with exact answers.

        Raises RopebendError if a prompt is longer than those that the context was made for, if a question does not fit
        a batch, or if llama.cpp cannot decode.
        """
        prompts = self._prompts_of(i)
        context = self.context
        context.clear()
        shared = min(_common_prefix(prompts[0].tokens, p.tokens) for p in prompts)
        shared = min(shared, min(len(p.tokens) for p in prompts) - 1)  # every branch needs a token of its own
        branches = []
        if all(len(p.tokens) - shared <= MAX_TAIL for p in prompts):
            self._prefill(prompts[0].tokens[:shared], 0)
            for seq, p in enumerate(prompts, 1):
                context.seq_cp(0, seq)
                branches.append(_Branch(p, seq, shared, shared, []))
            self._resolve(branches, full)
        else:  # the answers were moved, not the questions: one after another, keeping what two prompts share
            cached = np.zeros(0, np.int32)
            for p in prompts:
                last = len(p.tokens) - 1
                start = min(_common_prefix(cached, p.tokens), last) if self._rolls_back else 0
                context.seq_rm(0, start)
                self._prefill(p.tokens[start:-1], start)
                cached = p.tokens[:-1]
                context.seq_cp(0, 1)
                branches.append(_Branch(p, 1, last, last, []))
                self._resolve(branches[-1:], full)
                context.seq_rm(1)
        return [
            Answer(b.prompt.question.depth, b.score, b.logprob, b.margin, self.model.detokenize(b.out))
            for b in branches
        ]

    def _prompts_of(self, i: int) -> list[_Prompt]:
        known = self._prompts.get(i)
        if known is not None:
            return known
        made = [self._tokenised(q) for q in self.task.item(i).questions]
        n = sum(len(p.tokens) for p in made)
        if self._n_cached + n <= CACHED_TOKENS:
            self._prompts[i] = made
            self._n_cached += n
        return made

    def limit(self, question: Question) -> int:
        """Tokens after which an answer to this question ends."""
        return self._tokenised(question).max_answer

    def _tokenised(self, q: Question) -> _Prompt:
        expected = self.lead_in + q.answers[0] if q.expected is None else q.expected
        prompt, gold = self.prompts.with_answer(q, expected)
        if len(prompt) + self._max_answer > self.n_tokens:
            raise RopebendError(
                f"{self.task.name}: a prompt has {len(prompt)} tokens, there is room for "
                f"{self.n_tokens - self._max_answer}: the length of the longest one that was looked at"
            )
        limit = self._max_answer
        if self.task.max_answer_tokens is None:
            limit = min(limit, len(gold) + MORE_TOKENS)
        return _Prompt(q, np.array(prompt, np.int32), gold[:limit], limit)

    def _prefill(self, tokens: Tokens, pos: int) -> None:
        for start in range(0, len(tokens), self.context.n_batch):
            part = tokens[start : start + self.context.n_batch]
            self.context.decode(part, pos + start)
            self._computed(len(part), pos + start)

    def _resolve(self, branches: list[_Branch], full: bool) -> None:
        """Teacher-force the expected answers, then decode on greedily where they are not what the model says."""
        work = [(b, b.missing(b.prompt.gold[:-1]), len(b.prompt.gold)) for b in branches]
        n_asked, position = sum(len(tokens) - n + 1 for _, tokens, n in work), branches[0].n_cached
        for branch, logits in self._forward(work):
            self._judge(branch, logits, full)
        self._computed(n_asked, position)
        while open_branches := [b for b in branches if not b.done]:
            guesses = [self._guess(b) for b in open_branches]
            work = [(b, b.missing([*b.out, *g]), 1 + len(g)) for b, g in zip(open_branches, guesses, strict=True)]
            for branch, logits in self._forward(work):
                self._advance(branch, guesses[open_branches.index(branch)], logits)

    def _forward(self, work: list[tuple[_Branch, list[int], int]]) -> list[tuple[_Branch, npt.NDArray[np.float32]]]:
        """Decode the next tokens of each branch; logits of its last n tokens, [n, n_vocab]."""
        out: list[tuple[_Branch, npt.NDArray[np.float32]]] = []
        b = self._batch
        start = 0
        while start < len(work):
            stop, n = start, 0
            rows: list[tuple[_Branch, slice]] = []
            n_rows = 0
            while stop < len(work) and n + len(work[stop][1]) <= b.n_tokens:
                branch, tokens, n_logits = work[stop]
                k = len(tokens)
                b.token[n : n + k] = tokens
                b.pos[n : n + k] = np.arange(branch.n_cached, branch.n_cached + k)
                b.seq[n : n + k, 0] = branch.seq
                branch.n_cached += k
                b.want[n : n + k] = 0
                b.want[n + k - n_logits : n + k] = 1
                rows.append((branch, slice(n_rows, n_rows + n_logits)))
                n_rows += n_logits
                n += k
                stop += 1
            if stop == start:
                raise RopebendError(
                    f"a question of {len(work[start][1])} tokens does not fit a batch of {b.n_tokens}; "
                    "raise --batch-size"
                )
            self.context.run(b, n)
            logits = self.context.all_logits(n_rows)
            # the buffer is llama.cpp's and belongs to this decode
            out += [(branch, logits[part].copy() if stop < len(work) else logits[part]) for branch, part in rows]
            start = stop
        return out

    def _judge(self, branch: _Branch, logits: npt.NDArray[np.float32], full: bool) -> None:
        gold = np.asarray(branch.prompt.gold)
        best = logits.argmax(axis=1)
        branch.logprob = float(token_logprobs(logits, branch.prompt.gold).mean())
        wrong = np.flatnonzero(best != gold)
        n_right = int(wrong[0]) if len(wrong) else len(gold)
        branch.margin = float(margins(logits[: n_right + 1]).min())
        branch.out = branch.prompt.gold[:n_right]
        if n_right < len(gold):
            if not full:
                branch.done = True
            else:
                self._append(branch, int(best[n_right]))
        else:
            branch.out.pop()
            self._append(branch, int(gold[-1]))
            if not full and not branch.done:
                self._finish(branch)
        self._forget_rest(branch)

    def _finish(self, branch: _Branch) -> None:
        branch.done = True
        branch.score = self.task.score(self.model.detokenize(branch.out), branch.prompt.question)

    def _append(self, branch: _Branch, token: int) -> None:
        """Take the next greedy token and see whether the answer has ended, or is decided."""
        if self.model.is_eog(token):
            self._finish(branch)
            return
        branch.out.append(token)
        text = self.model.detokenize(branch.out)
        if len(branch.out) >= branch.prompt.max_answer or self.task.is_settled(text, branch.prompt.question):
            self._finish(branch)

    def _guess(self, branch: _Branch) -> list[int]:
        """What may come next: what followed the last tokens where they stood before, in the prompt or in the answer.

        A wrong answer is mostly another value of the same JSON, so most guesses hold; a lone token costs llama.cpp
        more than two (its matrix product of F16 by a single column is the slow one).
        """
        if not self._rolls_back:
            return []
        text = np.concatenate([branch.prompt.tokens, np.array(branch.out, np.int32)])
        limit = min(branch.n_guess, branch.prompt.max_answer - len(branch.out))
        pair = np.flatnonzero((text[:-2] == text[-2]) & (text[1:-1] == text[-1]))
        if len(pair):
            return text[pair[-1] + 2 :][:limit].tolist()
        single = np.flatnonzero(text[:-1] == text[-1])
        return text[single[-1] + 1 :][: min(limit, 1)].tolist() if len(single) else []

    def _advance(self, branch: _Branch, guess: list[int], logits: npt.NDArray[np.float32]) -> None:
        """Keep the guesses that greedy decoding would have made, and its own token where it parts from them."""
        best = logits.argmax(axis=1)
        gaps = margins(logits)
        for j, token in enumerate(best.tolist()):
            branch.margin = min(branch.margin, float(gaps[j]))
            self._append(branch, token)
            if branch.done:
                return
            if j == len(guess) or guess[j] != token:
                branch.n_guess = min(2 * branch.n_guess, MAX_GUESS) if j == len(guess) else max(2, j)
                break
        self._forget_rest(branch)

    def _forget_rest(self, branch: _Branch) -> None:
        """Keep what is settled in the cache of a branch: its prompt and answer but for the last token."""
        n_kept = len(branch.prompt.tokens) + len(branch.out) - 1
        if branch.done or branch.n_cached <= n_kept:
            return
        if self._rolls_back:
            self.context.seq_rm(branch.seq, n_kept)
            branch.n_cached = n_kept
        else:
            self.context.seq_rm(branch.seq)
            self.context.seq_cp(0, branch.seq)
            branch.n_cached = branch.n_shared


def greedy_answer(
    context: Context, question: Question, task: RetrievalTask | None = None, max_tokens: int = MAX_ANSWER_TOKENS,
    prompts: Prompts | None = None,
) -> Answer:  # fmt: skip
    """The slow road: the whole prompt alone in the cache, then one greedy token after another, no early end.

    max_tokens  of the answer; prompts: plain text if not given.  The answer's logprob is NaN, and without a task its
                score, too.  Forgets every sequence of the context

    Raises RopebendError if llama.cpp cannot decode, as when prompt and answer do not fit the context.
    """
    model = context.model
    tokens = (prompts or Prompts(model))(question.prompt, question.prefix)
    context.clear()
    context.decode(tokens, 0)
    out: list[int] = []
    margin = np.inf
    while len(out) < max_tokens:
        row = context.logits(-1)
        token = int(row.argmax())
        margin = min(margin, float(margins(row[None])[0]))
        if model.is_eog(token):
            break
        out.append(token)
        if len(out) < max_tokens:
            context.decode([token], len(tokens) + len(out) - 1)
    text = model.detokenize(out)
    score = task.score(text, question) if task is not None else np.nan
    return Answer(question.depth, score, np.nan, margin, text)


def _longest(tokenize: Prompts, task: RetrievalTask, n_items: int) -> int:
    """Tokens of the longest prompt, with some room: only those with most bytes are tokenised, to begin in seconds."""
    prompts = [q for i in range(min(n_items, N_LOOKED_AT)) for q in task.item(i).questions]
    prompts.sort(key=lambda q: -len(q.text.encode()))
    counts = [len(tokenize(q.prompt, q.prefix)) for q in prompts[:N_TOKENISED]]
    looked_at_all = len(counts) == len(prompts) and n_items <= N_LOOKED_AT
    return max(counts) + (0 if looked_at_all else max(counts) // 32)


def _common_prefix(a: Tokens, b: Tokens) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
