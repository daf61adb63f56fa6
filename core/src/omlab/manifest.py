"""Manifests: ``omlab.toml`` beside a plugin's ``__init__.py``, read without importing the plugin.

A manifest holds ``api`` (the version of omlab's plugin interface that it was written for) and one table a
contribution: ``[[model]]``, ``[[dataset]]``, ``[[adapter]]``, ``[[evaluator]]``, ``[[engine]]``, ``[[command]]``,
``[[exporter]]``, with the fields of the cards in :mod:`omlab.cards`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab import __version__
from omlab.listing import FORM as ROWS
from omlab.listing import row_of
from omlab.vocabulary import Kind

if TYPE_CHECKING:
    from omlab.cards import Card

#: Version of the plugin interface. A plugin written for a newer one cannot be used; older ones can.
API = 1
NAME = "omlab.toml"
#: What rows were made by: other rules, or another form, mean other rows.
_FORM = f"{__version__} {ROWS}"


@attrs.frozen
class ManifestError(Exception):
    """A manifest cannot be used."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}"


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises :class:`ManifestError`."""
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ManifestError(
            f"{path} is missing", f"Add {NAME} beside the plugin's __init__.py and to the files of its wheel."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}", "Reinstall the plugin.") from None
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{path} is no valid TOML: {error}", "Correct the line that is named.") from None


class Manifest:
    """The manifest of a plugin, known to be valid.

    Attributes
    ----------
    path : of the file.
    rows : what a list shows of each contribution (:func:`omlab.listing.row_of`), in the order of the file.
    """

    def __init__(
        self, path: Path, rows: list[dict[str, Any]], plugin: str, version: str,
        cards: tuple[tuple[Kind, Card], ...] | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.rows = rows
        self._origin = {"plugin": plugin, "version": version}
        self._cards = None if cards is None else {(kind, card.name): card for kind, card in cards}

    def names(self) -> list[tuple[Kind, str]]:
        """Kind and name of each contribution."""
        return [(Kind(row["kind"]), row["name"]) for row in self.rows]

    def card(self, kind: Kind, name: str) -> Card:
        """The card of a contribution; reads the file where the rows do not hold it. Raises :class:`ManifestError`."""
        from omlab.cards import CARDS, from_table

        if self._cards is None:
            for row in self.rows:
                if (row["kind"], row["name"]) == (kind.value, name) and "card" in row:
                    return from_table(CARDS[kind], {**row["card"], **self._origin})  # type: ignore[no-any-return]
            cards = cards_of(read_tables(self.path), **self._origin)
            self._cards = {(kind, card.name): card for kind, card in cards}
        try:
            return self._cards[kind, name]
        except KeyError:
            raise ManifestError(f"{self.path} changed while it was read", "Start again.") from None


class Memory:
    """What lists show of manifests as they were read last, so that a start reads only those that have changed.

    Reading and checking a manifest takes milliseconds; with thirty plugins that is more than all the rest of ``omlab
    list``. A file that cannot be read or written only means that everything is read anew.

    Parameters
    ----------
    path : JSON file of the memory; without one nothing is remembered.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self._changed = False
        if path is not None:
            try:
                found = json.loads(path.read_bytes())
            except (OSError, ValueError):
                found = None
            if isinstance(found, dict) and found.get("form") == _FORM and isinstance(found.get("manifests"), dict):
                self._known = found["manifests"]

    def read(self, path: Path, *, plugin: str, version: str) -> Manifest:
        """The manifest at ``path`` of a distribution; from the memory if the file has the size and the time it had
        then. Raises :class:`ManifestError`."""
        try:
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            stamp = None  # reading says what is wrong
        entry = self._known.get(str(path))
        if stamp is not None and isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp:
            self._seen[str(path)] = entry
            return Manifest(path, entry[1], plugin, version)
        cards = cards_of(read_tables(path), plugin=plugin, version=version)
        rows = [row_of(kind, card) for kind, card in cards]
        self._seen[str(path)] = [stamp, rows]
        self._changed = True
        return Manifest(path, rows, plugin, version, cards)

    def keep(self) -> None:
        """Write what was read, if anything was new. Manifests of other environments stay."""
        if self._path is None or not self._changed:
            return
        from omlab.files import write_text

        others = {key: value for key, value in self._known.items() if Path(key).is_file()}
        kept = {"form": _FORM, "manifests": others | self._seen}
        try:
            write_text(self._path, json.dumps(kept, separators=(",", ":")))
        except OSError:
            return  # a read-only home: read again next time


def cards_of(tables: Mapping[str, Any], *, plugin: str = "", version: str = "") -> tuple[tuple[Kind, Card], ...]:
    """Cards of the tables of a manifest, in the order of the file.

    Parameters
    ----------
    plugin, version : distribution that contributes them, noted in each card.

    Raises
    ------
    ManifestError
        The API is newer than ours, or a table is invalid; the reason names table, contribution and field.
    """
    from omlab.cards import CARDS, CardError, from_table

    api = tables.get("api")
    if not isinstance(api, int) or isinstance(api, bool):
        raise ManifestError(f"{NAME}: 'api' must be a whole number, found {api!r}", f"Write 'api = {API}' at its top.")
    if api > API:
        raise ManifestError(
            f"the plugin was written for version {api} of omlab's plugin interface, this omlab has {API}",
            "Upgrade omlab (pip install -U omlab), or install an older version of the plugin.",
        )
    found: list[tuple[Kind, Card]] = []
    for key, entries in tables.items():
        if key in {"api", "adapted"}:
            continue
        try:
            kind = Kind(key)
        except ValueError:
            kinds = ", ".join(k.value for k in Kind)
            raise ManifestError(f"{NAME}: '{key}' is no kind of contribution", f"The kinds are: {kinds}.") from None
        if not isinstance(entries, list):
            raise ManifestError(f"{NAME}: '{key}' must be written as [[{key}]]", "Double the brackets.")
        for number, table in enumerate(entries, 1):
            label = table.get("name", f"number {number}") if isinstance(table, Mapping) else f"number {number}"
            try:
                card = from_table(CARDS[kind], table)
            except (CardError, TypeError, ValueError) as error:
                raise ManifestError(
                    f"{NAME}: {kind} '{label}': {error}", f"The fields are those of omlab.cards.{CARDS[kind].__name__}."
                ) from None
            found.append((kind, attrs.evolve(card, plugin=plugin, version=version)))
    names = [(kind, card.name) for kind, card in found]
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice:
        raise ManifestError(f"{NAME}: {twice[0]} '{twice[1]}' is there twice", "Rename one of them.")
    return tuple(found)
