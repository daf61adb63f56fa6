"""deepbet: find the brain at 128 voxels a side, then outline it at 256 within a box around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Volume
from omlab.errors import InputError, UsageError, WeightsError, require
from omlab.graphs import Graph, Judge, TensorSpec, Tolerance
from omlab.model import Context, Model
from omlab.results import Label, Segmentation
from omlab.vocabulary import Precision
from omlab_deepbet.phantom import head
from omlab_deepbet.volume import Intensities, above, brain_box, filled, grown, largest_component, resized

if TYPE_CHECKING:
    import torch

#: Graph, and id of its weights -> voxels a side.
SIDES = {"box": 128, "mask": 256}
#: The coarse mask is always cut here; the option moves the cut of the fine one only.
BOX_THRESHOLD = 0.5
#: Voxels a side below which the networks have nothing to look at.
SMALLEST = 16


def _graph(name: str, side: int) -> Graph:
    half = side // 2
    return Graph(
        name=name,
        inputs=(TensorSpec("image", "float32", (1, 1, side, side, side), axes="batch channel i j k"),),
        outputs=(
            TensorSpec("probability", "float32", (1, half, half, side // 4, 16), axes="batch i j k (2 i x 2 j x 4 k)"),
        ),
        judge=Judge.PROBABILITY,
        # The mask must not depend on the engine by more than a twentieth of a per cent.
        tolerances={
            Precision.FLOAT32: Tolerance(flips_ppm=100.0, dice=0.9995),
            Precision.FLOAT16: Tolerance(flips_ppm=300.0, dice=0.9995),
            Precision.BFLOAT16: Tolerance(flips_ppm=300.0, dice=0.9995),
        },
        sources=("omlab_deepbet.network",),
    )


class DeepBet(Model):
    """Brain extraction in T1-weighted MRI."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``box`` at 128 voxels a side, ``mask`` at 256."""
        return tuple(_graph(name, side) for name, side in SIDES.items())

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network of ``graph``. Raises :class:`omlab.errors.WeightsError` for a file of another model."""
        needed = f"making an engine for '{self.card.name}'"
        require("torch", needed_for=needed, install="omlab-deepbet[convert]")
        require("omlab_sdk", needed_for=needed, install="omlab-deepbet[convert]")
        from omlab_deepbet.network import BrainProbability, LinkNet3d
        from omlab_sdk.torchscript import read_torchscript

        path = files[graph.name]
        found = read_torchscript(path)
        network = LinkNet3d()
        expected = network.state_dict()
        wrong = sorted(
            name
            for name in expected.keys() | found.keys()
            if name not in expected or name not in found or expected[name].shape != found[name].shape
        )
        if wrong:
            raise WeightsError(
                f"{path} does not hold the weights of deepbet: {len(wrong)} tensors are missing, unexpected or of "
                f"another shape, the first is '{wrong[0]}'",
                remedy=f"Fetch them with: omlab pull {self.card.name}",
            )
        network.load_state_dict(found)
        return BrainProbability(network).eval()

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """A synthetic head, whole for ``box`` and cut near the brain for ``mask``."""
        voxels = head()
        intensities = Intensities.of(voxels)
        if graph.name == "mask":
            voxels = voxels[14:114, 8:120, 16:124]
        side = SIDES[graph.name]
        yield {"image": intensities.resized(voxels, (side, side, side))[None, None]}

    def predict(self, case: Case, context: Context) -> Segmentation:
        """The brain mask on the grid of the case.

        Raises
        ------
        omlab.errors.InputError
            The volume has no contrast or hardly any voxels, or no brain is found in it.
        omlab.errors.UsageError
            A threshold outside 0 to 1.
        """
        threshold, layers = float(context.options["threshold"]), int(context.options["dilate"])
        if not 0 < threshold < 1:
            raise UsageError(f"'{self.card.name}': option 'threshold' lies between 0 and 1, found {threshold:g}")
        if not isinstance(case, Volume):
            raise InputError(f"{case.name}: is of kind {case.kind}, model '{self.card.name}' takes a volume")
        if min(case.voxels.shape) < SMALLEST:
            shape = " x ".join(map(str, case.voxels.shape))
            raise InputError(f"{case.name}: has {shape} voxels, at least {SMALLEST} a side were expected")

        turn = case.geometry.canonical()
        voxels = turn.apply(case.voxels)
        with context.stage("prepare"):
            side = SIDES["box"]
            intensities = Intensities.of(resized(voxels, (side, side, side)))
            if intensities.flat:
                raise InputError(f"{case.name}: has no contrast, 99 % of its voxels are {intensities.low:g}")
            image = intensities.resized(voxels, (side, side, side))
        coarse = _run(context, "box", image)
        with context.stage("prepare"):
            found = largest_component(above(coarse, BOX_THRESHOLD, image.shape))
            box = brain_box(found, voxels.shape)
            if box is None:
                raise _no_brain(case)
            side = SIDES["mask"]
            image = intensities.resized(voxels[box], (side, side, side))
        fine = _run(context, "mask", image)
        with context.stage("restore"):
            inside = above(fine, threshold, voxels[box].shape)
            del fine, image
            inside = filled(largest_component(inside))
            if not inside.any():
                raise _no_brain(case)
            labels = np.zeros(case.voxels.shape, dtype=np.uint8)
            canonical = turn.apply(labels)  # a view: what is written here lies right in ``labels``
            canonical[box] = inside
            if layers:
                canonical[...] = grown(canonical.astype(bool), layers)
            volume_ml = np.count_nonzero(labels) * case.geometry.voxel_volume_mm3 / 1000
        structures = tuple(Label.of(label) for label in self.card.labels)
        return Segmentation(
            labels=labels, structures=structures, geometry=case.geometry, measurements={"volume_ml": volume_ml}
        )


def _run(context: Context, graph: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
    engine = context.engines[graph]  # built or loaded here, where it is first asked for
    with context.stage("network"):
        return engine({"image": image[None, None]})["probability"]


def _no_brain(case: Case) -> InputError:
    return InputError(
        f"{case.name}: no brain was found, a T1-weighted MR scan of a human head was expected",
        remedy="Look at the scan and at its orientation; a head that lies wrongly in the file is not recognised",
    )
