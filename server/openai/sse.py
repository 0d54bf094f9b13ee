"""Server-sent events, and requests whose client hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ropebend.server.engine import Submission

#: Line ends of Unicode, at which some clients split what they receive.  JSON escapes those of ASCII itself.
_LINE_ENDS = str.maketrans({"\x85": r"\u0085", "\u2028": r"\u2028", "\u2029": r"\u2029"})


def data_event(data: dict[str, Any], name: str = "") -> str:
    """One event: JSON in one line, however lines are split."""
    line = f"data: {json.dumps(data, ensure_ascii=False).translate(_LINE_ENDS)}\n\n"
    return f"event: {name}\n{line}" if name else line


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive, submission: Submission) -> AsyncIterator[None]:
    """Cancel when the client hangs up, and in any case on leaving: cancelling what has ended does nothing."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        submission.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        submission.cancel()


class EventStream(StreamingResponse):
    """Server-sent events of a submission; a client that hangs up cancels it, also while nothing is being sent."""

    def __init__(self, content: AsyncIterator[str], submission: Submission, headers: Mapping[str, str]):
        # the latter: nginx, too, passes on at once
        headers = {**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._submission = submission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        async with cancelled_on_disconnect(receive, self._submission):
            with suppress(OSError):  # how some servers say that the client has gone
                await self.stream_response(send)
