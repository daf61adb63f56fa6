"""What a plugin implements to contribute a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import DatasetCard
from omlab.errors import UsageError
from omlab.progress import Listener, silent

if TYPE_CHECKING:
    from omlab.cases import Case
    from omlab.results import Result


@attrs.frozen(eq=False, kw_only=True)
class Item:
    """One case of a dataset, not yet read.

    Attributes
    ----------
    name : unique within the dataset.
    split : ``"train"``, ``"val"``, ``"test"`` or ``"all"``.
    read : gives the case.
    reference : gives the reference answer, or ``None`` where there is none.
    prompts : gives what a promptable model is asked, as :func:`omlab.prompts.coerce` takes it; models that take no
        prompts are not told.
    group : patient or study: cases of one group must not be torn apart into two splits. Empty where it is not known.
    files : files that the case and its reference are read from, so that they can be checked without reading.
    options : options that a model which has them is run with for this case, say the mutants to be scored.
    """

    name: str
    split: str
    read: Any
    reference: Any = None
    prompts: Any = None
    group: str = ""
    files: tuple[Path, ...] = ()
    options: Mapping[str, Any] = attrs.field(factory=dict)

    def case(self) -> Case:
        """Read the case."""
        return self.read()  # type: ignore[no-any-return]

    def truth(self) -> Result | None:
        """Read the reference."""
        return None if self.reference is None else self.reference()

    def asked(self) -> Any:
        """Read the prompts; ``None`` where there are none."""
        return None if self.prompts is None else self.prompts()


@attrs.frozen(kw_only=True)
class Problem:
    """Something that is wrong with a dataset on disk.

    Attributes
    ----------
    kind : one word: ``"missing"``, ``"extra"``, ``"damaged"``, ``"unfinished"``, ``"grid"``, ``"leak"``,
        ``"twin"``, ``"duplicate"``, ``"count"``, ``"layout"``, ``"reference"``, ``"absent"``.
    where : file, case or split.
    what : one line, what was found and what was expected.
    error : the dataset cannot be trusted; a remark else.
    """

    kind: str
    where: str
    what: str
    error: bool = True


class Dataset:
    """Base of every contributed dataset.

    Attributes
    ----------
    options : options of the card in force; its defaults until :func:`omlab.load_dataset` sets what the user gave.
    published_splits : its authors published the splits, so a leak between them is told as a remark: the files on disk
        are right nevertheless.
    tells_extra : files that lie beside those of cases and belong to none are worth a remark; not so where options
        choose among the files of a case.
    listener : told of work that takes long before the first case, say an index.
    """

    published_splits = False
    tells_extra = True

    def __init__(self, card: DatasetCard) -> None:
        self.card = card
        self.listener: Listener = silent
        self.options: Mapping[str, Any] = {
            option.name.replace("-", "_"): list(option.default or ()) if option.many else option.default
            for option in card.options
        }

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Cases, lazily and in a fixed order.

        Parameters
        ----------
        files : asset id -> path of each fetched file of the card.
        split : only this split; all without one.
        root : folder of the dataset, for those whose card says ``takes_path``.
        """
        raise TypeError(f"{type(self).__name__} must define items()")

    def shard(
        self,
        files: Mapping[str, Path],
        index: int,
        count: int,
        *,
        split: str | None = None,
        root: Path | None = None,
    ) -> Iterator[Item]:
        """Every ``count``-th case from ``index`` on: the part of one of ``count`` workers.

        Datasets of millions override it, where cases can be skipped without being made.
        """
        return islice(self.items(files, split=split, root=root), index, None, count)

    def size(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> int | None:
        """Number of cases, where it is known without making them; ``None`` else."""
        return None

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Names of the classes or structures, in the order of their index."""
        return tuple(label.name for label in self.card.labels)

    def published(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, int]:
        """Split -> number of cases that its authors name, with the options in force; ``all`` for the sum."""
        return self.card.counts

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """What only this dataset can check, beside what :func:`omlab.datasets.verify` checks of every dataset."""
        return iter(())

    def facts(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, Mapping[str, Any]]:
        """Further tables of ``omlab dataset show``: title -> row -> figure."""
        return {}


@attrs.frozen(eq=False, kw_only=True)
class BoundDataset:
    """A dataset with its files at hand.

    Attributes
    ----------
    files : asset id -> path.
    root : folder of the dataset, for datasets that read one.
    split : the only split wanted; ``None`` for all.
    part : (index, count): only every ``count``-th case from ``index`` on.
    label : as the user named it; made of the rest where it is empty.
    """

    dataset: Dataset
    files: Mapping[str, Path]
    root: Path | None = None
    split: str | None = None
    part: tuple[int, int] | None = None
    label: str = ""

    def __attrs_post_init__(self) -> None:
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise UsageError(
                f"there is no part {self.part[0]} of {self.part[1]}", remedy="Parts are counted from 0: 0/4 to 3/4"
            )

    @property
    def name(self) -> str:
        """As the user named it."""
        card = self.dataset.card
        return self.label or (f"{card.name}:{self.root}" if self.root else card.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes or structures."""
        return self.dataset.classes(self.root)

    def items(self, split: str | None = None) -> Iterator[Item]:
        """Cases of ``split`` (of the bound split without one), lazily. Raises
        :class:`omlab.errors.UsageError` for a split that the dataset does not have."""
        wanted = self._wanted(split)
        if self.part is not None:
            index, count = self.part
            return self.dataset.shard(self.files, index, count, split=wanted, root=self.root)
        return self.dataset.items(self.files, split=wanted, root=self.root)

    def size(self, split: str | None = None) -> int | None:
        """Number of cases, where it is known without making them."""
        found = self.dataset.size(self.files, split=self._wanted(split), root=self.root)
        if found is None or self.part is None:
            return found
        index, count = self.part
        return len(range(index, found, count))

    def _wanted(self, split: str | None) -> str | None:
        wanted = split or self.split
        splits = self.dataset.card.splits
        if wanted is not None and splits and wanted not in splits:
            raise UsageError(f"dataset '{self.name}' has no split '{wanted}'", remedy=f"It has: {', '.join(splits)}")
        return wanted
