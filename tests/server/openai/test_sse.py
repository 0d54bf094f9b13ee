"""Server-sent events stay whole, whichever rules a client splits lines by."""

import json

from hypothesis import given
from hypothesis import strategies as st

from ropebend.server.openai.sse import data_event

#: Every character at which `str.splitlines` splits, and text around them.
LINES = st.text(st.sampled_from('ab\\"é😀\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029'), max_size=20)


@given(LINES)
def test_an_event_is_one_line(text: str) -> None:
    event = data_event({"text": text})
    assert event.splitlines() == [event[:-2], ""]
    assert json.loads(event.removeprefix("data: ")) == {"text": text}
