"""The training set out of axon cubes and artefact cubes, as D-LMBmap makes it: matched histograms, cut-mix, crops."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, require
from omlab.files import whole, write_text
from omlab_axon_seg.cubes import matched

Cube = NDArray[Any]
#: Whole numbers of a camera become about 0..10.
_SCALE = 6553


@attrs.frozen(eq=False)
class Settings:
    """How a training set is made.

    Attributes
    ----------
    size : side of a crop, in voxels.
    samples : crops of each axon cube.
    match : also take every cube with the histogram of another one of the source.
    mix : also put a corner of an artefact cube into every axon cube.
    """

    size: int = 128
    samples: int = 2
    match: bool = True
    mix: bool = True


@attrs.frozen(eq=False)
class Example:
    """One crop: ``image`` [z, y, x] float32 in 0..1, ``label`` [z, y, x] uint8 with axons 1."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]


def examples(
    axons: Sequence[tuple[Cube, Cube]],
    artefacts: Sequence[Cube],
    generator: np.random.Generator,
    settings: Settings | None = None,
    sources: tuple[Sequence[Cube], Sequence[Cube]] | None = None,
) -> Iterator[Example]:
    """Crops of a training set; what is drawn comes from ``generator``.

    Parameters
    ----------
    axons : (cube, fine label) pairs [z, y, x]; what is not 0 in a label is axon. Cubes with a side below the size of a
        crop are left out.
    artefacts : cubes without axons.
    sources : (axon cubes, artefact cubes) whose histograms are taken; the cubes themselves without.

    Raises
    ------
    omlab.errors.InputError
        No cube is large enough, or a label has another shape than its cube.
    """
    settings = settings or Settings()
    pairs = [(cube, label) for cube, label in axons if min(cube.shape) >= settings.size]
    junk = [cube for cube in artefacts if min(cube.shape) >= settings.size]
    for cube, label in pairs:
        if cube.shape != label.shape:
            raise InputError(f"a cube of {cube.shape} has a label of {label.shape}")
    if not pairs:
        raise InputError(
            f"none of {len(axons)} axon cubes has sides of {settings.size} voxels", remedy="Take smaller crops"
        )
    own = [cube for cube, _ in pairs]
    axon_source, junk_source = sources or (own, junk)
    every = [(cube, label) for cube, label in pairs]
    plain_and_matched: list[list[Cube]] = [[cube] for cube in own]
    rubbish: list[Cube] = list(junk)
    if settings.match:
        for number, (cube, label) in enumerate(pairs):
            other = matched(cube, axon_source[int(generator.integers(len(axon_source)))])
            every.append((other, label))
            plain_and_matched[number].append(other)
        if junk_source:
            rubbish += [matched(cube, junk_source[int(generator.integers(len(junk_source)))]) for cube in junk]
    if settings.mix and rubbish:
        for choices, (_, label) in zip(plain_and_matched, pairs, strict=True):
            cube = choices[int(generator.integers(len(choices)))]
            every.append(mixed(cube, label, rubbish[int(generator.integers(len(rubbish)))], generator))
    for cube, label in every:
        for _ in range(settings.samples):
            yield _axon_example(cube, label, settings.size, generator)
    if rubbish:
        share = max(1, int(len(every) / len(rubbish) * settings.samples / 2))
        for cube in rubbish:
            for _ in range(share):
                (image,) = _rotated([_crop([cube], settings.size, generator)[0]], generator)
                yield Example(_zero_to_one(image), np.zeros(image.shape, np.uint8))


def mixed(cube: Cube, label: Cube, artefact: Cube, generator: np.random.Generator) -> tuple[Cube, Cube]:
    """The corner of a cube, of random size, replaced by that of an artefact cube; no axon is marked there."""
    sides = [int(generator.integers(min(a, b) + 1)) for a, b in zip(cube.shape, artefact.shape, strict=True)]
    corner = tuple(slice(0, side) for side in sides)
    cube, label = cube.copy(), label.copy()
    cube[corner] = artefact[corner]
    label[corner] = 0
    return cube, label


