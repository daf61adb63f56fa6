"""Checks of graphs: goldens, export, engines, determinism, a case end to end, bad inputs.

Where the weights of a model are at hand they are used; else its untrained network with name-seeded weights, which has
the same shapes and arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from omlab.cards import ModelCard, Variant
from omlab.cases import Volume
from omlab.errors import InputError, OmlabError
from omlab.geometry import Geometry
from omlab.graphs import Graph
from omlab.loading import EngineChoice, LoadedModel
from omlab.model import Model
from omlab.running import run
from omlab.vocabulary import InputKind, Kind
from omlab.weights import missing
from omlab_sdk.contract.base import Broken, Skipped, Subject
from omlab_sdk.contract.samples import SAMPLES, sample_prompts, volume, write_sample


class Seeded(Model):
    """A model whose network is its untrained one with name-seeded weights."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.card)
        self._model = model

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        return self._model.graphs(variant)

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        return self._model.examples(graph, variant)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> Any:
        from omlab_sdk.golden import seed_module

        network = self._model.untrained(graph, variant)
        seed_module(network)
        return network.eval()

    def validate(self, options: Any, prompts: Any) -> None:
        self._model.validate(options, prompts)

    def open(self, case: Any, context: Any) -> Any:
        return self._model.open(case, context)

    def predict(self, case: Any, context: Any) -> Any:
        return self._model.predict(case, context)


def loaded_models(subject: Subject, **choice: Any) -> list[tuple[LoadedModel, bool]]:
    """Every model of the plugin, in its first variant whose files are here, else seeded; with whether it is seeded."""
    found = []
    for card in subject.cards(Kind.MODEL):
        assert isinstance(card, ModelCard)
        model: Model = subject.registry.load(Kind.MODEL, card.name)
        # Files are looked for where the user has them, engines are kept in the scratch folder.
        shared = (*subject.settings.shared_roots, subject.settings.assets_root)
        settings = attrs.evolve(subject.settings, home=subject.work / "home", shared_roots=shared)
        here = [v for v in card.variants if not missing(v.weights, settings)]
        seeded = not here or not here[0].weights
        if here and here[0].weights:
            behind, variant = model, here[0]
        else:
            behind, variant = Seeded(model), attrs.evolve(card.variants[0], weights=())
        found.append(
            (
                LoadedModel(
                    behind, variant, registry=subject.registry, settings=settings, choice=EngineChoice(**choice)
                ),
                seeded,
            )
        )
    return found


def goldens(subject: Subject) -> str:
    """The plugin's golden files agree with its network."""
    folders = [subject.plugin.path.parent / "goldens"]
    if subject.project is not None:
        folders.append(subject.project / "goldens")
    files = sorted(path for folder in folders if folder.is_dir() for path in folder.glob("*.npz"))
    if not files:
        raise Skipped("no golden files; make some with the upstream code, so that yours is proven equal")
    from omlab_sdk.golden import verify_file

    rows = [row for file in files for row in verify_file(file)]
    wrong = [row for row in rows if not row.ok]
    if wrong:
        raise Broken(
            f"{len(wrong)} of {len(rows)} outputs are off, first {wrong[0].file.name} {wrong[0].output}: "
            f"{wrong[0].error:.2g}",
            "tools/golden FILE shows every output",
        )
    worst = max(row.error for row in rows)
    return f"{len(rows)} outputs of {len(files)} files agree, worst relative error {worst:.1e}"


def export(subject: Subject) -> str:
    """Every graph exports to an ONNX file that onnx accepts."""
    from omlab.exporting import export as write

    count = 0
    for loaded, _ in loaded_models(subject):
        folder = subject.work / "onnx" / loaded.card.name
        try:
            count += len(write(loaded, folder))
        except OmlabError as error:
            raise Broken(str(error)) from error
    return f"{count} graphs exported and checked"


def engines(subject: Subject) -> str:
    """Every engine that can run here agrees with the torch reference, or its reason is known."""
    told = []
    admitted = 0
    for loaded, seeded in loaded_models(subject):
        for graph in loaded.graphs:
            rows = loaded.tune(graph, rounds=1)
            good = [row for row in rows if row.admitted]
            admitted += len(good)
            if not good:
                raise Broken(
                    f"no engine agrees with the reference for {loaded.card.name}/{graph.name}: "
                    + "; ".join(row.reason for row in rows),
                    "Look at the kept tensors, or set tolerances that your task allows in Graph.tolerances",
                )
            told.append(f"{graph.name}{' (seeded)' if seeded else ''}: " + ", ".join(_label(row) for row in good))
    return f"{admitted} admitted. " + "; ".join(told)


def _label(row: Any) -> str:
    return f"{row.backend} {row.precision}"


def deterministic(subject: Subject) -> str:
    """The same input gives the same answer, twice."""
    for loaded, _ in loaded_models(subject):
        for graph in loaded.graphs:
            example = next(iter(loaded.model.examples(graph, loaded.variant)))
            engine = loaded.engines[graph.name]
            first, second = engine(example), engine(example)
            for name, array in first.items():
                if not np.array_equal(array, second[name]):
                    raise Broken(f"{loaded.card.name}/{graph.name}: output '{name}' differs between two runs")
                if not np.isfinite(array).all():
                    raise Broken(f"{loaded.card.name}/{graph.name}: output '{name}' is not finite on its own example")
    return "equal to the last bit"


