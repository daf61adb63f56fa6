"""Tiny models, an exporter and what else the tests of the engines share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omlab.cards import EngineCard, ModelCard, from_table
from omlab.engines import backend_of
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Model

MODULES = {
    "onnxruntime": ["onnxruntime"],
    "openvino": ["openvino"],
    "tensorrt": ["tensorrt", "tensorrt_rtx"],
    "torch": ["torch"],
}


def engine_card(name: str) -> EngineCard:
    return from_table(
        EngineCard,
        {
            "name": name,
            "summary": name,
            "precisions": ["float32"],
            "devices": ["cpu"],
            "modules": MODULES[name],
            "install": f"omlab[{name}]",
        },
    )


def backends(*names: str) -> list[Any]:
    return [backend_of(engine_card(name)) for name in names or MODULES]


def card(name: str) -> ModelCard:
    return from_table(
        ModelCard,
        {
            "name": name,
            "plugin": f"omlab-{name}",
            "summary": "A network of a few numbers",
            "modality": ["mr"],
            "task": ["segmentation"],
            "inputs": ["volume"],
            "outputs": ["segmentation"],
            "variants": [{"name": "base"}],
            "licence_code": {"spdx": "MIT"},
            "licence_weights": {"spdx": "MIT"},
            "intended_use": "tests",
            "limits": "tests",
        },
    )


class Segmenter(Model):
    """One convolution to three classes on 12 x 10 x 8 voxels."""

    def __init__(self, name: str = "segmenter") -> None:
        super().__init__(card(name))
        self.networks_built = 0

    def graphs(self, variant: Any) -> tuple[Graph, ...]:
        return (
            Graph(
                name="net",
                inputs=(TensorSpec("image", "float32", (1, 1, 12, 10, 8), "batch channel i j k"),),
                outputs=(TensorSpec("scores", "float32", (1, 3, 12, 10, 8), "batch class i j k"),),
                judge=Judge.LABELS,
            ),
        )

    def network(self, graph: Graph, variant: Any, files: Mapping[str, Path]) -> Any:
        import torch

        self.networks_built += 1
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 1))


class Embedder(Model):
    """One linear layer on batches of vectors."""

    def __init__(self, name: str = "embedder") -> None:
        super().__init__(card(name))

    def graphs(self, variant: Any) -> tuple[Graph, ...]:
        ranges = {"batch": (1, 2, 8)}
        return (
            Graph(
                name="net",
                inputs=(TensorSpec("vector", "float32", ("batch", 16), "batch feature", ranges=ranges),),
                outputs=(TensorSpec("embedding", "float32", ("batch", 5), "batch feature", ranges=ranges),),
                judge=Judge.EMBEDDING,
            ),
        )

    def network(self, graph: Graph, variant: Any, files: Mapping[str, Path]) -> Any:
        import torch

        torch.manual_seed(3)
        return torch.nn.Linear(16, 5)


class Exporter:
    """torch's own exporter with the names of the graph; ``scale`` other than 1 makes a wrong ONNX file."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.exports = 0

    def __call__(self) -> Exporter:
        return self

    def export(self, network: Any, graph: Graph, path: Path) -> None:
        import torch

        self.exports += 1
        scale = self.scale

        class Scaled(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = network

            def forward(self, x: Any) -> Any:
                y = self.inner(x)
                return (
                    y
                    if scale == 1.0
                    else y * torch.linspace(-scale, scale, y.shape[1]).reshape([1, -1] + [1] * (y.ndim - 2))
                )

        (given,) = graph.inputs
        shapes = {
            axis: torch.export.Dim(size, min=1, max=8) for axis, size in enumerate(given.shape) if isinstance(size, str)
        }
        torch.onnx.export(
            Scaled().eval(),
            (torch.zeros(given.concrete()),),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=[given.name],
            output_names=[graph.outputs[0].name],
            dynamic_shapes=[shapes] if shapes else None,
        )


def ask(model: Model, root: Path, exporter: Any = None, names: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Arguments of :func:`omlab.engines.provide` and its kin."""
    variant = model.card.variants[0]
    return {
        "model": model,
        "variant": variant,
        "graph": model.graphs(variant)[0],
        "files": {},
        "weights_digest": "0" * 64,
        "root": root,
        "backends": backends(*names),
        "exporter": exporter,
        **more,
    }


def example(model: Model) -> dict[str, np.ndarray]:
    variant = model.card.variants[0]
    return next(model.examples(model.graphs(variant)[0], variant))


def manifests(root: Path) -> Iterator[dict[str, Any]]:
    for path in root.rglob("manifest.json"):
        yield json.loads(path.read_text())
