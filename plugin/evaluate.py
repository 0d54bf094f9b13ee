"""Key-value retrieval on a model: the fast road (shared prefill, teacher-forced branches) and the slow one.

Fast: the JSON is prefilled once, each question becomes a branch of its KV cells (``llama_memory_seq_cp``), and the
expected answer is fed along, so that one decode tells whether greedy decoding would give it.  Where it would not,
greedy decoding goes on from the first mismatch before the answer is called wrong, exactly as the slow road does.

The sums of a batch of branches and of a lone prompt differ in the last bits (design section 5), so the two roads may
part where two tokens are nearly equally likely; `Answer.margin` tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.model import Batch, Closing, Context, Model
from ropebend.scaling import LayerScaling
from ropebend.tasks import kv

MAX_ANSWER_TOKENS = 100  # as published
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Answer:
    """What came of one question.

    correct   the greedy answer contains the value (published metric); with `full=False`: the exact answer was greedy
    logprob   mean log-probability per token of the expected answer, teacher-forced
    margin    smallest gap between the best and second-best logit on the way: how close the verdict was
    text      the greedy answer as far as it was decoded
    """

    depth: float
    correct: bool
    logprob: float
    margin: float
    text: str


@dataclass
class _Branch:
    """A question on its way: a sequence that shares the cells of the JSON."""

    question: kv.Question
    seq: int
    prompt_tail: list[int]
    gold: list[int]
    pos: int  # of the first token of prompt_tail
    out: list[int]
    logprob: float = 0.0
    margin: float = np.inf
    correct: bool = False
    done: bool = False


class KVEvaluator(Closing):
    """Runs key-value retrieval on one model, swapping scales without a new context.

    samples decide the context size; raises RopebendError if it cannot be made.
    """

    def __init__(
        self,
        model: Model,
        samples: Sequence[kv.Sample],
        *,
        depths: Sequence[float] = DEPTHS,
        protocol: str = "shared",
        n_threads: int = 0,
        n_batch: int = 512,
        flash_attn: bool = False,
    ):
        self.model = model
        self.depths = tuple(depths)
        self.protocol = protocol
        longest = 0
        for sample in samples:
            for q in kv.questions(sample, self.depths[:1], protocol):
                longest = max(longest, len(model.tokenize(q.prompt)))
        room = MAX_ANSWER_TOKENS + 64  # the answer, and the question where keys differ in length
        self.n_tokens = longest + room
        self.context = Context(
            model,
            n_ctx=longest + 64 + len(self.depths) * room,
            n_batch=n_batch,
            n_ubatch=n_batch,
            n_seq_max=1 + len(self.depths),
            kv_unified=True,
            n_threads=n_threads,
            flash_attn=flash_attn,
            scaling=None,
        )
        self.prefilled = 0  # prompt tokens computed so far, for reports
        self._batch = Batch(n_batch)
        self.lead_in = self._find_lead_in()

    def close(self) -> None:
        """Free the context."""
        self.context.close()

    def set_scaling(self, scaling: LayerScaling | None) -> None:
        """Use these scales from now on."""
        self.context.set_scaling(scaling, self.n_tokens)

    def _find_lead_in(self) -> str:
        """What this model says before the value, learnt from a few easy questions; a space if it never finds it."""
        seen: Counter[str] = Counter()
        for sample in kv.generate(3, 3, seed=0):
            for q in kv.questions(sample, (0.0, 1.0)):
                text = greedy_answer(self.context, q.prompt).text
                start = text.lower().find(q.value.lower())
                if start >= 0:
                    seen[text[:start]] += 1
        return seen.most_common(1)[0][0] if seen else " "

    def run(self, sample: kv.Sample, *, full: bool = True) -> list[Answer]:
        """Answers to the questions about one sample, by depth.

        full=False stops at the first mismatch: stricter (another lead-in counts as wrong) and much faster where
        most answers are wrong; meant for search.
        """
        asked = kv.questions(sample, self.depths, self.protocol)
        prompts = [self.model.tokenize(q.prompt) for q in asked]
        gold = [self._gold(q, p) for q, p in zip(asked, prompts, strict=True)]
        self.context.clear()
        if self.protocol == "shared":
            shared = min(_common_prefix(prompts[0], p) for p in prompts)
            shared = min(shared, min(map(len, prompts)) - 1)  # every branch needs a token of its own
            self._prefill(prompts[0][:shared], 0)
            branches = []
            for i, (q, p, g) in enumerate(zip(asked, prompts, gold, strict=True)):
                self.context.seq_cp(0, i + 1)
                branches.append(_Branch(q, i + 1, p[shared:], g, shared, []))
            self._resolve(branches, full)
        else:
            branches, cached = [], list[int]()
            for q, p, g in zip(asked, prompts, gold, strict=True):
                shared = min(_common_prefix(cached, p), len(p) - 1)
                self.context.seq_rm(0, shared)
                self._prefill(p[shared:-1], shared)
                cached = p[:-1]
                self.context.seq_cp(0, 1)
                branch = _Branch(q, 1, p[-1:], g, len(p) - 1, [])
                self._resolve([branch], full)
                self.context.seq_rm(1)
                branches.append(branch)
        return [Answer(b.question.depth, b.correct, b.logprob, b.margin, self._text(b.out)) for b in branches]

    def _gold(self, q: kv.Question, prompt: list[int]) -> list[int]:
        """Tokens of the expected answer as they follow the prompt."""
        together = self.model.tokenize(q.prompt + self.lead_in + q.value)
        if together[: len(prompt)] == prompt:
            return together[len(prompt) :]
        return self.model.tokenize(self.lead_in + q.value, add_special=False)  # the seam was tokenised otherwise

    def _prefill(self, tokens: Sequence[int], pos: int) -> None:
        if tokens:
            self.context.decode(tokens, pos)
            self.prefilled += len(tokens)

    def _text(self, tokens: Sequence[int]) -> str:
        return self.model.detokenize(tokens)

    def _resolve(self, branches: list[_Branch], full: bool) -> None:
        """Teacher-force the expected answers, then decode on greedily where they are not what the model says."""
        for group in _groups(branches, self.context.n_batch):
            self._verify(group, full)
        while open_branches := [b for b in branches if not b.done]:
            for group in _groups(open_branches, self.context.n_batch, single=True):
                self._step(group)

    def _verify(self, branches: list[_Branch], full: bool) -> None:
        n = 0
        rows: list[slice] = []
        b = self._batch
        row = 0
        for branch in branches:
            tokens = branch.prompt_tail + branch.gold[:-1]
            k = len(tokens)
            b.token[n : n + k] = tokens
            b.pos[n : n + k] = np.arange(branch.pos, branch.pos + k)
            b.seq[n : n + k, 0] = branch.seq
            b.want[n : n + k] = 0
            b.want[n + len(branch.prompt_tail) - 1 : n + k] = 1
            rows.append(slice(row, row + len(branch.gold)))
            row += len(branch.gold)
            self.prefilled += len(branch.prompt_tail)
            n += k
        self.context.run(b, n)
        logits = self.context.all_logits(row)
        for branch, part in zip(branches, rows, strict=True):
            self._judge(branch, logits[part], full)

    def _judge(self, branch: _Branch, logits: npt.NDArray[np.float32], full: bool) -> None:
        best = logits.argmax(axis=1)
        gold = np.asarray(branch.gold)
        top = logits.max(axis=1)
        log_z = top + np.log(np.exp((logits - top[:, None]).astype(np.float64)).sum(axis=1))
        branch.logprob = float((logits[np.arange(len(gold)), gold] - log_z).mean())
        wrong = np.flatnonzero(best != gold)
        n_right = int(wrong[0]) if len(wrong) else len(gold)
        looked_at = logits[: n_right + 1]
        branch.margin = float(_margins(looked_at).min())
        branch.out = [*branch.gold[:n_right]]
        if n_right == len(gold):
            branch.correct = branch.done = True
        elif not full:
            branch.done = True
        else:
            start = branch.pos + len(branch.prompt_tail)
            self.context.seq_rm(branch.seq, start + n_right)
            self._append(branch, int(best[n_right]))

    def _append(self, branch: _Branch, token: int) -> None:
        """Take the next greedy token and see whether the answer is decided."""
        if self.model.is_eog(token):
            branch.done = True
            return
        branch.out.append(token)
        if kv.contains(self._text(branch.out), branch.question.value):
            branch.correct = branch.done = True
        elif len(branch.out) >= MAX_ANSWER_TOKENS:
            branch.done = True

    def _step(self, branches: list[_Branch]) -> None:
        b = self._batch
        for i, branch in enumerate(branches):
            b.token[i] = branch.out[-1]
            b.pos[i] = branch.pos + len(branch.prompt_tail) + len(branch.out) - 1
            b.seq[i, 0] = branch.seq
            b.want[i] = 1
        self.context.run(b, len(branches))
        logits = self.context.all_logits(len(branches))
        for branch, row in zip(branches, logits, strict=True):
            branch.margin = min(branch.margin, float(_margins(row[None])[0]))
            self._append(branch, int(row.argmax()))


@dataclass(frozen=True)
class Evaluation:
    """Verdicts of a run: arrays of shape [n_samples, n_depths]."""

    depths: tuple[float, ...]
    correct: npt.NDArray[np.bool_]
    logprob: npt.NDArray[np.float64]
    margin: npt.NDArray[np.float64]
    texts: list[list[str]]

    @property
    def accuracy(self) -> float:
        """Mean over depths and samples."""
        return float(self.correct.mean())


def evaluate(
    evaluator: KVEvaluator,
    samples: Sequence[kv.Sample],
    scaling: LayerScaling | None,
    *,
    full: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run all samples under one scaling.  `progress` is called with 1 after each sample."""
    if not samples:
        raise RopebendError("no samples to evaluate")
    evaluator.set_scaling(scaling)
    rows = []
    for sample in samples:
        rows.append(evaluator.run(sample, full=full))
        if progress is not None:
            progress(1)
    return Evaluation(
        depths=evaluator.depths,
        correct=np.array([[a.correct for a in row] for row in rows]),
        logprob=np.array([[a.logprob for a in row] for row in rows]),
        margin=np.array([[a.margin for a in row] for row in rows]),
        texts=[[a.text for a in row] for row in rows],
    )


