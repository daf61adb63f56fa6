"""Conversations out of files, and what a file that holds none says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omlab import Message, OmlabError, Text, find, read
from omlab.cases import texts
from omlab.errors import InputError
from omlab.vocabulary import InputKind

KINDS = (InputKind.TEXT,)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*records: Any) -> str:
    return "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)


def only(path: Path) -> Text:
    case = read(path, kind=KINDS)
    assert isinstance(case, Text)
    return case


def reason(path: Path) -> str:
    ((_, error),) = texts.read_all(path)
    assert isinstance(error, InputError)
    return error.message


def test_a_plain_text_is_one_question(tmp_path: Path) -> None:
    case = only(written(tmp_path, "q.txt", "\ufeff  What is COPD?\nIn short.  \n"))
    assert case.messages == (Message(role="user", content="What is COPD?\nIn short."),)
    assert (case.name, case.source.format) == ("q.txt", "text")


def test_records_of_json_lines(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"}, {"role": "user", "content": [{"type": "text", "text": "头疼？"}]},
    ]  # fmt: skip
    path = written(
        tmp_path, "set.jsonl",
        lines(
            {"id": 7, "prompt": "One?", "answer": "1"}, "", {"question": "Two?", "system": "Count."}, {"messages": talk}
        ),
    )  # fmt: skip
    (first, a), (second, b), (third, c) = texts.read_all(path)
    assert isinstance(a, Text) and isinstance(b, Text) and isinstance(c, Text)
    assert (first, second, third) == ("7", "set-0003", "set-0004")
    assert a.question == "One?" and dict(a.fields) == {"id": 7, "answer": "1"}
    assert [m.role for m in b.messages] == ["system", "user"] and not b.fields
    assert c.question == "头疼？" and len(c.messages) == 4


def test_a_json_list_and_a_csv_hold_records(tmp_path: Path) -> None:
    listed = texts.read_all(written(tmp_path, "a.json", json.dumps([{"prompt": "x"}, {"prompt": "y", "id": "why"}])))
    assert [name for name, _ in listed] == ["a-0001", "why"]
    table = texts.read_all(written(tmp_path, "b.csv", 'id,question,label\nq1,"Pain, where?",head\n,Else?,\n'))
    (_, first), (name, second) = table
    assert isinstance(first, Text) and isinstance(second, Text)
    assert first.question == "Pain, where?" and dict(first.fields) == {"id": "q1", "label": "head"}
    assert name == "b-0002" and second.question == "Else?"


def test_the_content_decides_where_the_name_does_not(tmp_path: Path) -> None:
    assert only(written(tmp_path, "record", '{"prompt": "x"}')).question == "x"
    assert only(written(tmp_path, "list", '[{"prompt": "y"}]')).question == "y"
    assert only(written(tmp_path, "words", "z")).question == "z"


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("not json", "line 1: is no JSON"),
        ({"prompt": 3}, "line 1: prompt is a number, expected text"),
        ({"prompt": None}, "line 1: prompt is missing, expected text"),
        ({"prompt": " \n"}, "line 1: its question is empty"),
        ({"text": "x"}, "line 1: has only text, expected one of prompt, question, messages"),
        ({"prompt": "x", "question": "y"}, "line 1: has both prompt and question"),
        (["x"], "line 1: is a list, expected an object"),
        ({"messages": "x"}, "line 1: messages is text, expected a list"),
        ({"messages": []}, "line 1: messages is a list, expected a list of objects"),
        ({"messages": [{"role": "doctor", "content": "x"}]}, "message 1: its role is 'doctor'"),
        ({"messages": [{"role": "user"}]}, "message 1: content is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "holds more than text"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}, "only the first may be"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "its last message is of the role assistant"),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "system": "z"}, "system"),
    ],
)
def test_a_record_that_is_none_says_why(tmp_path: Path, record: Any, says: str) -> None:
    assert says in reason(written(tmp_path, "x.jsonl", lines(record)))


def test_a_bad_record_leaves_the_others(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "x.jsonl",
        b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n{"prompt": "' + b"[" * 10 + b'"\n{"prompt": "d"}\n',
    )
    found = find([path], kinds=KINDS)
    assert [item.error is None for item in found] == [True, False, False, True]
    assert "line 2: is not UTF-8: byte 0xe9 at place 15" in str(found[1].error)
    assert "line 3: is no JSON" in str(found[2].error)
    last = found[3].read()
    assert isinstance(last, Text) and last.question == "d"


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_half_of_a_character_is_told_and_the_others_go_on(tmp_path: Path, name: str) -> None:
    records = [r'{"prompt": "a \ud83d b"}', r'{"prompt": "c \ud83d\ude42"}', r'{"prompt": "d", "id": "\udc00"}']
    text = "\n".join(records) if name == "x.jsonl" else "[" + ",".join(records) + "]"
    (_, broken), (_, fine), (where, named) = texts.read_all(written(tmp_path, name, text.encode()))
    assert isinstance(broken, InputError) and r"holds \ud83d, half of a character" in broken.message
    assert isinstance(fine, Text) and fine.question == "c \U0001f642"
    assert where == "x-0003" and isinstance(named, InputError)


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    assert "line 1" in reason(written(tmp_path, "x.jsonl", "[" * 200_000 + "]" * 200_000))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"caf\xe9", "is not UTF-8: byte 0xe9 at place 3"),
        ("a.txt", b"  \n ", "is empty"),
        ("a.jsonl", b"\n\n", "holds no record"),
        ("a.json", b"[]", "holds no record"),
        ("a.csv", b"a,b\n1,2\n", "has the columns a, b, expected prompt or question"),
    ],
)
def test_a_file_that_is_none_says_why(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(OmlabError, match=says):
        texts.read_all(written(tmp_path, name, content))


def test_broken_csv_is_told_by_row(tmp_path: Path) -> None:
    good, bad = texts.read_all(written(tmp_path, "a.csv", 'prompt\nfine\n"open\n'))
    assert isinstance(good[1], Text)
    assert isinstance(bad[1], InputError) and "after row 1" in bad[1].message
    ((_, wide),) = texts.read_all(written(tmp_path, "b.csv", "prompt\na,b\n"))
    assert isinstance(wide, InputError) and "more fields than the header" in wide.message


def test_names_become_folders_once_each(tmp_path: Path) -> None:
    path = written(tmp_path, "x.jsonl", lines({"id": "../a b", "prompt": "1"}, {"id": "../a b", "prompt": "2"}))
    assert [item.name for item in find([path], kinds=KINDS)] == ["a_b", "a_b-2"]


def test_a_file_of_several_is_no_single_case(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 2 records, expected one"):
        read(written(tmp_path, "x.jsonl", lines({"prompt": "1"}, {"prompt": "2"})), kind=KINDS)
