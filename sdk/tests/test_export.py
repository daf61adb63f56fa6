"""torch to ONNX: symbolic dimensions stay symbolic, large networks keep their data beside, and defects are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from omlab.errors import EngineError  # noqa: E402
from omlab.graphs import Graph, TensorSpec  # noqa: E402
from omlab_sdk import export  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter, check  # noqa: E402

RANGES = {"batch": (1, 2, 8), "length": (1, 16, 64)}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


class Frozen(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.ones(2, 16, 1)


def _graph(outputs: int = 3, dtype: str = "float32") -> Graph:
    return Graph(
        name="net",
        inputs=(TensorSpec("x", "float32", ("batch", "length", 4), ranges=RANGES),),
        outputs=(TensorSpec("y", dtype, ("batch", "length", outputs), ranges=RANGES),),
    )


def test_dimensions_stay_symbolic(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    network = Net().eval()
    TorchOnnxExporter().export(network, _graph(), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 4), (5, 33, 4)):
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        (y,) = session.run(None, {"x": x})
        with torch.inference_mode():
            np.testing.assert_allclose(y, network(torch.from_numpy(x)).numpy(), atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_large_networks_keep_their_data_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "EXTERNAL_BYTES", 10)
    path = tmp_path / "net.onnx"
    TorchOnnxExporter().export(Net().eval(), _graph(), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 2, 4), np.float32)})[0].shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("graph", "message"),
    [(_graph(outputs=5), r"has the shape .*, declared"), (_graph(dtype="int64"), "is float32, declared int64")],
)
def test_what_was_declared_wrongly_is_told(tmp_path: Path, graph: Graph, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        TorchOnnxExporter().export(Net().eval(), graph, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_dimension_that_became_a_constant_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"(cannot be exported|became a constant)"):
        TorchOnnxExporter().export(Frozen().eval(), _graph(), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    TorchOnnxExporter().export(Net().eval(), _graph(), path)
    model = onnx.load(path)
    model.graph.output[0].name = "z"
    model.graph.node[-1].output[0] = "z"
    onnx.save(model, path)
    with pytest.raises(EngineError, match="has no output 'y', it has z"):
        check(path, _graph())
