"""What is streamed never breaks a character or leaks a stop string, however the bytes were split into tokens."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ropebend.server.engine.text import TextStream

cuts = st.lists(st.integers(0, 60), max_size=8)


def split(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(i, len(data)) for i in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def pieces(data: list[bytes], stop: list[str]) -> list[str]:
    stream = TextStream(stop)
    out = [stream.feed(part) for part in data]
    return [*out, stream.feed(b"", final=True)]


@given(st.text(max_size=30), cuts)
def test_any_split_of_any_text_joins_back(text: str, at: list[int]) -> None:
    out = pieces(split(text.encode(), at), [])
    assert "".join(out) == text
    assert out[-1] == ""  # nothing was waiting: the text was complete


@given(st.binary(max_size=30), cuts)
def test_bytes_that_are_not_utf8_are_replaced_alike_in_any_split(data: bytes, at: list[int]) -> None:
    assert "".join(pieces(split(data, at), [])) == data.decode(errors="replace")


@given(st.text("aab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), cuts)
def test_stop_strings_are_found_alike_in_any_split(text: str, stop: list[str], at: list[int]) -> None:
    data = text.encode()
    whole = "".join(pieces([data], stop))
    stream = TextStream(stop)
    sent = ""
    for part in split(data, at):
        sent += stream.feed(part)
        assert whole.startswith(sent)  # never more than the final answer
        assert stream.n_sent == len(sent)
    sent += stream.feed(b"", final=True)
    assert sent == whole
    assert not any(s in sent for s in stop)
    assert stream.stopped == any(s in text for s in stop)


def test_the_beginning_of_a_stop_string_is_held_back_and_released() -> None:
    stream = TextStream(["STOP"])
    assert stream.feed(b"abST") == "ab"
    assert stream.feed(b"x") == "STx"
    assert stream.feed(b"yS") == "y"
    assert stream.feed(b"", final=True) == "S"


def test_half_a_character_waits_for_its_other_half() -> None:
    stream = TextStream()
    euro = "€".encode()
    assert [stream.feed(euro[:1]), stream.feed(euro[1:2]), stream.feed(euro[2:])] == ["", "", "€"]


def test_half_a_character_at_the_end_is_shown_as_replaced() -> None:
    stream = TextStream()
    assert stream.feed("a€".encode()[:-1]) == "a"
    assert stream.feed(b"", final=True) == "\ufffd"


def test_what_follows_a_stop_string_is_dropped() -> None:
    stream = TextStream(["\n"])
    assert stream.feed(b"one\ntwo") == "one"
    assert stream.stopped
    assert stream.feed(b"three") == ""
    assert stream.feed(b"", final=True) == ""


def test_hidden_names_stop_the_text_and_are_not_in_it() -> None:
    stream = TextStream(["<|end|>", "a<|x|>b"])
    euro = "€".encode()
    out = [stream.feed(b"one "), stream.feed(b"<|sep|>", hidden=True), stream.feed(euro[:1])]
    out += [stream.feed(b"<|sep|>", hidden=True), stream.feed(euro[1:] + b"two")]
    assert "".join(out) == "one €two"
    assert stream.n_sent == stream.n_decoded == len("one €two")
    assert stream.feed(b"<|end|>", hidden=True) == ""
    assert stream.stopped
    around = TextStream(["a<|x|>b"])
    said = around.feed(b"ca") + around.feed(b"<|x|>", hidden=True) + around.feed(b"b")
    assert (said, around.stopped) == ("c", True)
    not_quite = TextStream(["a<|x|>b"])
    said = not_quite.feed(b"ca") + not_quite.feed(b"<|x|>", hidden=True) + not_quite.feed(b"c")
    assert (said, not_quite.stopped) == ("cac", False)
