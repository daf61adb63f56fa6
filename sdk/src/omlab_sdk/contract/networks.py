"""Checks of graphs: goldens, export, engines, determinism, a case end to end, bad inputs.

They look at the small network that a model gives for checks (:meth:`omlab.model.Model.small`), with weights made up
from their names: it has the code, and so the arithmetic, of the published one. In full size, and of models that are
small as published, the published weights are taken where they are at hand.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from omlab.cases import Volume
from omlab.errors import EngineError, InputError, OmlabError
from omlab.geometry import Geometry
from omlab.graphs import Graph
from omlab.loading import LoadedModel
from omlab.memory import usable_cpus
from omlab.running import run
from omlab.vocabulary import InputKind
from omlab_sdk.contract.base import Broken, Skipped, Subject
from omlab_sdk.contract.models import Checked, Seeded, checked_models
from omlab_sdk.contract.samples import SAMPLES, sample_prompts, volume, write_sample
from omlab_sdk.golden import Row

#: Processes that verify golden files, and files that are worth one: it imports torch before it begins.
MOST_SLOTS, FILES_A_SLOT = 4, 6
#: Compute capability that engines are built for where there is no GPU.
AHEAD = "8.9"


def goldens(subject: Subject) -> str:
    """The plugin's golden files agree with its network."""
    folders = [subject.plugin.path.parent / "goldens"]
    if subject.project is not None:
        folders.append(subject.project / "goldens")
    files = sorted(path for folder in folders if folder.is_dir() for path in folder.glob("*.npz"))
    if not files:
        raise Skipped("no golden files; make some with the upstream code, so that yours is proven equal")
    rows = _verified(files)
    wrong = [row for row in rows if not row.ok]
    if wrong:
        first = wrong[0]
        raise Broken(
            f"{len(wrong)} of {len(rows)} outputs are off, first {first.file.name} {first.output}: "
            f"{first.note or f'{first.error:.2g}'}",
            "tools/golden FILE shows every output",
        )
    worst = max(row.error for row in rows)
    return f"{len(rows)} outputs of {len(files)} files agree, worst relative error {worst:.1e}"


