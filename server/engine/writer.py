"""What becomes of one request while its tokens are computed: from rows of outputs to events."""

from __future__ import annotations

import math
import time
from collections import deque
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from ropebend.errors import RopebendError
from ropebend.model import Model
from ropebend.server.engine.events import Embedding, Finished, Piece, Progress, Timing, TokenLogprob
from ropebend.server.engine.logprobs import LOWEST, entry, token_logprob
from ropebend.server.engine.outputs import Outputs, Rows
from ropebend.server.engine.requests import Embed, Generation, Submission
from ropebend.server.engine.sampling import Sampler
from ropebend.server.engine.text import TextStream


class TextWriter:
    """One generation: samples its tokens and reports its text.

    To look through a long prompt takes time, so that waits for the first output.

    all_rows  the outputs of every prompt token are wanted, not only the last one's
    """

    wants_embeddings = False

    def __init__(self, submission: Submission, index: int, request: Generation, model: Model):
        self.submission = submission
        self.index = index
        self.request = request
        self.all_rows = request.echo and request.n_logprobs is not None
        self.started = time.monotonic()
        self.n_generated = 0
        self.sample_seconds = 0.0
        self._model = model
        self._text = TextStream(request.stop)
        self._untold: deque[TokenLogprob] = deque()  # tokens whose text is held back
        self._ready = ""  # text to tell
        self._n_passed = 0  # bytes of the echo
        self._ids: list[int] = []  # tokens that no piece has told of
        self._left: list[tuple[int, float]] | None = None  # what the token was chosen from, if asked for
        self._n_cached = self._n_computed = 0  # prompt tokens
        self._begun = self._prompt_done = self._last = 0.0  # clock; 0: not yet
        self._sampler: Sampler | None = None

    def close(self) -> None:
        """Free the sampler."""
        if self._sampler is not None:
            self._sampler.close()

    def deliver(self, outputs: Outputs) -> bool:
        """See `Owner`."""
        if self.all_rows and self.n_generated == 0:
            self._read_prompt(outputs.start, outputs.logits)
        if not outputs.is_last:
            return True
        logits = outputs.logits[-1]
        started = time.perf_counter()
        if not self._prompt_done:
            self._prompt_done = started
        token = self._choose(outputs, logits)
        self._last = time.perf_counter()
        self.sample_seconds += self._last - started
        if not self._accept(token, logits):
            return False
        outputs.tokens.append(token)
        return True

    # ---- the prompt

    def begin(self, n_cached: int) -> None:
        """Its first tokens are about to be computed, or again.  n_cached: tokens taken from another sequence."""
        if self._begun:
            return
        self._begun = time.perf_counter()
        self._n_cached = n_cached
        self._tell_progress(n_cached)

    def reached(self, n: int) -> None:
        """The first n tokens of the prompt have been computed."""
        self._n_computed = n - self._n_cached
        self._prompt_done = time.perf_counter() if n == len(self.request.prompt) else 0.0
        self._tell_progress(n)

    def _tell_progress(self, n: int) -> None:
        if self.request.progress and self.submission.stream:
            ms = (time.perf_counter() - self._begun) * 1000
            progress = Progress(self.index, len(self.request.prompt), self._n_cached, n, ms, self._timing(ms))
            self.submission.on_event(progress)

    def _timing(self, prompt_ms: float | None = None) -> Timing:
        """prompt_ms: while the prompt is being computed."""
        if prompt_ms is None:
            prompt_ms = (self._prompt_done - self._begun) * 1000
        elif not self._n_computed:
            prompt_ms = 0.0
        generated_ms = max((self._last - self._prompt_done) * 1000, 0.001) if self._last else 0.0
        return Timing(self._n_cached, self._n_computed, prompt_ms, self.n_generated, generated_ms)

    @cached_property
    def _echo(self) -> bytes:
        g = self.request
        if not g.echo:
            return b""
        return b"".join(map(self._model.piece, g.prompt)) if g.text is None else g.text.encode()

    @cached_property
    def _prompt_text(self) -> str:
        return self._echo.decode(errors="replace")

    @cached_property
    def _echoed(self) -> TextStream:
        """Counts the characters before each token.  The first one, which nothing predicts, is in it and untold."""
        first, stream = self.request.prompt[0], TextStream()
        self._untold.append(TokenLogprob(self._model.piece(first, special=True), None, 0, ()))
        self._pass(first, stream)
        return stream

    def _pass(self, token: int, stream: TextStream) -> None:
        """Go past a token of the prompt in its text, which need not have the BOS or the blanks that tokenisers add."""
        piece = self._model.piece(token, special=True)
        for spelled in (piece, piece.removeprefix(b" ")):
            if self._echo.startswith(spelled, self._n_passed):
                self._n_passed += len(spelled)
                stream.feed(spelled)
                return

    def _read_prompt(self, start: int, rows: Rows) -> None:
        """Outputs of the prompt tokens from position `start` on (only if `all_rows`): [n, n_vocab]."""
        g, echoed = self.request, self._echoed
        assert g.n_logprobs is not None
        for i, logits in enumerate(rows, start + 1):
            # a prompt that was pushed out is computed again from its beginning
            if len(self._untold) == i < len(g.prompt):
                self._untold.append(token_logprob(self._model, g.prompt[i], logits, g.n_logprobs, echoed.n_decoded))
                self._pass(g.prompt[i], echoed)

    def _end_of_prompt(self) -> None:
        """The echo is complete: tell it before the first token."""
        if self.all_rows:
            self.submission.on_event(Piece(self.index, self._prompt_text, tuple(self._untold)))
            self._untold.clear()
        else:
            self._ready = self._prompt_text

    # ---- the text

    def _choose(self, outputs: Outputs, logits: Rows) -> int:
        g = self.request
        after_filters = g.after_filters and g.n_logprobs is not None
        if g.sampling.is_argmax and g.sampling.constraint is None and not after_filters:
            return int(logits.argmax())
        if self._sampler is None:
            self._sampler = Sampler(g.sampling, self._model.vocab, max(g.max_tokens, 1), g.prompt)
        if after_filters:
            token, self._left = self._sampler.sample_with_probabilities(logits)
            return token
        return self._sampler.sample(outputs.context, outputs.place, logits)

    def _accept(self, token: int, logits: Rows) -> bool:
        """Take a sampled token into the text; False if the text has ended with it."""
        g, text = self.request, self._text
        if logits[token] != logits[token]:
            raise RopebendError("the model computed logits that are not numbers")
        if self.n_generated == 0:
            self._end_of_prompt()
        if g.max_tokens == 0:
            return self._finish("length")
        if self._model.is_eog(token):
            return self._finish("stop")
        self.n_generated += 1
        self._ids.append(token)
        if g.n_logprobs is not None:
            offset = len(self._prompt_text) + text.n_decoded
            self._untold.append(self._logprob(token, logits, g.n_logprobs, offset))
        piece = self._piece(token)
        if piece or not g.stop:
            self._ready += text.feed(piece)
        else:  # a control token: a stop string may name it
            self._ready += text.feed(self._model.piece(token, special=True), hidden=True)
        if text.stopped:
            return self._finish("stop")
        if self._sampler is not None and self._sampler.ended:
            return self._finish("stop")
        if self.n_generated == g.max_tokens:
            return self._finish("length")
        if self.submission.stream:
            self._tell(everything=False)
        return True

    def _logprob(self, token: int, logits: Rows, n: int, offset: int) -> TokenLogprob:
        if self._left is None:
            return token_logprob(self._model, token, logits, n, offset)
        left = [(t, math.log(p)) for t, p in self._left]
        return entry(self._model, token, dict(left).get(token, LOWEST), offset, left[:n])

    def _piece(self, token: int) -> bytes:
        """The text of a token; of a control token its name if the request asks for that."""
        piece = self._model.piece(token)
        if not piece and self.request.control:
            name = self._model.piece(token, special=True)
            if name.decode(errors="replace") in self.request.control:
                return name
        return piece

    def _tell(self, everything: bool) -> None:
        told = []
        n_sent = len(self._prompt_text) + self._text.n_sent
        while self._untold and (everything or self._untold[0].offset < n_sent):
            told.append(self._untold.popleft())
        if self._ready or told:
            timing = self._timing() if self.request.timings else None
            self.submission.on_event(Piece(self.index, self._ready, tuple(told), tuple(self._ids), timing))
            self._ready = ""
            self._ids.clear()

    def _finish(self, reason: Literal["stop", "length"]) -> bool:
        self._ready += self._text.feed(b"", final=True)
        # Tokens of a stop string have no text in the answer, so they have no place in its log-probabilities.
        self._tell(everything=not self._text.stopped)
        self.reason = reason
        return False

    def ending(self, n_cached: int) -> Finished:
        """The last event."""
        return Finished(self.index, self.reason, self.n_generated, n_cached, self._text.stopped_by, self._timing())