def _axon_example(cube: Cube, label: Cube, size: int, generator: np.random.Generator) -> Example:
    image, marks = _rotated(_crop([cube, label], size, generator), generator)
    axis = int(generator.integers(2))
    image, marks = np.flip(image, axis), np.flip(marks, axis)
    image, marks = _warped(image.astype(np.float32), (marks > 0).astype(np.float32), generator)
    return Example(_zero_to_one(image / _SCALE), (marks > 0).astype(np.uint8))


def _crop(cubes: Sequence[Cube], size: int, generator: np.random.Generator) -> list[Cube]:
    low = [int(generator.integers(n - size + 1)) for n in cubes[0].shape]
    box = tuple(slice(a, a + size) for a in low)
    return [cube[box] for cube in cubes]


def _rotated(cubes: Sequence[Cube], generator: np.random.Generator) -> list[Cube]:
    """Turned by a right angle or several, within planes."""
    turns = int(generator.integers(4))
    return [np.rot90(cube.swapaxes(0, 2), turns, (0, 1)).swapaxes(0, 2) for cube in cubes]


def _warped(
    image: NDArray[np.float32], label: NDArray[np.float32], generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flipped along each of the first two axes with even chance; made larger by up to a fifth and turned by up to ten
    degrees in their plane. The third axis stays: upstream takes it for colours. Labels by the nearest voxel."""
    cv2 = require("cv2", needed_for="turning training cubes", install="omlab-axon-seg[prepare]")
    for axis in (1, 0):
        if generator.random() < 0.5:
            image, label = np.flip(image, axis), np.flip(label, axis)
    rows, columns = image.shape[:2]
    scale, angle = generator.uniform(1, 1.2), generator.uniform(-10, 10)
    turn = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), angle, scale)

    def warp(cube: NDArray[np.float32], how: int) -> NDArray[np.float32]:
        cube = np.ascontiguousarray(cube)
        # A picture has so many colours at most.
        parts = [
            cv2.warpAffine(np.ascontiguousarray(cube[:, :, n : n + 4]), turn, (columns, rows), flags=how).reshape(
                rows, columns, -1
            )
            for n in range(0, cube.shape[2], 4)
        ]
        return np.concatenate(parts, axis=2)

    return warp(image, cv2.INTER_LINEAR), warp(label, cv2.INTER_NEAREST)


def _zero_to_one(image: Cube) -> NDArray[np.float32]:
    values = np.asarray(image, np.float32)
    low, high = float(values.min()), float(values.max())
    return (values - np.float32(low)) / np.float32(high - low) if high > low else np.zeros_like(values)


def write(folder: str | Path, made: Iterator[Example], *, name: str = "axons") -> int:
    """Write examples as a raw data set of nnU-Net, from which networks are trained; returns how many.

    ``imagesTr/NAME_00000_0000.nii.gz``, ``labelsTr/NAME_00000.nii.gz`` with a spacing of 1, and ``dataset.json``.
    """
    nibabel = require("nibabel", needed_for="writing training cubes", install="omlab-axon-seg[prepare]")
    folder, cases = Path(folder), []
    for number, example in enumerate(made):
        case = f"{name}_{number:05d}"
        for place, array in (("imagesTr", example.image), ("labelsTr", example.label)):
            file = folder / place / (f"{case}_0000.nii.gz" if place == "imagesTr" else f"{case}.nii.gz")
            # As the other tools of nnU-Net read it, with axes (x, y, z) of LPS.
            picture = nibabel.Nifti1Image(np.ascontiguousarray(array.T), np.diag([-1.0, -1.0, 1.0, 1.0]))
            with whole(file) as temporary:
                nibabel.save(picture, temporary)
        cases.append({"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"})
    told = {
        "name": name, "description": "axons in light-sheet microscopy", "tensorImageSize": "3D",
        "modality": {"0": "MI"}, "labels": {"0": "background", "1": "axon"}, "numTraining": len(cases), "numTest": 0,
        "training": cases, "test": [],
    }  # fmt: skip
    write_text(folder / "dataset.json", json.dumps(told, indent=2))
    return len(cases)
