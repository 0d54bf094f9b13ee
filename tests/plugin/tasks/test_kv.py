"""Key-value retrieval: the published prompt to the letter, both protocols, the generator, the file format."""

import gzip
import json
import re
import uuid
from pathlib import Path

import pytest

from ropebend import RopebendError, UsageError
from ropebend.tasks import kv
from ropebend.tasks.task import Question

PAIRS = (("k1", "v1"), ("k2", "v2"), ("k3", "v3"))


def test_the_prompt_is_the_published_one() -> None:
    assert kv.prompt(PAIRS, "k2") == (
        "Extract the value corresponding to the specified key in the JSON object below.\n"
        "\n"
        "JSON data:\n"
        '{"k1": "v1",\n'
        ' "k2": "v2",\n'
        ' "k3": "v3"}\n'
        "\n"
        'Key: "k2"\n'
        "Corresponding value:"
    )


def test_seventy_five_pairs_have_the_published_length() -> None:
    sample = kv.generate(75, 0, seed=0)
    assert len(kv.questions(sample, [0.5])[0].prompt) == 6231  # as in the authors' file


def test_shared_asks_what_stands_there() -> None:
    asked = kv.questions(kv.Sample(PAIRS, 2), [0, 0.5, 1], "shared")
    assert [q.answers[0] for q in asked] == ["v1", "v2", "v3"]
    assert len({q.prompt.split("Key:")[0] for q in asked}) == 1


def test_published_moves_the_gold_pair() -> None:
    asked = kv.questions(kv.Sample(PAIRS, 2), [0, 0.5, 1], "published")
    assert [q.answers[0] for q in asked] == ["v3"] * 3
    orders = [re.findall(r'"(v\d)"', q.prompt) for q in asked]
    assert orders == [["v3", "v1", "v2"], ["v1", "v3", "v2"], ["v1", "v2", "v3"]]


def test_generated_samples_depend_on_seed_and_place_only() -> None:
    long = [kv.generate(4, i, 1) for i in range(5)]
    assert kv.generate(4, 3, 1) == long[3]
    assert not {p for s in long for p in s.pairs} & set(kv.generate(4, 0, 2).pairs)
    assert len({p for s in long for p in s.pairs}) == 20
    for key, value in long[0].pairs:
        assert uuid.UUID(key).version == uuid.UUID(value).version == 4


def test_reading_the_published_format(tmp_path: Path) -> None:
    lines = [json.dumps({"ordered_kv_records": PAIRS, "key": f"k{i}", "value": f"v{i}"}) for i in (1, 3)]
    for path in (tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"):
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as f:
            f.write("\n".join(lines) + "\n\n")
        assert kv.read_published(path) == [kv.Sample(PAIRS, 0), kv.Sample(PAIRS, 2)]
        task = kv.KVRetrieval(data=path)
        assert (task.n_items, task.keys) == (2, 3)
        assert [q.answers[0] for q in task.item(1).questions] == [
            "v1",
            "v1",
            "v2",
            "v3",
            "v3",
        ]


BAD_LINES = [
    "{", "[]", "{}", "[" * 100_000, '{"ordered_kv_records": [["a", "b"]], "key": "x", "value": "b"}',
    r'{"ordered_kv_records": [["\ud800", "b"]], "key": "\ud800", "value": "b"}',
]  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"ordered_kv_records": PAIRS, "key": "k1", "value": "v1"})
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(RopebendError, match=r"bad.jsonl: line 2: expected an object with ordered_kv_records"):
        kv.read_published(path)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(RopebendError, match="No such file"):
        kv.read_published(tmp_path / "none.jsonl")
    damaged = bytearray(gzip.compress(bytes(range(256)) * 20))
    damaged[30:40] = bytes(10)
    (tmp_path / "damaged.jsonl.gz").write_bytes(damaged)
    with pytest.raises(RopebendError, match=r"damaged\.jsonl\.gz"):
        kv.read_published(tmp_path / "damaged.jsonl.gz")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(RopebendError, match=r"cut\.jsonl\.gz"):
        kv.read_published(tmp_path / "cut.jsonl.gz")


KEY, RIGHT, WRONG = (str(uuid.UUID(int=n)) for n in (10, 11, 12))
ASKED = Question(0.0, "", (RIGHT,), asked=KEY)


def test_the_published_metric_is_a_substring_without_case() -> None:
    task = kv.KVRetrieval(protocol="published")
    assert task.max_answer_tokens == 100
    assert task.score(f'  The value is "{RIGHT.upper()}".', ASKED) == 1
    assert task.score(f'"{WRONG}", no, "{RIGHT}"', ASKED) == 1
    assert not task.is_settled(f'"{WRONG}", no, ', ASKED)
    assert task.score("abc", ASKED) == 0


def test_the_shared_metric_is_the_first_value() -> None:
    task = kv.KVRetrieval()
    assert task.score(f'The value of "{KEY}" is "{RIGHT}"', ASKED) == 1  # the key itself is no value
    assert not task.is_settled(f'The value of "{KEY}" is "{RIGHT[:-1]}', ASKED)
    assert task.is_settled(f'"{WRONG}', ASKED)
    assert task.score(f'"{WRONG}", no, "{RIGHT}"', ASKED) == 0


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"ordered_kv_records": PAIRS, "key": "k1", "value": "v1"}))
    for options, message in (
        ({"keys": 3, "length": 1000}, "--keys and --length contradict each other"),
        ({"length": 1000, "data": tmp_path / "a.jsonl"}, "--length has no effect on --data"),
        ({"keys": 3, "data": tmp_path / "a.jsonl"}, "--keys has no effect on --data"),
    ):
        with pytest.raises(UsageError, match=message):
            kv.KVRetrieval(**options)  # type: ignore[arg-type]
