"""Long-term memory: patients' records in a database that a language model may ask, and never change by itself.

What a model writes is data: one SELECT, on tables that were named, with bound parameters, limited in rows and time.
The rules are held by SQLite's own authoriser, which sees every access that a statement would make, and not by reading
its text. Records are written by forms whose columns and types are declared.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from omlab.errors import InputError, UsageError

_MAY = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
_TYPES: dict[type, str] = {str: "TEXT", int: "INTEGER", float: "REAL"}


@attrs.frozen
class Form:
    """A table that records are written into.

    Attributes
    ----------
    columns : name -> ``str``, ``int`` or ``float``.
    required : columns that every record has.
    note : what it is for; the model reads it.
    """

    table: str
    columns: Mapping[str, type]
    required: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    note: str = ""

    def __attrs_post_init__(self) -> None:
        for name in (self.table, *self.columns):
            if not name.isidentifier() or not name.isascii():
                raise UsageError(f"'{name}' is no name of a table or column: use letters, digits and '_'")
        if set(self.columns.values()) - set(_TYPES):
            raise UsageError(f"table '{self.table}': a column is none of str, int, float")
        if set(self.required) - set(self.columns):
            raise UsageError(f"table '{self.table}': requires a column that it has not")


@attrs.frozen
class Rows:
    """What a question found: ``cut`` where there was more."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    cut: bool = False


class Memory:
    """A database of forms.

    Parameters
    ----------
    path : file, made where it is missing.
    forms : the tables; no other one can be read or written.
    most_rows, seconds : bounds of one question.
    """

    def __init__(self, path: str | Path, forms: Sequence[Form], *, most_rows: int = 100, seconds: float = 2.0) -> None:
        self._path = Path(path)
        self._forms = {form.table: form for form in forms}
        self._most_rows, self._seconds = most_rows, seconds
        with self._connected(f"file:{self._path}?mode=rwc") as connection:
            for form in forms:
                columns = ", ".join(
                    f'"{name}" {_TYPES[kind]}{" NOT NULL" if name in form.required else ""}'
                    for name, kind in form.columns.items()
                )
                connection.execute(f'CREATE TABLE IF NOT EXISTS "{form.table}" ({columns}) STRICT')
            connection.commit()

    @property
    def schema(self) -> str:
        """The tables, for a prompt that asks for SQL."""
        lines = []
        for form in self._forms.values():
            columns = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in form.columns.items())
            lines.append(f"{form.table}({columns})" + (f" -- {form.note}" if form.note else ""))
        return "\n".join(lines)

    def ask(self, sql: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> Rows:
        """Run one SELECT.

        Raises
        ------
        InputError
            It is more or something else than one SELECT, touches another table, is wrong, or takes too long.
        """
        with self._connected(f"file:{self._path}?mode=ro") as connection:
            connection.set_authorizer(self._authorise)
            until = time.monotonic() + self._seconds
            connection.set_progress_handler(lambda: int(time.monotonic() > until), 1000)
            try:
                cursor = connection.execute(sql, parameters)
                if cursor.description is None:
                    raise InputError("the statement gives no rows, expected one SELECT")
                rows = cursor.fetchmany(self._most_rows + 1)
            except (sqlite3.Error, sqlite3.Warning) as error:
                why = f"it takes more than {self._seconds:g} s" if "interrupted" in str(error) else str(error)
                raise InputError(
                    f"the question cannot be asked: {why}", remedy=f"One SELECT on {', '.join(self._forms)}"
                ) from None
        columns = tuple(part[0] for part in cursor.description)
        return Rows(columns, tuple(rows[: self._most_rows]), len(rows) > self._most_rows)

    def write(self, table: str, **values: Any) -> None:
        """Add a record.

        Raises
        ------
        InputError
            No such form, an unknown or missing column, or a value of another type.
        """
        form = self._forms.get(table)
        if form is None:
            raise InputError(f"there is no form '{table}'", remedy=f"There are: {', '.join(self._forms)}")
        unknown, absent = set(values) - set(form.columns), set(form.required) - set(values)
        if unknown or absent:
            wrong = f"no column {', '.join(sorted(unknown))}" if unknown else f"misses {', '.join(sorted(absent))}"
            raise InputError(f"form '{table}': {wrong}", remedy=f"It has: {', '.join(form.columns)}")
        for name, value in values.items():
            kind = form.columns[name]
            fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
            if isinstance(value, bool) or not (fits or (value is None and name not in form.required)):
                raise InputError(f"form '{table}': {name} takes {kind.__name__}, found {value!r}")
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join(f":{name}" for name in values)
        with self._connected(f"file:{self._path}?mode=rw") as connection:
            connection.execute(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', values)
            connection.commit()

    def _authorise(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action not in _MAY:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_READ and first not in self._forms:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    @contextmanager
    def _connected(self, address: str) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(address, uri=True)
        except sqlite3.Error as error:
            raise UsageError(f"{self._path} cannot be opened: {error}") from None
        try:
            yield connection
        finally:
            connection.close()
