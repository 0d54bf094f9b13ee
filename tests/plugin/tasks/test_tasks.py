"""Passkey, multi-document QA, perplexity and tasks of one's own: prompts to the letter, metrics, mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_search import NEEDLE
from typer.testing import CliRunner

from ropebend import RopebendError, UsageError
from ropebend.cli import app
from ropebend.cli.options import task_options
from ropebend.tasks import make_task, option_types
from ropebend.tasks.mdqa import Document, MultiDocumentQA, normalised, prompt
from ropebend.tasks.passkey import FILLER, HEAD, PREFIX, TAIL, Passkey
from ropebend.tasks.task import Question, RetrievalTask

DOCS = Path(__file__).parents[3] / "docs"


def words(prompt: str, prefix: str = "") -> list[int]:
    return [0] * len((prompt + prefix).split())


def test_passkey_prompts_have_the_length_and_the_key_at_its_depth() -> None:
    task = Passkey(length=400, depths=[0.0, 0.5, 1.0], seed=3)
    task.prepare(words)
    item = task.item(2)
    (key,) = {q.answers for q in item.questions}
    for q in item.questions:
        assert q.prompt.startswith(HEAD)
        assert q.text.endswith(TAIL + PREFIX)
        assert 380 <= len(words(q.text)) <= 400
        assert q.prompt.count(key[0]) == 2
        body = q.prompt[len(HEAD) : -len(TAIL)]
        assert body.index("The pass key") / len(body) == pytest.approx(q.depth, abs=0.08)
    assert FILLER in item.questions[0].prompt
    assert task.item(2) == item != task.item(1)
    assert task.is_right(f" {key[0]}.", item.questions[0])
    assert not task.is_right(" 1234.", item.questions[0])


def test_passkey_takes_its_filler_from_a_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Cats sleep.\nDogs bark. Birds sing.")
    task = Passkey(length=120, text=tmp_path / "t.txt")
    task.prepare(words)
    assert "Dogs bark. Birds sing. Cats sleep. " in task.item(0).questions[0].prompt
    with pytest.raises(RopebendError, match="passkey: the shortest prompt takes 51 tokens; the length is 20"):
        Passkey(length=20).prepare(words)
    (tmp_path / "dots.txt").write_text("...\n...\n")
    with pytest.raises(RopebendError, match=r"dots.txt: expected sentences"):
        Passkey(text=tmp_path / "dots.txt")


def write_mdqa(path: Path, n: int, per_line: int = 1) -> Path:
    lines = []
    for i in range(n):
        gold = {"title": f"T{i}", "text": f"The answer is city{i}.", "isgold": True}
        others = [{"title": f"O{i}-{j}", "text": "Nothing.", "isgold": False} for j in range(per_line - 1)]
        lines.append(
            json.dumps({"question": f"which one is {i}", "answers": [f"The City{i}"], "ctxs": [*others, gold]})
        )
    path.write_text("\n".join(lines))
    return path


def test_the_mdqa_prompt_is_the_published_one() -> None:
    assert prompt("who?", [Document("A", "x."), Document("B", "y.")]) == (
        "Write a high-quality answer for the given question using only the provided search results (some of which "
        "might be irrelevant).\n\nDocument [1](Title: A) x.\nDocument [2](Title: B) y.\n\nQuestion: who?\nAnswer:"
    )


@pytest.mark.parametrize("per_line", [1, 5])
def test_the_gold_document_stands_at_its_depth(tmp_path: Path, per_line: int) -> None:
    task = MultiDocumentQA(data=write_mdqa(tmp_path / "d.jsonl", 8, per_line), documents=5)
    for i in (0, 7):
        for place, q in enumerate(task.item(i).questions):
            assert f"Document [{place + 1}](Title: T{i}) The answer is city{i}." in q.prompt
            assert q.prompt.count("Document [") == 5
            assert q.prompt.count("(Title: T") == (5 if per_line == 1 else 1)
    assert task.easy_item(0).questions[0].prompt.count("Document [") == 1


def test_the_mdqa_metric_is_best_subspan_of_the_first_line(tmp_path: Path) -> None:
    task = MultiDocumentQA(data=write_mdqa(tmp_path / "d.jsonl", 1), documents=1)
    question = Question(0.0, "", ("Marie Curie", "M. Skłodowska"))
    assert normalised("The  Quick, a fox!") == "quick fox"
    assert task.is_right(" It was marie CURIE, of course.\n", question)
    assert not task.is_right(" It was Pierre.\nMarie Curie", question)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{}", "KeyError"),
        ("[", "JSON"),
        ('{"question": "q", "answers": ["a"], "ctxs": []}', "0 gold documents"),
        ('{"question": "q", "answers": ["a"], "ctxs": ["x"]}', "AttributeError"),
    ],
)
def test_bad_mdqa_files_are_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line)
    with pytest.raises(RopebendError, match=rf"bad.jsonl: line 1: expected an object with question.*{reason}"):
        MultiDocumentQA(data=tmp_path / "bad.jsonl")


def test_the_length_decides_the_number_of_documents(tmp_path: Path) -> None:
    task = MultiDocumentQA(data=write_mdqa(tmp_path / "d.jsonl", 30), length=120)
    task.prepare(words)
    lengths = [len(words(q.text)) for i in range(30) for q in task.item(i).questions]
    assert min(lengths) >= 110
    assert max(lengths) <= 120
    with pytest.raises(UsageError, match="--documents and --length contradict each other"):
        MultiDocumentQA(data=tmp_path / "d.jsonl", length=120, documents=3)


def test_too_few_documents_are_said(tmp_path: Path) -> None:
    with pytest.raises(RopebendError, match="too few lines to make up 5 documents"):
        MultiDocumentQA(data=write_mdqa(tmp_path / "d.jsonl", 3), documents=5)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RopebendError, match="the file is empty"):
        MultiDocumentQA(data=tmp_path / "empty.jsonl")


def test_perplexity_windows(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b c d e f g h i j k l m n o p q r s t")
    task = make_task("perplexity", {"text": tmp_path / "t.txt", "length": 8})
    task.prepare(lambda text, prefix="": [ord(c) for c in text.split()])
    assert task.n_items == 2
    assert bytes(task.window(1)) == b"ijklmnop"  # type: ignore[attr-defined]
    with pytest.raises(RopebendError, match="20 tokens do not fill a window of 32"):
        make_task("perplexity", {"text": tmp_path / "t.txt", "length": 32}).prepare(words)


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    """The one in the documentation."""
    example = re.search(r"```python\n(# colours\.py\n.*?)```", (DOCS / "tasks.md").read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "colours.py"
    path.write_text(example[1])
    args = ["eval", NEEDLE, "--task", str(path), "--task-option", "boxes=5", "--samples", "2", "--depths", "0,1"]
    done = CliRunner().invoke(app, [*args, "-t", "1", "-o", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out.json").read_text())["task"]["boxes"] == 5
    assert option_types(str(path)) is None
    for text, message in (
        ("x = 1", r"expected a function task"),
        ("\n1/0", "line 2: ZeroDivisionError"),
        ("task = lambda: 3", "returned int"),
        ("def task(**options):\n    return options['box']", "line 2: KeyError: 'box'"),
        (example[1].replace('"name": self.name, ', ""), "config.. returned .*, expected a dict with a name"),
    ):
        path.write_text(text)
        with pytest.raises(RopebendError, match=message):
            make_task(str(path), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("colours = [", "1 / (i - 1)\n        colours = ["), r"line 21: ZeroDivisionError"),
        (("return answer", "answer = answer[100]\n        return answer"), "line 27: IndexError"),
        (("return Item(tuple(", "return tuple(tuple("), r"item\(0\) returned .*, expected an Item with Questions"),
        (
            ("for d, k in at.items()", "for d, k in [*at.items()][1:]"),
            r"item\(0\) has 1 questions, expected 2: one a depth",
        ),
        (('(f" {colours[k]}",)', "(k,)"), r"item\(0\) has Question.*, expected a prompt and answers, as text"),
    ],
)
def test_mistakes_in_a_task_of_ones_own_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    example = re.search(r"```python\n(# colours\.py\n.*?)```", (DOCS / "tasks.md").read_text(), re.DOTALL)
    assert example is not None
    assert change[0] in example[1]
    path = tmp_path / "colours.py"
    path.write_text(example[1].replace(*change))

    def use() -> None:
        task = make_task(str(path), {"depths": [0.0, 1.0]})
        assert isinstance(task, RetrievalTask)
        for i in range(2):
            task.is_right("red", task.item(i).questions[0])

    with pytest.raises(RopebendError, match=rf"colours\.py: {message}"):
        use()


def test_mistakes_in_options_are_usage_errors() -> None:
    for name, options, message in (
        ("x", {}, r"task: expected one of kv, passkey, longeval, mdqa, perplexity, ruler:… \(niah_single_1, "),
        ("ruler:x", {}, "task: expected ruler: with one of niah_single_1, .*, got 'ruler:x'"),
        ("kv", {"lines": 3}, "task kv: no option 'lines'; it has keys, length"),
        ("kv", {"length": 3}, "length: expected tokens, at least 8, as 8192 or 8k, got 3"),
        ("kv", {"keys": 0}, "--keys: expected at least 1, got 0"),
        ("kv", {"depths": [0, 1.5]}, r"task kv: depths: expected numbers in \[0, 1\], got \[0, 1.5\]"),
        ("mdqa", {}, "task mdqa: option 'data' is missing"),
    ):
        with pytest.raises(UsageError, match=message):
            make_task(name, options)


def test_task_options_of_the_command_line_have_the_types_of_the_task() -> None:
    def options(*given: str) -> dict[str, Any]:
        return task_options("kv", seed="s", depths=[0.5], extra=list(given))

    assert options("keys=10", "depths=0/0.25", "seed=3") == {"keys": 10, "depths": [0.0, 0.25], "seed": 3}
    assert options("length=16k")["length"] == 16384
    assert task_options("own.py", seed="s", depths=[0.5], extra=["keys=10"])["keys"] == "10"
    for wrong, expected in (
        ("keys=abc", "a whole number"),
        ("length=x", "tokens, as 8192 or 8k"),
        ("depths=x", "numbers separated by slashes"),
    ):
        with pytest.raises(UsageError, match=f"--task-option {wrong.split('=')[0]}: expected {expected}"):
            options(wrong)


def test_an_option_of_another_type_is_named() -> None:
    with pytest.raises(UsageError, match="task kv: keys: expected a whole number, got 'a'"):
        make_task("kv", {"keys": "a"})
