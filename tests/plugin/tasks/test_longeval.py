"""LongEval's lines: LongChat's prompt to the letter, both protocols, its files, its metric."""

import json
import re
from pathlib import Path

import pytest

from ropebend import RopebendError, UsageError
from ropebend.tasks import make_task
from ropebend.tasks.longeval import Line, LongEvalLines, prompt
from ropebend.tasks.task import NO_DEPTH, Question

ASKED = Question(NO_DEPTH, "", ("2416",), asked="torpid-kid")


def test_the_prompt_is_longchats() -> None:
    assert prompt([Line("a-b", 7), Line("torpid-kid", 2416)], "torpid-kid") == (
        "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
        "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its "
        "corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding "
        "<REGISTER_CONTENT> of a certain line index. Now the record start:\n\n"
        "line a-b: REGISTER_CONTENT is <7>\nline torpid-kid: REGISTER_CONTENT is <2416>\n"
        "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line torpid-kid? I need the number."
    )


def test_shared_asks_for_the_line_at_each_depth() -> None:
    item = LongEvalLines(lines=11, depths=[0.0, 0.5, 1.0]).item(3)
    records = [q.prompt.split("\nNow the record is over")[0] for q in item.questions]
    assert len(set(records)) == 1
    lines = re.findall(r"^line (\S.*): REGISTER_CONTENT is <(\d+)>$", records[0], re.MULTILINE)
    assert [(q.asked, q.answers[0]) for q in item.questions] == [lines[0], lines[5], lines[10]]


def test_published_draws_one_line() -> None:
    task = LongEvalLines(lines=40, protocol="published")
    places = set()
    for i in range(20):
        (q,) = task.item(i).questions
        lines = re.findall(r"^line (\S.*): ", q.prompt, re.MULTILINE)
        places.add(lines.index(q.asked))
    assert len(places) > 8
    assert task.depths == ()


def test_metrics() -> None:
    shared, published = LongEvalLines(lines=3), LongEvalLines(lines=3, protocol="published")
    for answer, first, last in ((" <2416>.", 1, 1), (" 2416, not 17.", 1, 0), (" 17, no, 2416", 0, 1), (" none", 0, 0)):
        assert shared.score(answer, ASKED) == first
        assert published.score(answer, ASKED) == last
    assert not shared.is_settled(" 241", ASKED)
    assert shared.is_settled(" 2416.", ASKED)
    assert not published.is_settled(" 2416. That is all.", ASKED)  # another number may follow


def test_its_own_files(tmp_path: Path) -> None:
    line = {"random_idx": ["torpid-kid", 7], "expected_number": 2416, "num_lines": 200, "prompt": "Below … number. "}
    path = tmp_path / "200_lines.jsonl"
    path.write_text(json.dumps(line))
    task = make_task("longeval", {"data": path, "depths": [0.0, 1.0], "seed": "x"})
    assert isinstance(task, LongEvalLines)
    (q,) = task.item(0).questions
    assert (q.prompt, q.answers, q.asked) == ("Below … number. ", ("2416",), "torpid-kid")
    assert task.config() == {"name": "longeval", "protocol": "published", "data": str(path)}
    path.write_text('{"prompt": "x"}')
    with pytest.raises(RopebendError, match=r"200_lines.jsonl: line 1: expected an object with prompt"):
        make_task("longeval", {"data": path})
    with pytest.raises(UsageError, match="lines and --length contradict each other"):
        LongEvalLines(lines=3, length=1000)