class EmbeddingWriter:
    """One text to embed: gathers the hidden states of its tokens.

    llama.cpp then makes an output of every token of a decode, so embeddings are decoded apart from texts.
    """

    wants_embeddings = True
    all_rows = True

    def __init__(self, submission: Submission, index: int, request: Embed, n_embd: int):
        self.submission = submission
        self.index = index
        self.request = request
        self.started = time.monotonic()
        self.n_generated = 0
        self.sample_seconds = 0.0
        self._sum = np.zeros(n_embd, np.float64)
        self._rows: list[Rows] = []

    def begin(self, n_cached: int) -> None:
        """Nothing to do."""

    def reached(self, n: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to free."""

    def deliver(self, outputs: Outputs) -> bool:
        """See `Owner`.  Tells the vector after the last tokens."""
        start, rows = outputs.start, outputs.states()
        if start == 0:  # also if the text was pushed out and is computed again
            self._sum[:] = 0
            self._rows.clear()
        if self.request.pooling == "none":
            self._rows.append(rows.copy())
        elif self.request.pooling == "mean":
            self._sum += rows.sum(axis=0, dtype=np.float64)
        elif self.request.pooling == "last":
            self._sum[:] = rows[-1]
        elif start == 0:
            self._sum[:] = rows[0]
        if not outputs.is_last:
            return True
        if self.request.pooling == "none":
            vectors = np.concatenate(self._rows)
        else:
            vectors = _normalised(self._sum, self.request.norm)[None].astype(np.float32)
        self.submission.on_event(Embedding(self.index, tuple(tuple(map(float, v)) for v in vectors)))
        return False

    def ending(self, n_cached: int) -> Finished:
        """The last event."""
        return Finished(self.index, "stop", 0, n_cached)


def _normalised(vector: npt.NDArray[np.float64], norm: int) -> npt.NDArray[np.float64]:
    """As llama.cpp's `common_embd_normalize`."""
    if norm < 0:
        return vector
    length = float(np.abs(vector).max()) / 32760 if norm == 0 else float(np.linalg.norm(vector, norm))
    if not 0 < length < np.inf:
        raise RopebendError(f"the model computed hidden states of length {length}, which make no vector")
    return vector / length


Writer = TextWriter | EmbeddingWriter
