"""Exact algebra before OpenVINO compiles a graph: the same numbers, fewer sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from torch import nn  # noqa: E402

from omlab.engines.openvino_rewriting import split_upsampled, transposed  # noqa: E402
from omlab.graphs import Graph, TensorSpec  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402


class Stage(nn.Module):
    """A coarse tensor repeated, joined to a fine one on either side, and convolved by kernels of two sizes."""

    def __init__(self, dimensions: int, factors: tuple[int, ...], *, first: bool, stride: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        sides = (3, 1, 5)[:dimensions]
        self.factors, self.first = factors, first
        self.wide = convolution(9, 6, sides, stride, tuple(side // 2 for side in sides))
        self.narrow = convolution(9, 6, 1, stride)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        for axis, factor in enumerate(self.factors):
            shape = list(coarse.shape)
            many = coarse.unsqueeze(axis + 3).expand(*shape[: axis + 3], factor, *shape[axis + 3 :])
            coarse = many.reshape(*shape[: axis + 2], shape[axis + 2] * factor, *shape[axis + 3 :])
        parts = [coarse, fine] if self.first else [fine, coarse]
        joined = torch.cat(parts, 1)
        return self.wide(joined) + self.narrow(joined)


class AtOnce(Stage):
    """The same with all axes repeated in one step, as networks write it."""

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        n, c, *sides = coarse.shape
        thin = [n, c, *(v for side in sides for v in (side, 1))]
        wide = [n, c, *(v for pair in zip(sides, self.factors, strict=True) for v in pair)]
        whole = [n, c, *(side * factor for side, factor in zip(sides, self.factors, strict=True))]
        coarse = coarse.reshape(thin).expand(wide).reshape(whole)
        joined = torch.cat([coarse, fine] if self.first else [fine, coarse], 1)
        return self.wide(joined) + self.narrow(joined)


def changed_and_outputs(stage: Stage, tmp_path: Path, seed: int) -> tuple[int, np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    sides = (4, 3, 5)[: len(stage.factors)]
    coarse = torch.randn(1, 5, *sides, generator=generator)
    fine = torch.randn(1, 4, *(s * f for s, f in zip(sides, stage.factors, strict=True)), generator=generator)
    with torch.inference_mode():
        expected = stage(coarse, fine).numpy()
    graph = Graph(
        name="stage",
        inputs=tuple(TensorSpec(n, "float32", tuple(t.shape)) for n, t in (("coarse", coarse), ("fine", fine))),
        outputs=(TensorSpec("found", "float32", expected.shape),),
    )
    path = tmp_path / "stage.onnx"
    TorchOnnxExporter().export(stage.eval(), graph, path)
    model = openvino.Core().read_model(str(path))
    changed = split_upsampled(model)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return changed, expected, compiled([coarse.numpy(), fine.numpy()])[0]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 3)])
def test_repeated_values_are_convolved_before(
    tmp_path: Path, dimensions: int, first: bool, factors: tuple[int, ...]
) -> None:
    changed, expected, found = changed_and_outputs(AtOnce(dimensions, factors[:dimensions], first=first), tmp_path, 0)
    assert changed == 2
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_is_no_plain_convolution_of_repeated_values_is_left(tmp_path: Path) -> None:
    """A stride, or repeats in an order of their own: nothing is changed and the numbers stay."""
    for stage in (AtOnce(3, (2, 2, 2), first=True, stride=2), Stage(3, (2, 2, 2), first=True)):
        changed, expected, found = changed_and_outputs(stage, tmp_path, 1)
        assert changed == 0
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_transposed_kernel_counts_every_tap() -> None:
    kernel = np.arange(3, dtype=np.float32).reshape(1, 1, 3) + 1
    assert transposed(kernel, (2,)).ravel().tolist() == [3, 5, 3, 1]
    assert transposed(kernel, (1,)).ravel().tolist() == [3, 2, 1]
