"""The tensors of all cases of a dataset, prepared once and kept on disk while a network is trained on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.dataset import Item
from omlab.errors import InputError, OmlabError, OutputError, UsageError
from omlab.files import write_text
from omlab.labelled import Splits, case_digest, without_duplicates
from omlab.model import Model
from omlab.progress import Listener, Progress, silent
from omlab_sdk.adapting.capture import tensor_of

if TYPE_CHECKING:
    from omlab.loading import LoadedModel


@attrs.frozen(eq=False, kw_only=True)
class Prepared:
    """Inputs of a network.

    Attributes
    ----------
    arrays : split -> [cases, ...] float32, mapped from disk, in the order of the cases of ``items``.
    items : split -> cases.
    digests : split -> digest of the content of each case.
    failed : split -> one line for each case that could not be read.
    """

    arrays: Mapping[str, NDArray[np.float32]]
    items: Mapping[str, tuple[Item, ...]]
    digests: Mapping[str, tuple[str, ...]]
    failed: Mapping[str, tuple[str, ...]]


def prepare(
    base: LoadedModel, parts: Mapping[str, Sequence[Item]], folder: Path, *, listener: Listener = silent
) -> Prepared:
    """Prepare every case once; one that cannot be read is left out and named.

    The arrays lie in ``folder`` and are taken from there if they are of the same cases.

    Raises
    ------
    InputError
        No case of the first split could be read.
    UsageError
        The network takes tensors of several shapes, which cannot be batched, or the model looks several times.
    OutputError
        The disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[np.float32]] = {}
    items: dict[str, tuple[Item, ...]] = {}
    digests: dict[str, tuple[str, ...]] = {}
    failed: dict[str, tuple[str, ...]] = {}
    for split, own in parts.items():
        path, index = folder / f"inputs-{split}.npy", folder / f"inputs-{split}.json"
        names = [item.name for item in own]
        known = _read(index, names)
        if known is None or not path.is_file():
            index.unlink(missing_ok=True)
            known = _write(base, split, own, path, listener)
            write_text(index, json.dumps({"names": names, **known}))
        good = known["good"]
        if not good and split == next(iter(parts)):
            reason = known["failed"][0] if known["failed"] else "there is none"
            raise InputError(f"no {split} case could be read: {reason}")
        items[split], digests[split] = tuple(own[i] for i in good), tuple(known["digests"])
        if known["failed"]:
            failed[split] = tuple(known["failed"])
        if good:
            arrays[split] = np.load(path, mmap_mode="r")[: len(good)]
    shapes = {array.shape[1:] for array in arrays.values()}
    if len(shapes) > 1:
        raise UsageError(f"the network of '{base.card.name}' takes tensors of several shapes: {sorted(shapes)}")
    return Prepared(arrays=arrays, items=items, digests=digests, failed=failed)


def _read(index: Path, names: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(index.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("names") == names else None


def _write(base: LoadedModel, split: str, items: Sequence[Item], path: Path, listener: Listener) -> dict[str, Any]:
    array: Any = None
    good: list[int] = []
    digests: list[str] = []
    failed: list[str] = []
    for number, item in enumerate(items):
        listener(Progress(f"{base.card.name} {split}", "prepare", number, len(items), "cases"))
        try:
            case = item.case()
            tensor = tensor_of(base.model, base.variant, case)
            if not np.isfinite(tensor).all():
                raise InputError("its prepared tensor is not finite")
        except UsageError:
            raise
        except OmlabError as error:
            failed.append(f"{item.name}: {error.message}")
            continue
        if array is None:
            shape = (len(items), *tensor.shape)
            try:
                array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            except OSError as error:
                raise OutputError(
                    f"{path} cannot be written: {error.strerror}", remedy="Free some disk space"
                ) from None
        if tensor.shape != array.shape[1:]:
            raise UsageError(
                f"the network of '{base.card.name}' takes tensors of several shapes: {array.shape[1:]}, and "
                f"{tensor.shape} for {item.name}",
                remedy="An adapter that trains the network needs one shape",
            )
        array[len(good)] = tensor
        good.append(number)
        digests.append(case_digest(case))
    if array is not None:
        array.flush()
    return {"good": good, "digests": digests, "failed": failed}


def prepare_splits(
    base: LoadedModel, splits: Splits, folder: Path, *, duplicates: str, listener: Listener = silent
) -> tuple[Splits, dict[str, NDArray[np.float32]], dict[str, tuple[str, ...]]]:
    """:func:`prepare` for labelled splits, without what is in two of them: (splits, arrays, failed)."""
    found = prepare(base, {name: split.items for name, split in splits.all().items()}, folder, listener=listener)
    places = {name: {item.name: i for i, item in enumerate(split.items)} for name, split in splits.all().items()}
    readable = {
        name: split.take([places[name][item.name] for item in found.items[name]])
        for name, split in splits.all().items()
    }  # fmt: skip
    left, stay = without_duplicates(
        attrs.evolve(splits, **readable), {n: d for n, d in found.digests.items() if d}, duplicates
    )
    arrays = {}
    for name, indices in stay.items():
        array = found.arrays[name]
        arrays[name] = array if len(indices) == len(array) else _Chosen(array, np.array(indices))
    return left, arrays, dict(found.failed)  # type: ignore[return-value]


class _Chosen:
    """Some rows of a mapped array, read when they are asked for."""

    def __init__(self, array: NDArray[np.float32], rows: NDArray[np.int_]) -> None:
        self.array, self.rows = array, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    def __getitem__(self, wanted: Any) -> NDArray[np.float32]:
        return self.array[self.rows[wanted]]


class Augmented:
    """Batches of training cases that the model's author augments: read, changed and prepared anew in every epoch.

    Like :class:`omlab_sdk.training.Arrays`, with the cases themselves for the first array.
    """

    def __init__(self, base: LoadedModel, items: Sequence[Item], arrays: Any) -> None:
        self.base, self.items, self.arrays = base, items, arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def batch(self, epoch: int, index: int) -> tuple[Any, ...]:
        """The batch, every case drawn by its place in the training."""
        import torch

        arrays = self.arrays
        chosen = arrays.order(epoch)[index * arrays.size : (index + 1) * arrays.size]
        tensors = []
        for number in chosen.tolist():
            generator = np.random.default_rng([arrays.seed, epoch, number])
            case = self.base.model.augment(self.items[number].case(), generator)
            tensors.append(tensor_of(self.base.model, self.base.variant, case))
        rest = tuple(torch.from_numpy(np.ascontiguousarray(array[chosen])) for array in arrays.arrays[1:])
        return (torch.from_numpy(np.stack(tensors)), *rest)


def augments_itself(model: Model) -> bool:
    """Does the author of a model bring an augmentation of raw cases?"""
    return type(model).augment is not Model.augment