def _verified(files: list[Path]) -> list[Row]:
    """Rows of all files, from processes of their own: files side by side, and all beside the other checks."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    slots = min(usable_cpus(), MOST_SLOTS, -(-len(files) // FILES_A_SLOT))
    with ProcessPoolExecutor(slots, get_context("spawn")) as pool:
        return [row for rows in pool.map(verified_apart, files) for row in rows]


def verified_apart(file: Path) -> list[Row]:
    """Rows of one file; what goes wrong is a row too, since not every exception survives the way between processes."""
    from omlab_sdk.golden import TOLERANCE, rows_of

    return list(rows_of([file], TOLERANCE))


def export(subject: Subject) -> str:
    """Every graph exports to an ONNX file that onnx accepts."""
    count = 0
    for model in checked_models(subject):
        loaded = model.loaded
        for graph in {g.name: g for g in (*loaded.model.exports(loaded.variant), *loaded.graphs)}.values():
            try:
                _export(loaded, graph, subject.work / "onnx" / model.name)
            except OmlabError as error:
                raise Broken(f"{model.label}: {error}") from error
            count += 1
    return f"{count} graphs exported and checked"


def _export(loaded: LoadedModel, graph: Graph, folder: Path) -> None:
    """Where the engine store keeps it, so that engines are made from the same file."""
    if loaded.builder(graph) is not None:
        return  # no plain ONNX: its own engine writes the folder that it loads, in the check of engines
    if graph in loaded.graphs:
        loaded.onnx(graph)
        return
    exporter = loaded.exporter()
    if exporter is None:
        raise EngineError("no installed plugin can write ONNX files", remedy="pip install 'omlab-sdk[torch]'")
    folder.mkdir(parents=True, exist_ok=True)
    exporter.export(loaded.model.network(graph, loaded.variant, loaded.files), graph, folder / f"{graph.name}.onnx")


def engines(subject: Subject) -> str:
    """Every engine that can run here agrees with the torch reference, or its reason is known; what builds for GPUs that
    are not here does so."""
    told = []
    admitted = 0
    for model in checked_models(subject):
        loaded = model.loaded
        for graph in loaded.graphs:
            rows = loaded.tune(graph, rounds=0)
            good = [row for row in rows if row.admitted]
            admitted += len(good)
            if not good:
                raise Broken(
                    f"no engine agrees with the reference for {model.label}, graph '{graph.name}': "
                    + "; ".join(row.reason for row in rows),
                    "Look at the kept tensors, or set tolerances that your task allows in Graph.tolerances",
                )
            ahead = _built_ahead(model, graph)
            told.append(f"{graph.name} of {model.name}: " + ", ".join([*map(_label, good), *ahead]))
    return f"{admitted} admitted. " + "; ".join(told)


def _label(row: Any) -> str:
    return f"{row.backend} {row.precision}"


def _built_ahead(model: Checked, graph: Graph) -> list[str]:
    """What was built for a GPU that is not here, and so is not compared."""
    told = []
    for backend in model.loaded.backends():
        serves = graph.engines == () or backend.card.name in graph.engines
        if backend.provider and serves and not backend.unavailable() and not backend.targets(graph):
            model.loaded.build_for(graph, [AHEAD], backend=backend.card.name)
            told.append(f"{backend.provider} builds for {AHEAD}")
    return told


def deterministic(subject: Subject) -> str:
    """The same input gives the same answer, twice."""
    for model in checked_models(subject):
        loaded = model.loaded
        for graph in loaded.graphs:
            example = next(iter(loaded.model.examples(graph, loaded.variant)))
            engine = loaded.engines[graph.name]
            first, second = engine(example), engine(example)
            for name, array in first.items():
                if not np.array_equal(array, second[name]):
                    raise Broken(f"{model.label}, graph '{graph.name}': output '{name}' differs between two runs")
                if not np.isfinite(array).all():
                    raise Broken(
                        f"{model.label}, graph '{graph.name}': output '{name}' is not finite on its own example"
                    )
    return "equal to the last bit"


def end_to_end(subject: Subject) -> str:
    """A case from file to files: result on the case's grid, picture, result.json."""
    told = []
    for model in checked_models(subject):
        loaded = model.loaded
        kind = next((k for k in loaded.card.inputs if k in SAMPLES), None)
        if kind is None:
            raise Skipped(f"there is no sample of kind {', '.join(loaded.card.inputs)} yet")
        folder = subject.work / "cases" / model.name
        folder.mkdir(parents=True, exist_ok=True)
        path = write_sample(kind, folder)
        (row,) = run(loaded, [path], folder / "out", prompts=sample_prompts(loaded.card.prompts, kind))
        if row.status == "failed":
            if isinstance(row.error, InputError):
                told.append(f"{model.name} refuses the synthetic sample: {row.cause}")
                continue
            raise Broken(f"{model.label}: {row.cause}", row.remedy)
        assert row.folder is not None
        record = json.loads((row.folder / "result.json").read_text("utf-8"))
        lacking = [name for name in record["files"].values() if not (row.folder / name).is_file()]
        if lacking:
            raise Broken(f"{loaded.card.name}: result.json names {lacking[0]}, which is not there")
        if record["result"]["kind"] == "segmentation" and kind is InputKind.VOLUME:
            _same_grid(path, row.folder / record["files"]["nifti"])
        told.append(f"{model.name}: {row.headline}")
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
    for model in checked_models(subject):
        loaded = model.loaded
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
    for model in {one.loaded.card.name: one for one in checked_models(subject)}.values():
        loaded = model.loaded
        for graph in loaded.graphs:
            with suppress(OmlabError):  # told by the check of engines
                loaded.engines[graph.name]  # now: a run that ends at once must not leave a thread behind that makes it
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


__all__ = ["Seeded", "bad_inputs", "deterministic", "end_to_end", "engines", "export", "geometry", "goldens"]
