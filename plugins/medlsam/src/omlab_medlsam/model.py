"""MedLSAM: the model of a directory that the adapter left. Organs by templates, boxes by MedLAM, masks by MedSAM."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import ModelCard, Variant
from omlab.cases import Case, Volume
from omlab.errors import InputError, UsageError, WeightsError
from omlab.files import write_text
from omlab.geometry import Turn
from omlab.graphs import Graph
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import Label, Segmentation
from omlab_medlsam import segmenting
from omlab_medlsam.localising import Located, boxes, in_source, locate, look
from omlab_medlsam.medlam import MedLam, check_crops, volume_of
from omlab_medlsam.scans import Prepared, prepare
from omlab_medlsam.templates import FILE, Template, load

if TYPE_CHECKING:
    import torch

#: Voxels of 3 mm that the middle of an organ may lie outside of the scan: coarse places are off by about as much.
OUTSIDE = 5
LOCALISATION = "localisation.json"
#: Options of every adapted model, as its card has them.
OPTIONS = (
    {"name": "crops", "type": "int", "default": 10, "help": "Crops that the place of the scan is the mean of."},
    {"name": "seed", "type": "int", "default": 2023, "help": "Of the places of the crops."},
    {"name": "threshold", "type": "float", "default": 0.5, "help": "A voxel is taken if its probability is above."},
    {"name": "boxes", "type": "bool", "default": False, "help": "Stop at the boxes: they are the label map."},
)  # fmt: skip


class MedLsam(Model):
    """Organs of the card's labels in a CT. Shares the base's networks, so no engine is built twice."""

    def __init__(self, card: ModelCard, base: MedLam, base_variant: Variant, folder: Path) -> None:
        super().__init__(card)
        self.base, self.base_variant, self.path = base, base_variant, folder / FILE
        self._templates: dict[int, Template] | None = None

    @property
    def templates(self) -> dict[int, Template]:
        """By label value. Raises :class:`omlab.errors.WeightsError`."""
        if self._templates is None:
            self._templates = load(self.path, [label.value for label in self.card.labels])
        return self._templates

    @property
    def scales(self) -> list[int]:
        """Of the features that places are refined with."""
        return [int(i) for i in self.card.variants[0].config.get("scales", (0, 1, 2))]

    def graph_owner(self, variant: Variant) -> tuple[Model, Variant]:
        """The base, whose networks are left as they are."""
        return self.base, self.base_variant

    def own_weights(self, variant: Variant) -> dict[str, Path]:
        """The templates, on which results depend. Raises :class:`omlab.errors.WeightsError`."""
        if not self.path.is_file():
            raise WeightsError(f"{self.path} cannot be read: it is missing", remedy="Make the model again")
        return {"templates": self.path}

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """What is needed to run: templates are described already."""
        found = [g for g in self.base.graphs(self.base_variant) if g.name != "describe"]
        wanted = [g for g in found if g.name != "match" or self.scales]
        return (*wanted, *self.base.segmenter_graphs(self.base_variant))

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The base's."""
        return self.base.network(graph, self.base_variant, files)

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The base's."""
        return self.base.untrained(graph, self.base_variant)

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """The base's."""
        return self.base.examples(graph, self.base_variant)

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` for options out of their range."""
        check_crops(self.card.name, options)
        if not 0 < options["threshold"] < 1:
            raise UsageError(
                f"'{self.card.name}': option 'threshold' is between 0 and 1, found {options['threshold']:g}"
            )

    def predict(self, case: Case, context: Context) -> Segmentation:
        """One structure an organ, on the scan's own grid, and ``localisation.json`` with points and boxes.

        Raises
        ------
        InputError
            The case is no volume, its spacing is impossible, there is only air in its middle, or none of the organs
            lies in its field of view.
        """
        scan = volume_of(case, self.card.name)
        with context.stage("prepare"):
            prepared = prepare(scan)
        found = self._located(prepared, context, case.name)
        inside = {value: located for value, located in found.items() if in_view(located, prepared)}
        if not inside:
            names = ", ".join(label.name for label in self.card.labels)
            raise InputError(
                f"{case.name}: no organ of the model lies in its field of view ({names})",
                remedy="Take a scan that shows one of them, or templates of what this one shows",
            )
        turn = Turn.to(scan.geometry, segmenting.ORIENTATION)
        placed = {
            value: segmenting.turned_boxes(boxes(located.points, prepared), turn) for value, located in inside.items()
        }
        labels = self._labels(turn.apply(scan.voxels).transpose(2, 1, 0), placed, context)
        with context.stage("restore"):
            kept = labels.astype(np.uint8) if max(found) < 256 else labels
            restored = np.ascontiguousarray(turn.undo(kept.transpose(2, 1, 0)))
        structures = [Label.of(label) for label in self.card.labels]
        return Segmentation(
            labels=restored, structures=structures, geometry=scan.geometry,
            columns={
                "in_field_of_view": [float(label.value in inside) for label in structures],
                **({"similarity": [_similarity(found[label.value]) for label in structures]} if self.scales else {}),
            },
            files={LOCALISATION: _writer(_record(structures, found, inside, prepared, scan))},
        )  # fmt: skip

    def _located(self, prepared: Prepared, context: Context, name: str) -> dict[int, Located]:
        patch = int(self.base_variant.config["patch"])
        templates = self.templates
        position = context.engines["position"]
        match = context.engines["match"] if self.scales else None
        points = sum(len(t.positions) for t in templates.values()) if self.scales else 0
        done = 0

        def tell() -> None:
            nonlocal done
            done += 1
            context.progress("network", done, points, "points")

        with context.stage("network"):
            query = look(
                position, prepared.image, patch, crops=int(context.options["crops"]),
                seed=int(context.options["seed"]), name=name,
            )  # fmt: skip
            return {
                value: locate(match, query, template, patch, scales=self.scales, tell=tell)
                for value, template in templates.items()
            }

    def _labels(
        self, volume: NDArray[Any], placed: Mapping[int, NDArray[np.int64]], context: Context
    ) -> NDArray[np.uint16]:
        sam = self.base_variant.config.get("sam")
        if sam is None or context.options["boxes"]:
            return segmenting.filled(placed, volume.shape)
        encoder, decoder = context.engines["encoder"], context.engines["decoder"]  # made or loaded here, in no stage
        with context.stage("network"):
            return segmenting.segmented(
                encoder, decoder, volume, placed, int(sam["side"]), threshold=float(context.options["threshold"]),
                tell=lambda done, total: context.progress("network", done, total, "slices"),
            )  # fmt: skip


def in_view(located: Located, prepared: Prepared) -> bool:
    """Does the middle of the coarse points lie in the scan, or at most :data:`OUTSIDE` voxels beside it?"""
    middle = located.coarse.mean(axis=0)
    return bool((middle >= -OUTSIDE).all() and (middle < np.array(prepared.image.shape) + OUTSIDE).all())


def _similarity(located: Located) -> float:
    return float(located.similarity.mean())


def _record(
    structures: list[Label], found: Mapping[int, Located], inside: Mapping[int, Located], prepared: Prepared,
    scan: Volume,
) -> dict[str, Any]:  # fmt: skip
    """Points and boxes as voxels (i, j, k) of the file, and points in RAS millimetres."""
    organs = []
    for label in structures:
        located = found[label.value]
        points = in_source(located.points, prepared)[..., ::-1]
        corners = boxes(located.points, prepared)[..., ::-1]
        organs.append({
            "label": label.value, "name": label.name, "in-field-of-view": label.value in inside,
            "similarity": [round(float(s), 5) for s in located.similarity],
            "parts": [
                {
                    "points": one.tolist(), "points-ras-mm": np.round(scan.geometry.to_world(one), 2).tolist(),
                    "box": box.tolist(),
                }
                for one, box in zip(points, corners, strict=True)
            ],
        })  # fmt: skip
    return {"space": "voxel", "axes": "ijk", "organs": organs}


def _writer(record: Mapping[str, Any]) -> Callable[[Path], None]:
    return lambda path: write_text(path, json.dumps(record, indent=1))