def end_to_end(subject: Subject) -> str:
    """A case from file to files: result on the case's grid, picture, result.json."""
    told = []
    for loaded, seeded in loaded_models(subject):
        kind = next((k for k in loaded.card.inputs if k in SAMPLES), None)
        if kind is None:
            raise Skipped(f"there is no sample of kind {', '.join(loaded.card.inputs)} yet")
        folder = subject.work / "cases" / loaded.card.name
        folder.mkdir(parents=True, exist_ok=True)
        path = write_sample(kind, folder)
        (row,) = run(loaded, [path], folder / "out", prompts=sample_prompts(loaded.card.prompts, kind))
        if row.status == "failed":
            if isinstance(row.error, InputError):
                told.append(f"{loaded.card.name} refuses the synthetic sample: {row.cause}")
                continue
            raise Broken(f"{loaded.card.name}: {row.cause}", row.remedy)
        assert row.folder is not None
        record = json.loads((row.folder / "result.json").read_text("utf-8"))
        lacking = [name for name in record["files"].values() if not (row.folder / name).is_file()]
        if lacking:
            raise Broken(f"{loaded.card.name}: result.json names {lacking[0]}, which is not there")
        if record["result"]["kind"] == "segmentation" and kind is InputKind.VOLUME:
            _same_grid(path, row.folder / record["files"]["nifti"])
        told.append(f"{loaded.card.name}{' (seeded)' if seeded else ''}: {row.headline}")
    return "; ".join(told)


def _same_grid(scan: Path, mask: Path) -> None:
    from omlab.cases import read

    a, b = read(scan), read(mask)
    assert isinstance(a, Volume)
    assert isinstance(b, Volume)
    if not a.geometry.same_grid(b.geometry):
        raise Broken(
            f"the mask lies on another grid than the scan: {b.geometry.shape} {b.geometry.orientation}, expected "
            f"{a.geometry.shape} {a.geometry.orientation}",
            "Turn and resample the result back before it is returned",
        )


def geometry(subject: Subject) -> str:
    """A volume stored in another orientation gives the same mask in the patient."""
    from omlab.geometry import Turn
    from omlab.results import Segmentation

    told = []
    for loaded, _ in loaded_models(subject):
        if InputKind.VOLUME not in loaded.card.inputs:
            continue
        case = volume()
        turn = Turn.to(case.geometry, "PIR")
        turned = attrs.evolve(case, voxels=np.ascontiguousarray(turn.apply(case.voxels)), geometry=turn.target)
        try:
            asked = _in_patient(sample_prompts(loaded.card.prompts, InputKind.VOLUME), case.geometry)
            straight, other = loaded(case, prompts=asked), loaded(turned, prompts=asked)
        except InputError as error:
            raise Skipped(f"{loaded.card.name} refuses the synthetic sample: {error.message}") from None
        if isinstance(straight, Segmentation) and isinstance(other, Segmentation):
            flips = int((turn.undo(other.labels) != straight.labels).sum())
            # Resampling may round a voxel on the border the other way; a wrong turn flips a large part.
            if flips > 0.002 * straight.labels.size:
                raise Broken(
                    f"{loaded.card.name}: {flips} of {straight.labels.size} voxels change when the scan is stored in "
                    "another orientation",
                    "Bring the scan to one orientation with Geometry.canonical() first, and undo it at the end",
                )
            told.append(f"{loaded.card.name}: {flips} of {straight.labels.size} voxels differ")
    if not told:
        raise Skipped("no model of the plugin segments volumes")
    return "; ".join(told)


def _in_patient(prompts: list[dict[str, Any]] | None, geometry: Geometry) -> list[dict[str, Any]] | None:
    """Prompts in millimetres in place of voxels: they stay where they are when a file is stored another way."""
    if prompts is None:
        return None
    placed = []
    for item in prompts:
        found = {**item, "space": "ras-mm"}
        if "points" in item:
            found["points"] = geometry.to_world(item["points"]).tolist()
        if "boxes" in item:
            corners = geometry.to_world(np.reshape(item["boxes"], (-1, 2, 3)))
            found["boxes"] = corners.reshape(-1, 6).tolist()
        placed.append(found)
    return placed


def bad_inputs(subject: Subject) -> str:
    """Files that are no case of the model give one clear error each, and nothing is half-written."""
    count = 0
    for loaded, _ in loaded_models(subject):
        folder = subject.work / "bad" / loaded.card.name
        folder.mkdir(parents=True, exist_ok=True)
        wrong_kind = InputKind.IMAGE if InputKind.VOLUME in loaded.card.inputs else InputKind.VOLUME
        bad = {"missing": folder / "missing.nii.gz", "empty": folder / "empty.nii.gz", "text": folder / "text.png"}
        bad["empty"].write_bytes(b"")
        # To a language model any text is a case, so it gets one that is not in UTF-8.
        bad["text"].write_bytes("b\xe4d".encode("latin-1") if InputKind.TEXT in loaded.card.inputs else b"no image")
        if wrong_kind not in loaded.card.inputs:
            bad["wrong kind"] = write_sample(wrong_kind, folder)
        for what, path in bad.items():
            out = folder / "out"
            (row,) = run(loaded, [path], out, prompts=sample_prompts(loaded.card.prompts, wrong_kind))
            if row.status != "failed" or row.code == "defect":
                raise Broken(
                    f"{loaded.card.name}: a {what} file gives '{row.status}' {row.cause}", "Raise an InputError"
                )
            if any(p.is_file() for p in out.rglob("*")):
                raise Broken(f"{loaded.card.name}: a {what} file leaves files behind in the output folder")
            count += 1
    return f"{count} bad files, each refused with a reason"


__all__ = ["bad_inputs", "deterministic", "end_to_end", "engines", "export", "geometry", "goldens"]
