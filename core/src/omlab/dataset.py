"""What a plugin implements to contribute a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import DatasetCard

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
    """

    name: str
    split: str
    read: Any
    reference: Any = None
    prompts: Any = None

    def case(self) -> Case:
        """Read the case."""
        return self.read()  # type: ignore[no-any-return]

    def truth(self) -> Result | None:
        """Read the reference."""
        return None if self.reference is None else self.reference()

    def asked(self) -> Any:
        """Read the prompts; ``None`` where there are none."""
        return None if self.prompts is None else self.prompts()


class Dataset:
    """Base of every contributed dataset."""

    def __init__(self, card: DatasetCard) -> None:
        self.card = card

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Cases, lazily and in a fixed order.

        Parameters
        ----------
        files : asset id -> path of each fetched file of the card.
        split : only this split; all without one.
        root : folder that the user named, for datasets whose card says ``takes_path``.
        """
        raise TypeError(f"{type(self).__name__} must define items()")

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Names of the classes or structures, in the order of their index."""
        return tuple(label.name for label in self.card.labels)
