"""RULER's thirteen tasks against its templates, settings and metrics (NVIDIA/RULER), written out here once more."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ropebend import RopebendError, UsageError
from ropebend.tasks import make_task, ruler
from ropebend.tasks.length import FilledTask
from ropebend.tasks.ruler.questions import prompt as qa_prompt
from ropebend.tasks.task import Item, Question, RetrievalTask

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = r"One of the special magic (?:numbers|uuids) for (.+?) is: ([0-9a-f-]+)\."
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture
def essays(tmp_path: Path) -> Path:
    path = tmp_path / "essays.txt"
    path.write_text("\n".join(f"Sentence {i} says little. Does it? It does!" for i in range(2000)))
    return path


def tokens(prompt: str, prefix: str = "") -> list[int]:
    return [0] * len(re.findall(r"\w+|[^\w\s]|\n", prompt + prefix))


def made(name: str, **options: Any) -> RetrievalTask:
    task = make_task(f"ruler:{name}", {"length": 1500, **options})
    assert isinstance(task, RetrievalTask)
    task.prepare(tokens)
    return task


def test_all_thirteen_are_there_with_their_answers_lengths() -> None:
    assert list(ruler.NAMES) == [
        "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
        "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
    ]  # fmt: skip


def one_needle(item: Item) -> tuple[str, str]:
    (q,) = item.questions
    head, *context, query = q.prompt.split("\n")
    needles = dict(re.findall(NEEDLE, "\n".join(context)))
    key = q.asked
    what = "uuid" if "uuid" in head else "number"
    assert head == (
        f"A special magic {what} is hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {what} afterwards."
    )
    assert query == f"What is the special magic {what} for {key} mentioned in the provided text?"
    assert q.prefix == f" The special magic {what} for {key} mentioned in the provided text is"
    assert (q.answers, q.expected) == ((needles[key],), f" {needles[key]}")
    return key, "\n".join(context)


def test_a_single_needle_in_noise() -> None:
    task = made("niah_single_1", protocol="published")
    key, context = one_needle(task.item(0))
    lines = context.split("\n")
    assert lines.count(NOISE) == len(lines) - 1
    assert re.fullmatch(r"[^\s-].*-.+", key)
    assert len({context.split("\n").index(x) for x in lines if "magic" in x}) == 1


@pytest.mark.parametrize(("name", "value"), [("niah_single_2", r"\d{7}"), ("niah_single_3", UUID)])
def test_a_single_needle_in_essays(essays: Path, name: str, value: str) -> None:
    task = made(name, text=essays, protocol="published")
    _, context = one_needle(task.item(1))
    ((_, found),) = re.findall(NEEDLE, context)
    assert re.fullmatch(value, found)
    before, after = re.split(NEEDLE, context)[::3][:2]
    assert re.search(r"(^|[.?!]) $", before) or not before  # between sentences
    assert (
        re.sub(r"\s+", " ", before + after.lstrip()) == " ".join(essays.read_text().split())[: len(before + after) - 1]
    )


def test_multi_key_needles(essays: Path) -> None:
    _, context = one_needle(made("niah_multikey_1", text=essays, protocol="published").item(0))
    assert len(re.findall(NEEDLE, context)) == 4
    for name, pattern in (("niah_multikey_2", r"\d{7}"), ("niah_multikey_3", UUID)):
        key, context = one_needle(made(name, protocol="published").item(0))
        needles = re.findall(NEEDLE, context)
        assert len(needles) == len(context.split("\n")) > 10
        assert all(re.fullmatch(pattern, value) for _, value in needles)
        assert (re.fullmatch(UUID, key) is not None) == (name == "niah_multikey_3")


def test_several_answers(essays: Path) -> None:
    for name, n_keys in (("niah_multivalue", 1), ("niah_multiquery", 4)):
        task = made(name, text=essays)
        (q,) = task.item(0).questions
        needles = re.findall(NEEDLE, q.prompt)
        assert len(needles) == len(q.answers) == 4
        assert {v for _, v in needles} == {*q.answers}
        keys = list(dict.fromkeys(k for k, _ in needles))
        assert len(keys) == n_keys
        assert q.prompt.startswith(
            "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
            "I will quiz you about the numbers afterwards.\n"
        )
        query = re.search(
            r"\nWhat are all the special magic numbers for (.+) mentioned in the provided text\?$", q.prompt
        )
        assert query is not None
        assert q.prefix == f" The special magic numbers for {query[1]} mentioned in the provided text are"
        assert {*re.split(r", and |, ", query[1])} == {*keys}
        assert task.score(f" {q.answers[0]}, 1234567, {q.answers[2]}", q) == 0.5
        assert task.score(q.expected or "", q) == 1


def test_by_depth_multi_key_needles_share_their_haystack(essays: Path) -> None:
    for name in ("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"):
        text = {"text": essays} if name == "niah_multikey_1" else {}
        item = made(name, depths=[0.0, 0.5, 1.0], **text).item(2)
        contexts = {q.prompt.rsplit("\n", 1)[0] for q in item.questions}
        assert len(contexts) == 1
        (context,) = contexts
        for q in item.questions:
            at = context.index(q.answers[0]) / len(context)
            assert at == pytest.approx(q.depth, abs=0.16)
    assert len(re.findall(NEEDLE, context)) > 10


def test_by_depth_a_single_needle_is_moved() -> None:
    item = made("niah_single_1", depths=[0.0, 0.5, 1.0]).item(2)
    places = [[line.startswith("One of") for line in q.prompt.split("\n")[1:-1]] for q in item.questions]
    assert len({q.answers for q in item.questions}) == 1
    for q, found in zip(item.questions, places, strict=True):
        assert found.index(True) == round(q.depth * (len(found) - 1))


def test_by_depth_the_first_value_counts() -> None:
    shared, published = made("niah_multikey_2"), made("niah_multikey_2", protocol="published")
    q = Question(0.0, "", ("1234567",))
    for task, score in ((shared, 0), (published, 1)):
        assert task.score(" 7654321, or 1234567", q) == score
        assert task.score(" 1234567", q) == 1
    assert shared.is_settled(" 7654321", q)
    assert not published.is_settled(" 7654321", q)
    assert (shared.max_answer_tokens, published.max_answer_tokens) == (None, 128)


def test_variable_tracking() -> None:
    task = made("vt")
    (q,) = task.item(0).questions
    example, text = q.prompt.split("\n\nMemorize")
    head = "and track the chain(s) of variable assignment hidden in the following text.\n\n"
    answer = (
        " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned the "
    )
    answer += "value "
    for part, letters, value in ((example.removeprefix("Memorize"), 3, None), (text, 5, q.asked)):
        assert part.startswith(f" {head}")
        names = re.findall(r"^VAR ([A-Z]+) = ", part, re.MULTILINE)
        first, *rest = re.findall(r"^VAR [A-Z]+ = (.*)$", part, re.MULTILINE)
        assert [len(n) for n in names] == [letters] * 5
        assert rest == [f"VAR {n} " for n in names[:-1]]
        assert value in (None, first)
        assert f"\nQuestion: Find all variables that are assigned the value {first} in the text above." in part
        if value is None:
            assert part.endswith(f"{answer}{first}, they are:  {' '.join(names)}")
        else:
            assert q.answers == tuple(names)
    assert q.prefix == f"{answer}{q.asked}, they are: "
    assert task.max_answer_tokens == 30
    assert task.score(f"{q.answers[0]} {q.answers[3].lower()}", q) == 0.4


@pytest.mark.parametrize(("length", "often", "seldom", "example"), [(1500, 6, 1, (3, 1)), (4096, 30, 3, (10, 3))])
def test_common_words(length: int, often: int, seldom: int, example: tuple[int, int]) -> None:
    task = made("cwe", length=length)
    (q,) = task.item(0).questions
    head = (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        "appear most often.\n"
    )
    prefix = " Answer: The top 10 words that appear most often in the list are:"
    shown, text = q.prompt.removeprefix(head).split(f"\n{head}")
    assert q.prefix == prefix
    assert q.expected == " " + " ".join(f"{k}. {w}" for k, w in enumerate(q.answers, 1))
    for part, counts, n_words in ((shown, example, 20 if length < 4096 else 40), (text, (often, seldom), None)):
        context, question = part.split("\nQuestion: What are the 10 most common words in the above list?")
        words = re.split(r" ?\d+\. ", context)[1:]
        found = Counter(Counter(words).values())
        assert found[counts[0]] == 10
        assert set(found) == {*counts}
        assert n_words in (None, len(set(words)))
        if n_words is None:
            assert {w for w, n in Counter(words).items() if n == often} == {*q.answers}
        else:
            assert question.startswith(prefix + " 1. ")
    assert task.max_answer_tokens == 120


def test_frequent_words() -> None:
    task = made("fwe", length=4096)
    (q,) = task.item(0).questions
    found = re.fullmatch(
        r"Read the following coded text and track the frequency of each coded word\. Find the three most frequently "
        r"appeared coded words\. (.*)\nQuestion: Do not provide any explanation\. Please ignore the dots '\.\.\.\.'\. "
        r"What are the three most frequently appeared words in the above coded text\?",
        q.prompt,
    )
    assert found is not None
    ranks = Counter(found[1].split()).most_common(6)
    assert [w for w, _ in ranks[:4]] == ["...", *q.answers]
    for rank, (_, n) in enumerate(ranks, 1):  # Zeta with alpha 2
        assert n == pytest.approx(ranks[0][1] / rank**2, abs=1)
    assert q.prefix == " Answer: According to the coded text above, the three most frequently appeared words are:"
    assert task.max_answer_tokens == 50


def squad(path: Path) -> Path:
    articles = [
        {
            "paragraphs": [
                {
                    "context": f"Text {a}-{p}: the answer is {a}{p}.",
                    "qas": [
                        {"question": f"What is in {a}-{p}?", "answers": [{"text": f"{a}{p}"}], "is_impossible": False},
                        {"question": "Nothing?", "answers": [], "is_impossible": True},
                    ],
                }
                for p in range(4)
            ]
        }
        for a in range(50)
    ]
    path.write_text(json.dumps({"version": "v2.0", "data": articles}))
    return path


def hotpotqa(path: Path) -> Path:
    path.write_text(
        json.dumps(
            [
                {"question": f"q{i}", "answer": f"a{i}", "context": [[f"T{i}{j}", ["One. ", "Two."]] for j in range(3)]}
                for i in range(60)
            ]
        )
    )
    return path


def test_questions_among_documents(tmp_path: Path) -> None:
    task = made("qa_1", data=squad(tmp_path / "squad.json"), length=600)
    (q,) = task.item(5).questions
    documents = re.findall(r"Document \d+:\n(.*?)\n\n", q.prompt)
    assert (q.prompt, q.prefix) == qa_prompt(documents, "What is in 1-1?")
    assert q.prompt == (
        "Answer the question based on the given documents. Only give me the answer and do not output any other words."
        "\n\nThe following are given documents.\n\n"
        + "\n\n".join(f"Document {k}:\n{d}" for k, d in enumerate(documents, 1))
        + "\n\nAnswer the question based on the given documents. Only give me the answer and do not output any other "
        "words.\n\nQuestion: What is in 1-1?"
    )
    assert q.prefix == " Answer:"
    assert {f"Text 1-{p}: the answer is 1{p}." for p in range(4)} < {*documents}  # those of the same article first
    assert len(documents) > 10
    assert task.score("Is it 11?", q) == 1
    assert task.max_answer_tokens == 32
    item = made("qa_2", data=hotpotqa(tmp_path / "hotpotqa.json"), length=600).item(7)
    assert all(f"T7{j}\nOne. Two." in item.questions[0].prompt for j in range(3))
    few = made("qa_2", data=tmp_path / "hotpotqa.json", length=6000).item(7)  # fewer documents than would fit
    assert few.questions[0].prompt.count("T10\n") > 1


def test_its_own_files(tmp_path: Path) -> None:
    path = tmp_path / "vt.jsonl.gz"
    line = {"index": 0, "input": "Memorize", "outputs": ["AB", "CD"], "answer_prefix": " they are: ", "length": 9}
    with gzip.open(path, "wt") as f:
        f.write(json.dumps(line))
    task = make_task("ruler:vt", {"data": path, "seed": "eval-1"})
    assert isinstance(task, RetrievalTask)
    (q,) = task.item(0).questions
    assert (q.prompt, q.prefix, q.answers, task.max_answer_tokens) == ("Memorize", " they are: ", ("AB", "CD"), 30)
    assert task.score("ab", q) == 0.5
    questions = make_task("ruler:qa_1", {"data": path})
    assert isinstance(questions, RetrievalTask)
    assert questions.score("ab", q) == 1  # any of the answers
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "outputs": []}))
    with pytest.raises(RopebendError, match=r"bad.jsonl: line 2: expected an object with input, outputs"):
        make_task("ruler:vt", {"data": path})
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"bad.jsonl: expected one of RULER's jsonl files"):
        make_task("ruler:vt", {"data": path})
    with pytest.raises(RopebendError, match=r"bad.jsonl: expected SQuAD 2.0 .*KeyError"):
        make_task("ruler:qa_1", {"data": path})


def test_what_a_task_lacks_or_cannot_use_is_said(essays: Path) -> None:
    with pytest.raises(UsageError, match="ruler:niah_single_2 hides its needles in essays: give a text with --text"):
        make_task("ruler:niah_single_2", {})
    with pytest.raises(UsageError, match="--text has no effect: ruler:niah_single_1 has a haystack of its own"):
        make_task("ruler:niah_single_1", {"text": essays})
    with pytest.raises(UsageError, match="task ruler:qa_1: option 'data' is missing"):
        make_task("ruler:qa_1", {})


def test_the_suite(tmp_path: Path, essays: Path) -> None:
    tasks, missing = ruler.suite({"length": 4096, "seed": "x"})
    assert [*tasks] == [
        f"ruler:{n}" for n in ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
    ]
    assert missing["niah_single_2"] == "needs essays: --text FILE"
    assert missing["qa_2"] == "needs a folder with hotpotqa.json: --data FOLDER"
    squad(tmp_path / "squad.json")
    hotpotqa(tmp_path / "hotpotqa.json")
    tasks, missing = ruler.suite({"length": 4096, "text": essays, "data": tmp_path})
    assert [*tasks] == [f"ruler:{n}" for n in ruler.NAMES]
    assert not missing
    assert all(t.config()["protocol"] == "published" for t in tasks.values())
    assert all(isinstance(t, FilledTask) and t.length == 4096 for t in tasks.values())