def greedy_answer(context: Context, prompt: str, value: str = "", max_tokens: int = MAX_ANSWER_TOKENS) -> Answer:
    """The slow road: the whole prompt alone in the cache, then one greedy token after another, no early end."""
    model = context.model
    tokens = model.tokenize(prompt)
    context.clear()
    context.decode(tokens, 0)
    out: list[int] = []
    margin = np.inf
    while len(out) < max_tokens:
        row = context.logits(-1)
        token = int(row.argmax())
        margin = min(margin, float(_margins(row[None])[0]))
        if model.is_eog(token):
            break
        out.append(token)
        if len(out) < max_tokens:
            context.decode([token], len(tokens) + len(out) - 1)
    text = model.detokenize(out)
    return Answer(np.nan, bool(value) and kv.contains(text, value), np.nan, margin, text)


def _margins(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    top = np.partition(logits, -2, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _groups(branches: list[_Branch], n_batch: int, *, single: bool = False) -> list[list[_Branch]]:
    """Split branches so that the tokens of each group fit one batch."""
    groups: list[list[_Branch]] = [[]]
    used = 0
    for branch in branches:
        size = 1 if single else len(branch.prompt_tail) + len(branch.gold) - 1
        if size > n_batch:
            raise RopebendError(f"a question of {size} tokens does not fit a batch of {n_batch}; raise --batch-size")
        if used + size > n_batch:
            groups.append([])
            used = 0
        groups[-1].append(branch)
        used += size
    return groups
