"""What becomes of one request while its tokens are computed: from rows of outputs to events."""

from __future__ import annotations

import time
from collections import deque
from functools import cached_property
from typing import Literal

import numpy as np

from ropebend.errors import RopebendError
from ropebend.model import Model
from ropebend.server.engine.events import Embedding, Finished, Piece, TokenLogprob
from ropebend.server.engine.logprobs import token_logprob
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
        token = self._choose(outputs, logits)
        self.sample_seconds += time.perf_counter() - started
        if not self._accept(token, logits):
            return False
        outputs.tokens.append(token)
        return True

    # ---- the prompt

    @cached_property
    def _echo(self) -> bytes:
        """What is echoed."""
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
        if g.sampling.is_argmax and g.sampling.constraint is None:
            return int(logits.argmax())
        if self._sampler is None:
            self._sampler = Sampler(g.sampling, self._model.vocab, max(g.max_tokens, 1), g.prompt)
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
        if g.n_logprobs is not None:
            offset = len(self._prompt_text) + text.n_decoded
            self._untold.append(token_logprob(self._model, token, logits, g.n_logprobs, offset))
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
            self.submission.on_event(Piece(self.index, self._ready, tuple(told)))
            self._ready = ""

    def _finish(self, reason: Literal["stop", "length"]) -> bool:
        self._ready += self._text.feed(b"", final=True)
        # Tokens of a stop string have no text in the answer, so they have no place in its log-probabilities.
        self._tell(everything=not self._text.stopped)
        self.reason = reason
        return False

    def ending(self, n_cached: int) -> Finished:
        """The last event."""
        return Finished(self.index, self.reason, self.n_generated, n_cached)


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

    def close(self) -> None:
        """Nothing to free."""

    def deliver(self, outputs: Outputs) -> bool:
        """See `Owner`.  Tells the vector after the last tokens."""
        start, rows = outputs.start, outputs.states()
        if start == 0:  # also if the text was pushed out and is computed again
            self._sum[:] = 0
        if self.request.pooling == "mean":
            self._sum += rows.sum(axis=0, dtype=np.float64)
        elif self.request.pooling == "last":
            self._sum[:] = rows[-1]
        elif start == 0:
            self._sum[:] = rows[0]
        if not outputs.is_last:
            return True
        length = float(np.linalg.norm(self._sum))
        if not 0 < length < np.inf:
            raise RopebendError(f"the model computed hidden states of length {length}, which make no vector")
        vector = self._sum / length
        self.submission.on_event(Embedding(self.index, tuple(float(x) for x in vector.astype(np.float32))))
        return False

    def ending(self, n_cached: int) -> Finished:
        """The last event."""
        return Finished(self.index, "stop", 0, n_cached)


Writer = TextWriter | EmbeddingWriter
