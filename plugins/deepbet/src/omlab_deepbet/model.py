"""Brain extraction in T1-weighted MRI: find the head's brain coarsely, cut it out, segment it finely.

Processing after deepbet 1.0.2 (Fisch et al. 2024) with its defaults, so that the mask equals that of its own
``run_bet``. All sizes and constants are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Volume
from omlab.errors import InputError, UsageError, require
from omlab.graphs import Graph, Judge, TensorSpec, Tolerance
from omlab.model import Context, Model
from omlab.results import Label, Result, Segmentation
from omlab.vocabulary import Precision
from omlab_deepbet import sampling

if TYPE_CHECKING:
    import torch

COARSE, FINE = 128, 256
#: Intensities below and above are clipped.
LOW, HIGH = 0.005, 0.995
#: Share of a plane that must be brain for the plane to belong to the bounding box.
PLANE = 0.02
#: Added to each side of the bounding box, as a share of its size.
MARGIN = 0.1
#: The mask must not depend on the engine: Dice 0.9995 at any precision.
TOLERANCES = {
    Precision.FLOAT32: Tolerance(flips_ppm=100.0, dice=0.9995),
    Precision.FLOAT16: Tolerance(flips_ppm=300.0, dice=0.9995),
    Precision.BFLOAT16: Tolerance(flips_ppm=300.0, dice=0.9995),
}


class DeepBet(Model):
    """The model ``deepbet``."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``bbox`` on 128^3 and ``mask`` on 256^3 voxels: intensities in, probability of brain out, as blocks of
        2 x 2 x 4 voxels in C order (:func:`omlab_deepbet.sampling.above` reads them)."""
        return tuple(
            Graph(
                name=name,
                inputs=(TensorSpec("image", "float32", (1, 1, size, size, size), "batch channel i j k"),),
                outputs=(
                    TensorSpec(
                        "probability", "float32", (1, size // 2, size // 2, size // 4, 16), "batch i j k (2i x 2j x 4k)"
                    ),
                ),
                judge=Judge.PROBABILITY,
                tolerances=TOLERANCES,
                sources=("omlab_deepbet.network",),
            )
            for name, size in (("bbox", COARSE), ("mask", FINE))
        )

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network of ``graph`` with the published weights."""
        require("torch", needed_for="building the engine of deepbet", install="omlab-deepbet[convert]")
        require("omlab_sdk", needed_for="building the engine of deepbet", install="omlab-deepbet[convert]")
        from omlab_deepbet.network import LinkNet3d, MaskProbability
        from omlab_sdk.checkpoints import load_into
        from omlab_sdk.torchscript import read_torchscript

        network = LinkNet3d()
        path = files[graph.name]
        load_into(network, read_torchscript(path), name=str(path))
        return MaskProbability(network.eval()).eval()

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network of ``graph`` as constructed."""
        from omlab_deepbet.network import LinkNet3d, MaskProbability

        return MaskProbability(LinkNet3d().eval()).eval()

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, NDArray[Any]]]:
        """A phantom: scalp, skull and a folded brain, with intensities as in T1-weighted MRI."""
        yield {"image": phantom(graph.inputs[0].concrete()[-1])[None, None]}

    def predict(self, case: Case, context: Context) -> Result:
        """Mask of the brain on the grid of the scan.

        Options: ``threshold`` of the probability; ``dilate`` by so many voxels (negative: erode).

        Raises
        ------
        omlab.errors.InputError
            No brain is found.
        omlab.errors.UsageError
            The threshold is not between 0 and 1.
        """
        threshold = float(context.options["threshold"])
        if not 0 < threshold < 1:
            raise UsageError(f"'{self.card.name}': option 'threshold' is between 0 and 1, found {threshold:g}")
        if not isinstance(case, Volume):
            raise InputError(f"{case.name}: deepbet takes a volume, found {case.kind}")
        turn = case.geometry.canonical()
        voxels = turn.apply(case.voxels)
        with context.stage("prepare"):
            small = sampling.gather(voxels, sampling.indices(voxels.shape, (COARSE,) * 3)).astype(np.float32)
            small = _finite(small)
            low, high = sampling.quantile(small, LOW), sampling.quantile(small, HIGH)
            if not high > low:
                raise InputError(
                    f"{case.name}: 99 % of the voxels have the same value {low:g}, expected a T1-weighted head"
                )
            identity = sampling.indices(small.shape, small.shape)
            coarse = sampling.normalised(small, low, high, identity)
        engine = context.engines["bbox"]  # made or loaded here, which is no part of the stage
        with context.stage("network"):
            probability = engine({"image": coarse[None, None]})["probability"]
        with context.stage("prepare"):
            brain = sampling.above(probability, 0.5, coarse.shape)
            box = bounding_box(largest_component(brain, case.name), voxels.shape, case.name)
            inside = _finite(voxels[box])
            fine = sampling.normalised(inside, low, high, sampling.indices(inside.shape, (FINE,) * 3))
        engine = context.engines["mask"]
        with context.stage("network"):
            probability = engine({"image": fine[None, None]})["probability"]
            del fine
        with context.stage("restore"):
            import fill_voids

            found = sampling.above(probability, threshold, inside.shape)
            mask = np.zeros(voxels.shape, np.uint8)
            mask[box] = fill_voids.fill(largest_component(found, case.name))
            mask = dilated(mask, context.options["dilate"])
            labels = np.ascontiguousarray(turn.undo(mask))
            millilitres = float(mask.sum(dtype=np.int64)) * case.geometry.voxel_volume_mm3 / 1000.0
        return Segmentation(
            labels=labels,
            structures=tuple(Label.of(card) for card in self.card.labels),
            geometry=case.geometry,
            measurements={"volume_ml": millilitres},
        )


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Not-a-number as 0, infinite as the greatest finite number, as deepbet does; integers as they are."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    return np.nan_to_num(values.astype(np.float32))


def largest_component(mask: NDArray[np.bool_], name: str) -> NDArray[np.bool_]:
    """The largest connected component (26 neighbours). Raises :class:`omlab.errors.InputError` if there is none."""
    import cc3d

    labels = cc3d.connected_components(mask)
    counts = np.bincount(labels.ravel())
    if len(counts) < 2:
        raise InputError(
            f"{name}: no brain was found in it, expected a T1-weighted MRI of a head",
            remedy="Check that it is one, and that its orientation and spacing are right",
        )
    counts[0] = 0
    return labels == counts.argmax()  # type: ignore[no-any-return]


def bounding_box(mask: NDArray[np.bool_], shape: tuple[int, ...], name: str) -> tuple[slice, ...]:
    """Box of ``shape`` that holds the brain of the coarse mask, with a margin. float32 throughout, like the original,
    so that rounding falls the same way.

    Raises
    ------
    omlab.errors.InputError
        The mask is so small that it fills no plane to :data:`PLANE`.
    """
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        planes = np.flatnonzero(mask.mean(axis=others) > PLANE)
        if not len(planes):
            raise InputError(f"{name}: what was found is too small to be a brain, expected a T1-weighted MRI of a head")
        scale = np.float32(shape[axis]) / np.float32(mask.shape[axis])
        first, last = planes[0], planes[-1] + 1
        centre = np.round(scale * (np.float32(last + first) / np.float32(2)))
        size = np.round((np.float32(1) + np.float32(2) * np.float32(MARGIN)) * (scale * np.float32(last - first)))
        half = size / np.float32(2)
        box.append(slice(max(0, int(centre - half)), min(shape[axis], int(centre + half))))
    return tuple(box)


def dilated(mask: NDArray[np.uint8], layers: int) -> NDArray[np.uint8]:
    """Dilate (or, below 0, erode) by ``layers`` voxels: every voxel that touches the other side by a face, on either
    side, takes the value that is wanted."""
    if not layers:
        return mask
    import cc3d

    for _ in range(abs(layers)):
        neighbours = cc3d.voxel_connectivity_graph(mask.astype(np.uint8) + 1, connectivity=6)
        mask[neighbours != 63] = 1 if layers > 0 else 0
    return mask


def phantom(size: int) -> NDArray[np.float32]:
    """A head of ellipsoids on ``size``^3 voxels, normalised like a scan; deterministic."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y, z = axis[:, None, None], axis[None, :, None], axis[None, None, :]

    def within(a: float, b: float, c: float, lift: float = 0.0) -> NDArray[np.bool_]:
        return (x / a) ** 2 + (y / b) ** 2 + ((z - lift) / c) ** 2 < 1  # type: ignore[no-any-return]

    folds = np.sin(22 * x) * np.sin(19 * y + 1) * np.sin(20 * z + 2)
    head = np.zeros((size,) * 3, np.float32)
    head[within(0.86, 0.95, 0.92)] = 0.75  # scalp
    head[within(0.80, 0.89, 0.86)] = 0.08  # skull
    head[within(0.75, 0.84, 0.80)] = 0.25  # fluid
    brain = within(0.72, 0.81, 0.76, 0.02)
    head[brain] = (0.55 + 0.08 * folds)[brain]  # grey matter
    white = within(0.58, 0.66, 0.60, 0.02) & (folds > -0.35)
    head[white] = 0.85
    head[within(0.10, 0.30, 0.12, 0.1)] = 0.2  # ventricles
    head += 0.01 * np.random.default_rng(0).standard_normal(head.shape, dtype=np.float32)
    np.clip(head, 0, 1, out=head)
    return ((head - head.mean()) / head.std() * sampling.STD + sampling.MEAN).astype(np.float32)
