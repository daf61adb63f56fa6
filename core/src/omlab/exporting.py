"""Write the graphs of a model as ONNX files for use elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import attrs

from omlab.errors import EngineError
from omlab.files import write_text
from omlab.loading import LoadedModel
from omlab.progress import Listener, Progress, silent
from omlab.report import jsonable
from omlab.running import prepare_folder


def export(loaded: LoadedModel, folder: Path, *, listener: Listener = silent) -> dict[str, Path]:
    """Write every graph of ``loaded`` as ``<graph>.onnx`` below ``folder``, and ``graphs.json`` that describes them. A
    graph that only an engine of its own can run (a language model's) becomes the folder ``<graph>`` that it loads.

    Returns graph name -> path. Raises :class:`omlab.errors.EngineError` where no exporter is installed.
    """
    exporter = loaded.exporter()
    if exporter is None:
        raise EngineError(
            "no installed plugin can write ONNX files",
            remedy=f"Install one: pip install '{loaded.card.plugin or 'omlab-sdk'}[convert]'",
        )
    prepare_folder(folder)
    files = {}
    described = []
    for graph in loaded.model.exports(loaded.variant):
        listener(Progress(f"{loaded.card.name}/{graph.name}", "export"))
        network = loaded.model.network(graph, loaded.variant, loaded.files)
        builder = loaded.builder(graph)
        if builder is None:
            path = folder / f"{graph.name}.onnx"
            exporter.export(network, graph, path)
        else:  # no plain ONNX: the folder that its own engine loads
            path = folder / graph.name
            path.mkdir(exist_ok=True)
            builder[0].build_network(graph, network, path, builder[1])
        files[graph.name] = path
        described.append(
            {
                "name": graph.name,
                "file": path.name,
                "inputs": [attrs.asdict(spec) for spec in graph.inputs],
                "outputs": [attrs.asdict(spec) for spec in graph.outputs],
            }
        )
    summary = {
        "model": loaded.card.name, "variant": loaded.variant.name, "version": loaded.card.version,
        "weights_sha256": loaded.weights_sha256, "licence_weights": loaded.card.licence_weights.spdx,
        "graphs": described,
    }  # fmt: skip
    write_text(folder / "graphs.json", json.dumps(jsonable(summary), indent=2))
    return files
