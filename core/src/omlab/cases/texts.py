"""Conversations for language models: plain text, JSON lines, JSON and CSV, all in UTF-8.

A plain text is one question. A record of JSON lines, of a JSON list, or a row of CSV has ``prompt``, ``question`` or
``messages`` (a list of ``{"role", "content"}``, as chat interfaces have them), may have ``system`` and ``id``, and what
else it holds goes into :attr:`omlab.cases.types.Text.fields`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omlab.cases.types import Case, Message, Source, Text
from omlab.errors import InputError, OmlabError

ROLES = ("system", "user", "assistant")
_ASKS = ("prompt", "question", "messages")
_NAMED = ("id", "name")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".txt": "text", ".md": "text"}
_REMEDY = "Save it as UTF-8"

#: Name of a record and what it is, or why it is none.
Record = tuple[str, Case | OmlabError]


def read_all(path: Path) -> list[Record]:
    """Every record of a file with its name; a record that can be no conversation with its error.

    The ending of the name decides the format; without a known one, what the text begins with.

    Raises
    ------
    omlab.errors.InputError
        The whole file is no text in UTF-8, is empty, or is no JSON list or CSV at all.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    kind = _SUFFIXES.get(path.suffix.lower()) or _guess(raw)
    if kind == "jsonl":
        records = list(_lines(path, raw))
    else:
        text = _decoded(raw, str(path))
        if not text.strip():
            raise InputError(f"{path}: is empty, expected a question")
        if kind == "json":
            records = list(_items(path, text))
        elif kind == "csv":
            records = list(_rows(path, text))
        else:
            records = [(path.name, _text(path, path.name, "text", [Message(role="user", content=text.strip())], {}))]
    if not records:
        raise InputError(f"{path}: holds no record")
    return records


def _guess(raw: bytes) -> str:
    start = raw.lstrip()
    if start[:1] == b"[":
        return "json"
    return "jsonl" if start[:1] == b"{" else "text"


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: is not UTF-8: byte {raw[error.start]:#04x} at place {error.start}", remedy=_REMEDY
        ) from None


def _lines(path: Path, raw: bytes) -> Iterator[Record]:
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        name = _numbered(path, number)
        try:
            record = _parsed(_decoded(line, where), where)
            yield _named(record, name), _conversation(path, _named(record, name), where, "jsonl", record)
        except InputError as error:
            yield name, error


def _items(path: Path, text: str) -> Iterator[Record]:
    content = _parsed(text, str(path))
    records = content if isinstance(content, list) else [content]
    for number, record in enumerate(records, 1):
        where = f"{path.name}, record {number}" if isinstance(content, list) else path.name
        name = _numbered(path, number) if isinstance(content, list) else path.name
        try:
            yield _named(record, name), _conversation(path, _named(record, name), where, "json", record)
        except InputError as error:
            yield name, error


def _rows(path: Path, text: str) -> Iterator[Record]:
    rows = csv.DictReader(io.StringIO(text), strict=True)
    columns = rows.fieldnames or ()
    if not set(columns) & set(_ASKS):
        raise InputError(f"{path}: has the columns {', '.join(columns)}, expected prompt or question among them")
    number = 1
    try:
        for number, row in enumerate(rows, 1):
            where = f"{path.name}, row {number}"
            name = _numbered(path, number)
            record: dict[str, Any] = {key: value for key, value in row.items() if value not in (None, "")}
            try:
                if None in record:
                    raise InputError(f"{where}: has more fields than the header")
                if isinstance(record.get("messages"), str):
                    record["messages"] = _parsed(record["messages"], f"{where}, messages")
                yield _named(record, name), _conversation(path, _named(record, name), where, "csv", record)
            except InputError as error:
                yield name, error
    except csv.Error as error:
        yield _numbered(path, number + 1), InputError(f"{path.name}, after row {number}: {error}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: is no JSON: {error}") from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply") from None


def _numbered(path: Path, number: int) -> str:
    return f"{path.stem}-{number:04d}"


def _named(record: Any, otherwise: str) -> str:
    if isinstance(record, Mapping):
        for key in _NAMED:
            name = record.get(key)
            if isinstance(name, str | int) and not isinstance(name, bool) and str(name).strip():
                return str(name)
    return otherwise


def _conversation(path: Path, name: str, where: str, form: str, record: Any) -> Text:
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: is {_kind(record)}, expected an object with prompt, question or messages")
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise InputError(
            f"{where}: holds \\u{half:04x}, half of a character", remedy="Write both halves, or the character itself"
        ) from None
    asks = [key for key in _ASKS if key in record]
    if len(asks) != 1:
        has = f"both {' and '.join(asks)}" if asks else f"only {', '.join(map(str, record)) or 'nothing'}"
        raise InputError(f"{where}: has {has}, expected one of {', '.join(_ASKS)}")
    value = record[asks[0]]
    if asks[0] == "messages":
        messages = _messages(value, where)
    else:
        messages = [Message(role="user", content=_words(value, f"{where}: {asks[0]}"))]
    used = {asks[0]}
    if record.get("system") is not None:
        if messages[0].role == "system":
            raise InputError(f"{where}: has system, and a first message of that role")
        messages.insert(0, Message(role="system", content=_words(record["system"], f"{where}: system")))
        used.add("system")
    if messages[-1].role != "user":
        raise InputError(f"{where}: its last message is of the role {messages[-1].role}, expected user")
    if not messages[-1].content.strip():
        raise InputError(f"{where}: its question is empty")
    return _text(path, name, form, messages, {key: item for key, item in record.items() if key not in used})


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: messages is {_kind(value)}, expected a list of objects with role and content")
    found = []
    for number, item in enumerate(value, 1):
        at = f"{where}, message {number}"
        if not isinstance(item, Mapping):
            raise InputError(f"{at}: is {_kind(item)}, expected an object with role and content")
        if item.get("role") not in ROLES:
            raise InputError(f"{at}: its role is {item.get('role')!r}, expected one of {', '.join(ROLES)}")
        if item["role"] == "system" and number > 1:
            raise InputError(f"{at}: is of the role system, which only the first may be")
        found.append(Message(role=item["role"], content=_content(item.get("content"), at)))
    return found


def _content(value: Any, at: str) -> str:
    """A text, or the text parts of a list as chat interfaces write it."""
    if not isinstance(value, list):
        return _words(value, f"{at}: content")
    parts = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise InputError(f"{at}: holds more than text, which language models cannot read")
        parts.append(_words(part.get("text"), f"{at}: text"))
    return "".join(parts)


def _words(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what} is {_kind(value)}, expected text")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _text(path: Path, name: str, form: str, messages: list[Message], fields: dict[str, Any]) -> Text:
    return Text(name=name, messages=messages, fields=fields, source=Source(path=path, format=form, files=(path,)))
