"""Patients with two aligned scans, and label maps that are fused or a file for each structure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omlab.cases import read
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import folder_names, label_map, needed
from omlab.errors import InputError, UsageError
from omlab.results import Label, Segmentation
from omlab.results.colours import colour_of
from omlab.vocabulary import InputKind
from omlab_segrap2023.structures import TASKS, fuse, mask, names_of

IMAGES = {"plain": "image.nii.gz", "contrast": "image_contrast.nii.gz"}
FUSED = {"oar": "task001", "gtv": "task002"}
_PATIENT = re.compile(r"segrap_\d{4}\Z")


class SegRap(Dataset):
    """``segrap_NNNN`` with ``image.nii.gz`` and ``image_contrast.nii.gz``, below the folder or one deeper.

    References are ``segrap_NNNN.nii.gz`` below a folder called ``task001...`` or ``task002...``, else the files of
    single structures beside the scans, fused by the challenge's rule. Patients below a folder called val or test are of
    that split, all others are ``train``.
    """

    tells_extra = False

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Structures of the task, or the one that is asked for."""
        chosen = self.options["structure"]
        return (chosen,) if chosen else tuple(TASKS[self.options["task"]])

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """A case a patient: the scan that the option ``image`` names."""
        root = needed(root, self.card.name)
        task, chosen = self.options["task"], self.options["structure"]
        if chosen and chosen not in TASKS[task]:
            raise UsageError(f"task '{task}' has no structure '{chosen}'", remedy=f"It has: {', '.join(TASKS[task])}")
        fused = _fused(root, FUSED[task])
        for of, folder in _patients(root):
            if split not in (None, of):
                continue
            scan = folder / IMAGES[self.options["image"]]
            whole = fused.get(folder.name)
            single = (
                {} if whole else {n: folder / f"{n}.nii.gz" for n in TASKS[task] if (folder / f"{n}.nii.gz").is_file()}
            )
            reference = None
            if whole is not None:
                reference = partial(fused_reference, whole, task, chosen)
            elif single and (not chosen or chosen in single):
                reference = partial(single_reference, {chosen: single[chosen]} if chosen else single, task, chosen)
            yield Item(
                name=folder.name, split=of, group=folder.name, read=partial(read, scan, kind=(InputKind.VOLUME,)),
                reference=reference, files=(scan, *((whole,) if whole else single.values())),
            )  # fmt: skip

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """A scan of the two that is missing, patients of which some structures have a file and some have none."""
        root = needed(root, self.card.name)
        fused = {task: _fused(root, prefix) for task, prefix in FUSED.items()}
        for of, folder in _patients(root):
            for name in IMAGES.values():
                if not (folder / name).is_file():
                    yield Problem(kind="missing", where=f"{folder.name}/{name}", what="is not there")
            for task, structures in TASKS.items():
                lacking = [name for name in structures if not (folder / f"{name}.nii.gz").is_file()]
                there = len(structures) - len(lacking)
                if there and lacking:
                    shown = ", ".join(lacking[:5]) + (" ..." if len(lacking) > 5 else "")
                    yield Problem(
                        kind="missing", where=folder.name,
                        what=f"has {there} of {len(structures)} structures of task '{task}', not {shown}",
                    )  # fmt: skip
                elif not there and of == "train" and folder.name not in fused[task]:
                    yield Problem(
                        kind="reference", where=folder.name, what=f"has no reference of task '{task}'", error=False
                    )


def _patients(root: Path) -> Iterator[tuple[str, Path]]:
    """Split and folder of every patient, in order."""
    found: list[tuple[str, str, Path]] = []
    for folder in (root, *(root / name for name in folder_names(root) if not _PATIENT.match(name))):
        word = folder.name.lower() if folder != root else ""
        split = "val" if "val" in word else "test" if "test" in word else "train"
        found += [(split, name, folder / name) for name in folder_names(folder) if _PATIENT.match(name)]
    if not found:
        raise InputError(f"{root}: holds no folder segrap_NNNN", remedy="Name the folder that you unpacked")
    for split, _, path in sorted(found, key=lambda row: (("train", "val", "test").index(row[0]), row[1])):
        yield split, path


def _fused(root: Path, prefix: str) -> dict[str, Path]:
    """Patient -> fused label map, below a folder of the task; folders of patients are not gone through."""
    found: dict[str, Path] = {}
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not _PATIENT.match(name))
        if not any(prefix in part.lower() for part in Path(folder).relative_to(root).parts):
            continue
        for name in names:
            if _PATIENT.match(name.removesuffix(".nii.gz")):
                found[name.removesuffix(".nii.gz")] = Path(folder) / name
    return found


def fused_reference(path: Path, task: str, chosen: str) -> Segmentation:
    """A fused label map, or one structure of it as value 1. Raises :class:`omlab.errors.InputError`."""
    found = label_map(path, _structures(task))
    if not chosen:
        return found
    return Segmentation(
        labels=mask(found.labels, chosen, task).astype(np.uint8), structures=_one(chosen), geometry=found.geometry
    )


def single_reference(paths: Mapping[str, Path], task: str, chosen: str) -> Segmentation:
    """Files of single structures, fused. Voxels whose structures no value stands for are counted as a measurement.

    Raises
    ------
    omlab.errors.InputError
        A file is damaged, or lies on another grid than the first.
    """
    first = None
    masks: dict[str, NDArray[np.bool_]] = {}
    for name, path in paths.items():
        found = label_map(path, binary=True)
        if first is None:
            first = found
        if found.geometry is None or first.geometry is None or not found.geometry.same_grid(first.geometry):
            raise InputError(f"{path.name}: lies on another grid than the other structures of {path.parent.name}")
        masks[name] = found.labels > 0
    assert first is not None
    if chosen:
        return Segmentation(labels=masks[chosen].astype(np.uint8), structures=_one(chosen), geometry=first.geometry)
    labels, odd = fuse(masks, task)
    return Segmentation(
        labels=labels, structures=_structures(task), geometry=first.geometry,
        measurements={"voxels_without_a_value": float(odd)} if odd else {},
    )  # fmt: skip


def _structures(task: str) -> tuple[Label, ...]:
    return tuple(Label(value=v, name=name, colour=colour_of(v)) for v, name in names_of(task).items())


def _one(chosen: str) -> tuple[Label, ...]:
    return (Label(value=1, name=chosen, colour=colour_of(1)),)
