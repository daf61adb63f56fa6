"""The 45 organs at risk and two tumour volumes of SegRap2023, and the rule by which organs overlap in one label map.

The fused map of an image has the values 1 to 54. Nine of them stand for two organs at once, and the brain is the union
of all that lies in it: a structure is the union of some values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, UsageError

#: Organ -> values of the fused map, in the order of a submission's channels.
ORGANS: dict[str, tuple[int, ...]] = {
    "Brain": tuple(range(1, 10)), "BrainStem": (2,), "Chiasm": (3,),
    "TemporalLobe_L": (4, 6), "TemporalLobe_R": (5, 7), "Hippocampus_L": (6, 8), "Hippocampus_R": (7, 9),
    "Eye_L": (10, 12), "Eye_R": (11, 13), "Lens_L": (12,), "Lens_R": (13,),
    "OpticNerve_L": (14,), "OpticNerve_R": (15,),
    "MiddleEar_L": (16, 18, 20, 24, 28, 30), "MiddleEar_R": (17, 19, 21, 25, 29, 31), "IAC_L": (18,), "IAC_R": (19,),
    "TympanicCavity_L": (20, 22), "TympanicCavity_R": (21, 23), "VestibulSemi_L": (24, 26), "VestibulSemi_R": (25, 27),
    "Cochlea_L": (28,), "Cochlea_R": (29,), "ETbone_L": (30, 32), "ETbone_R": (31, 33), "Pituitary": (34,),
    "OralCavity": (35,), "Mandible_L": (36,), "Mandible_R": (37,), "Submandibular_L": (38,), "Submandibular_R": (39,),
    "Parotid_L": (40,), "Parotid_R": (41,), "Mastoid_L": (42,), "Mastoid_R": (43,), "TMjoint_L": (44,),
    "TMjoint_R": (45,), "SpinalCord": (46,), "Esophagus": (47,), "Larynx": (48, 49, 50, 51), "Larynx_Glottic": (49,),
    "Larynx_Supraglot": (50,), "PharynxConst": (51, 52), "Thyroid": (53,), "Trachea": (54,),
}  # fmt: skip
TUMOURS: dict[str, tuple[int, ...]] = {"GTVp": (1,), "GTVnd": (2,)}
#: Task of the challenge -> its structures.
TASKS = {"oar": ORGANS, "gtv": TUMOURS}
#: Tolerance of the surface Dice in mm; 1 mm for every other structure.
TOLERANCE_MM = {"Larynx": 2.0, "OralCavity": 3.0}


def tolerance_mm(structure: str) -> float:
    """Tolerance of the surface Dice of a structure."""
    return TOLERANCE_MM.get(structure, 1.0)


def names_of(task: str) -> dict[int, str]:
    """Value of the fused map -> the structures that it stands for, the smallest last: ``Brain + BrainStem``."""
    found: dict[int, list[str]] = {}
    for name, values in TASKS[task].items():
        for value in values:
            found.setdefault(value, []).append(name)
    return {value: " + ".join(names) for value, names in sorted(found.items())}


def mask(labels: NDArray[np.unsignedinteger], structure: str, task: str = "oar") -> NDArray[np.bool_]:
    """Where a structure is in a fused map, on its grid.

    Raises
    ------
    omlab.errors.UsageError
        The task has no such structure.
    omlab.errors.InputError
        The map has values that the task has not.
    """
    known = TASKS[task]
    if structure not in known:
        raise UsageError(f"'{structure}' is no structure of task '{task}'", remedy=f"It has: {', '.join(known)}")
    top = max(value for values in known.values() for value in values)
    if int(labels.max(initial=0)) > top:
        raise InputError(f"the label map has the value {int(labels.max())}, task '{task}' ends at {top}")
    table = np.zeros(top + 1, np.bool_)
    table[list(known[structure])] = True
    return table[labels]


def fuse(masks: Mapping[str, NDArray[np.bool_]], task: str = "oar") -> tuple[NDArray[np.uint8], int]:
    """One label map of overlapping masks, and the number of voxels whose structures no value stands for.

    Such a voxel (a lens outside of its eye, say, or two organs that touch) gets the value of the structure that has the
    fewest values of its own, which says the most of it.

    Parameters
    ----------
    masks : structure -> mask, all of one shape; structures that are not there are empty.

    Raises
    ------
    omlab.errors.UsageError
        A mask of no structure, or of another shape, or none at all.
    """
    known = TASKS[task]
    unknown = next((name for name in masks if name not in known), None)
    shapes = {found.shape for found in masks.values()}
    if unknown is not None or len(shapes) != 1:
        what = f"'{unknown}' is no structure of task '{task}'" if unknown else f"masks have {len(shapes)} shapes"
        raise UsageError(what, remedy="Give masks of one image, by the names of omlab_segrap2023.structures")
    (shape,) = shapes
    labels = np.zeros(shape, np.uint8)
    owners: dict[int, list[str]] = {}
    for name, values in known.items():
        for value in values:
            owners.setdefault(value, []).append(name)
    for value, names in sorted(owners.items(), key=lambda pair: len(pair[1])):
        if all(name in masks for name in names):
            inside = masks[names[0]].copy()
            for name in names[1:]:
                inside &= masks[name]
            labels[inside] = value
    wrong = np.zeros(shape, np.bool_)
    for name in known:
        wrong |= mask(labels, name, task) != masks.get(name, False)
    odd = int(wrong.sum())
    if odd:
        # Large structures first, so that the small ones, which say more, are painted over them.
        for name in sorted(masks, key=lambda n: -len(known[n])):
            own = min(known[name], key=lambda value: len(owners[value]))
            labels[wrong & masks[name]] = own
    return labels, odd
