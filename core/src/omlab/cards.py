"""Cards: what omlab knows of a contribution without importing it.

Each card is an immutable, validated value made from one table of a plugin's manifest
(:mod:`omlab.manifest`). Validation errors name the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import attrs

from omlab.vocabulary import (
    InputKind,
    Kind,
    Modality,
    OutputKind,
    Precision,
    Prompt,
    SourceKind,
    Task,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
E_ = TypeVar("E_", bound=StrEnum)


#: No generated comparisons and texts: for all cards together they would cost every start several milliseconds.
_card = partial(attrs.frozen, eq=False, repr=False)


class _Record:
    """Base of all cards."""

    __slots__ = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{key}={value!r}" for key, value in as_table(self).items())
        return f"{type(self).__name__}({fields})"


class CardError(ValueError):
    """A card does not satisfy its rules; the message names the field."""


def _word(vocabulary: type[E_]) -> Callable[[object], E_]:
    """Converter of one word of a closed vocabulary; suggests near ones."""

    def convert(value: object) -> E_:
        try:
            return vocabulary(value)
        except ValueError:
            allowed = [word.value for word in vocabulary]
            near = _near(str(value), allowed)
            hint = f"; did you mean '{near[0]}'?" if near else f"; allowed: {', '.join(allowed)}"
            raise CardError(f"'{value}' is no {vocabulary.__name__.lower()}{hint}") from None

    return convert


def _near(word: str, known: list[str]) -> list[str]:
    """The known word closest to ``word``, if any is close."""
    import difflib

    return difflib.get_close_matches(word, known, n=1)


def _words(vocabulary: type[E_]) -> Callable[[object], tuple[E_, ...]]:
    """Converter of a word or a list of words into a tuple of a closed vocabulary."""
    one = _word(vocabulary)

    def convert(value: object) -> tuple[E_, ...]:
        if isinstance(value, str):
            return (one(value),)
        if not isinstance(value, list | tuple):
            raise CardError(f"expected a list of words, found {value!r}")
        return tuple(one(word) for word in value)

    return convert


def _many(card: type) -> Callable[[object], tuple[Any, ...]]:
    """Converter of a list of tables into a tuple of cards."""

    def convert(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise CardError(f"expected a list of tables, found {value!r}")
        return tuple(item if isinstance(item, card) else from_table(card, item) for item in value)

    return convert


def _one(card: type) -> Callable[[object], Any]:
    """Converter of one table into a card; ``None`` stays."""

    def convert(value: object) -> Any:
        return value if value is None or isinstance(value, card) else from_table(card, value)

    return convert


def _text(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise CardError(f"{attribute.name}: expected text, found {value!r}")


def _filled(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise CardError(f"{attribute.name}: expected a text that is not empty, found {value!r}")


def _name(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not _NAME.match(value):
        raise CardError(
            f"{attribute.name}: '{value}' is no name; use lower-case letters, digits, '-', '_' and '.', "
            "beginning with a letter or digit"
        )


def from_table(card: type[Any], table: object) -> Any:
    """Make a card from a table of a manifest.

    Raises
    ------
    CardError
        Unknown, missing or invalid field; the message begins with the field.
    """
    if not isinstance(table, Mapping):
        raise CardError(f"expected a table, found {table!r}")
    fields = {field.name: field for field in attrs.fields(card) if field.init}
    values: dict[str, Any] = {}
    for key, value in table.items():
        field = key.replace("-", "_")
        if field not in fields:
            near = _near(field, list(fields))
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise CardError(f"{key}: no such field{hint}")
        converter = fields[field].converter
        try:  # converted here and not by attrs, so that the message can begin with the field
            values[field] = value if converter is None else converter(value)
        except CardError as error:
            raise CardError(f"{key}: {error}") from None
    missing = [n for n, f in fields.items() if f.default is attrs.NOTHING and n not in values]
    if missing:
        raise CardError(f"{missing[0]}: missing")
    return card(**values)


def as_table(card: Any) -> dict[str, Any]:
    """A card as JSON-able data, the inverse of :func:`from_table`; empty fields are left out."""

    def plain(value: Any) -> Any:
        if attrs.has(type(value)):
            return as_table(value)
        if isinstance(value, StrEnum):
            return value.value
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return value

    table = {field.name: plain(getattr(card, field.name)) for field in attrs.fields(type(card))}
    return {key: value for key, value in table.items() if value not in (None, "", [], {})}


@_card()
class Licence(_Record):
    """A licence by its SPDX id (``LicenseRef-...`` where SPDX has none)."""

    spdx: str = attrs.field(validator=_filled)
    url: str = attrs.field(default="", validator=_text)
    #: May the thing be used commercially? ``None`` where the text leaves it open.
    commercial: bool | None = None
    #: The user must accept the terms before a file under them is fetched.
    consent: bool = False
    note: str = attrs.field(default="", validator=_text)


@_card()
class Citation(_Record):
    """The publication to cite."""

    text: str = attrs.field(validator=_filled)
    doi: str = attrs.field(default="", validator=_text)
    url: str = attrs.field(default="", validator=_text)


@_card()
class Reported(_Record):
    """A result that the authors report; never one of ours."""

    metric: str = attrs.field(validator=_filled)
    value: float
    on: str = attrs.field(validator=_filled)
    source: str = attrs.field(validator=_filled)
    low: float | None = None
    high: float | None = None


@_card()
class Asset(_Record):
    """A file that omlab can obtain: weights of a model, a file of a dataset.

    Attributes
    ----------
    id : name within the model variant or dataset.
    source : ``hub`` (needs repo, revision, file), ``https`` (url), ``wheel`` (package, version, member) or
        ``by-hand`` (instructions, file).
    sha256, size : digest in lower-case hexadecimal and bytes, where known; without a digest the first fetch is
        recorded and later ones must equal it.
    key : path of nested keys to the state dict in the container, ``"model"`` or ``"state/net"``.
    prefix : prefix that names in the container carry and ours do not.
    licence : of this file, where it differs from the card's.
    index : the file is an index of shards (``model.safetensors.index.json``) that are fetched after it, from beside it;
        the path that a model is given is that of the index, see :func:`omlab.weights.shards_of`.
    shards : digests of an index's shards by name of file, where known.
    """

    id: str = attrs.field(validator=_name)
    source: SourceKind = attrs.field(converter=_word(SourceKind))
    repo: str = ""
    revision: str = ""
    file: str = ""
    url: str = ""
    package: str = ""
    version: str = ""
    member: str = ""
    instructions: str = ""
    sha256: str = ""
    size: int | None = None
    key: str = ""
    prefix: str = ""
    licence: Licence | None = attrs.field(default=None, converter=_one(Licence))
    index: bool = False
    shards: Mapping[str, str] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        needed = {
            SourceKind.HUB: ("repo", "revision", "file"),
            SourceKind.HTTPS: ("url",),
            SourceKind.WHEEL: ("package", "version", "member"),
            SourceKind.BY_HAND: ("instructions", "file"),
        }[self.source]
        for field in needed:
            if not getattr(self, field):
                raise CardError(f"{field}: missing, a file of source '{self.source}' needs it")
        if self.sha256 and not _SHA256.match(self.sha256):
            raise CardError("sha256: expected 64 lower-case hexadecimal digits")
        if self.source is SourceKind.HTTPS and not self.url.startswith(
            ("https://", "http://127.0.0.1", "http://localhost")
        ):
            raise CardError(f"url: expected https, found '{self.url}'")
        if self.index and not self.filename.endswith(".index.json"):
            raise CardError(f"index: the name of an index ends with .index.json, found '{self.filename}'")
        if self.shards and not self.index:
            raise CardError("shards: only an index has shards")
        for name, digest in self.shards.items():
            if not _SHA256.match(digest):
                raise CardError(f"shards: {name}: expected 64 lower-case hexadecimal digits")

    @property
    def filename(self) -> str:
        """Name of the file on disk."""
        path = self.file or self.member or self.url.split("?")[0]
        return path.rstrip("/").rsplit("/", 1)[-1] or self.id


@_card()
class Option(_Record):
    """One option of a contribution; the command line and the typed API are made from it."""

    name: str = attrs.field(validator=_name)
    type: str = "str"
    default: Any = None
    help: str = ""
    choices: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    many: bool = False

    def __attrs_post_init__(self) -> None:
        if self.type not in ("str", "int", "float", "bool", "path"):
            raise CardError(f"type: '{self.type}' is none of str, int, float, bool, path")


@_card()
class LabelCard(_Record):
    """One structure of a segmentation or class of a classifier, as the card names it."""

    value: int
    name: str = attrs.field(validator=_filled)
    colour: str = ""
    #: Coded concept (value, scheme, meaning), say ``("12738006", "SCT", "Brain")``.
    code: tuple[str, ...] = attrs.field(default=(), converter=tuple)


@_card()
class Variant(_Record):
    """One published set of weights of a model, or one size."""

    name: str = attrs.field(validator=_name)
    title: str = ""
    weights: tuple[Asset, ...] = attrs.field(default=(), converter=_many(Asset))
    #: Constructor arguments and other settings, for the plugin alone.
    config: Mapping[str, Any] = attrs.field(factory=dict)
    outputs: tuple[OutputKind, ...] = attrs.field(default=(), converter=_words(OutputKind))
    labels: tuple[LabelCard, ...] = attrs.field(default=(), converter=_many(LabelCard))

    def configured(self, **config: Any) -> Variant:
        """The variant with these entries of ``config`` in place of its own."""
        return attrs.evolve(self, config={**self.config, **config})


@_card(kw_only=True)
class Card(_Record):
    """What every contribution says of itself."""

    name: str = attrs.field(validator=_name)
    title: str = attrs.field(default="", validator=_text)
    #: One sentence: what it is for.
    summary: str = attrs.field(validator=_filled)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_many(Option))
    #: Set by discovery: the distribution that contributes it, and that distribution's version.
    plugin: str = ""
    version: str = ""


@_card(kw_only=True)
class ModelCard(Card):
    """A model."""

    modality: tuple[Modality, ...] = attrs.field(converter=_words(Modality))
    task: tuple[Task, ...] = attrs.field(converter=_words(Task))
    inputs: tuple[InputKind, ...] = attrs.field(converter=_words(InputKind))
    outputs: tuple[OutputKind, ...] = attrs.field(converter=_words(OutputKind))
    prompts: tuple[Prompt, ...] = attrs.field(default=(), converter=_words(Prompt))
    variants: tuple[Variant, ...] = attrs.field(converter=_many(Variant))
    labels: tuple[LabelCard, ...] = attrs.field(default=(), converter=_many(LabelCard))
    licence_code: Licence = attrs.field(converter=_one(Licence))
    licence_weights: Licence = attrs.field(converter=_one(Licence))
    intended_use: str = attrs.field(validator=_filled)
    limits: str = attrs.field(validator=_filled)
    citation: Citation | None = attrs.field(default=None, converter=_one(Citation))
    reported: tuple[Reported, ...] = attrs.field(default=(), converter=_many(Reported))
    upstream: str = ""

    def __attrs_post_init__(self) -> None:
        if not self.variants:
            raise CardError("variants: a model needs at least one")
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise CardError(f"variants: names are not unique: {', '.join(names)}")

    def variant(self, name: str | None = None) -> Variant:
        """The variant of this name; the first without one. Raises :class:`omlab.errors.UnknownName`."""
        if name is None:
            return self.variants[0]
        for variant in self.variants:
            if variant.name == name:
                return variant
        from omlab.errors import UnknownName

        names = ", ".join(variant.name for variant in self.variants)
        raise UnknownName(f"model '{self.name}' has no variant '{name}'", remedy=f"It has: {names}")


@_card(kw_only=True)
class DatasetCard(Card):
    """A dataset."""

    modality: tuple[Modality, ...] = attrs.field(converter=_words(Modality))
    task: tuple[Task, ...] = attrs.field(converter=_words(Task))
    inputs: tuple[InputKind, ...] = attrs.field(converter=_words(InputKind))
    splits: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    labels: tuple[LabelCard, ...] = attrs.field(default=(), converter=_many(LabelCard))
    files: tuple[Asset, ...] = attrs.field(default=(), converter=_many(Asset))
    licence: Licence = attrs.field(converter=_one(Licence))
    citation: Citation | None = attrs.field(default=None, converter=_one(Citation))
    #: The dataset reads a folder that the user names: ``--on image-folder:PATH``.
    takes_path: bool = False
    upstream: str = ""
    #: Steps by which a person obtains it, in order; empty for the user's own files.
    obtain: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    homepage: str = attrs.field(default="", validator=_text)
    #: Patterns below the dataset's folder that must each fit something, say ``"images/*.png"``.
    layout: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    #: Published number of cases of each split; ``all`` where it has none.
    counts: Mapping[str, int] = attrs.field(factory=dict)
    #: How results on it are to be computed, so that they compare with published ones.
    protocol: str = attrs.field(default="", validator=_text)
    #: What it must not be used for, and what is wrong with it.
    limits: str = attrs.field(default="", validator=_text)
    reported: tuple[Reported, ...] = attrs.field(default=(), converter=_many(Reported))

    @property
    def cases(self) -> int | None:
        """Published number of cases; ``None`` where it is not known."""
        return sum(self.counts.values()) or None


@_card(kw_only=True)
class AdapterCard(Card):
    """A way to adapt a model to a dataset."""

    #: Kinds of answer that the base model must be able to give.
    base_outputs: tuple[OutputKind, ...] = attrs.field(converter=_words(OutputKind))
    task: tuple[Task, ...] = attrs.field(converter=_words(Task))
    trains_encoder: bool = False
    citation: Citation | None = attrs.field(default=None, converter=_one(Citation))


@_card(kw_only=True)
class EvaluatorCard(Card):
    """A way to score predictions."""

    task: tuple[Task, ...] = attrs.field(converter=_words(Task))
    takes: tuple[OutputKind, ...] = attrs.field(default=(), converter=_words(OutputKind))
    metrics: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    citation: Citation | None = attrs.field(default=None, converter=_one(Citation))


@_card(kw_only=True)
class EngineCard(Card):
    """A backend that runs graphs."""

    precisions: tuple[Precision, ...] = attrs.field(converter=_words(Precision))
    devices: tuple[str, ...] = attrs.field(converter=tuple)
    #: Import names of which at least one must be installed.
    modules: tuple[str, ...] = attrs.field(converter=tuple)
    install: str = attrs.field(validator=_filled)


@_card(kw_only=True)
class CommandCard(Card):
    """A command of the command line; its options live with its code."""


@_card(kw_only=True)
class ExporterCard(Card):
    """A way to turn a network into an ONNX file."""


#: Kind of contribution -> class of its card.
CARDS: dict[Kind, type[Card]] = {
    Kind.MODEL: ModelCard,
    Kind.DATASET: DatasetCard,
    Kind.ADAPTER: AdapterCard,
    Kind.EVALUATOR: EvaluatorCard,
    Kind.ENGINE: EngineCard,
    Kind.COMMAND: CommandCard,
    Kind.EXPORTER: ExporterCard,
}
