"""3D convolutions by minimal filtering: the numbers of the plain sum, alone and inside OpenVINO's graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="omlab[winograd] is not installed")
torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from omlab.engines import hardware  # noqa: E402
from omlab.engines.openvino_winograd import CHANNELS, fits, take_over  # noqa: E402
from omlab.engines.winograd import LANES, Convolution, Workers, moments  # noqa: E402
from omlab.graphs import Graph, TensorSpec  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402
from omlab_sdk.networks.steady import SteadyNorm  # noqa: E402


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "inputs", "outputs"), [((16, 16, 16), 16, 32), ((2, 44, 48), 48, 16), ((10, 20, 24), 144, 144)]
)
@pytest.mark.parametrize(("normed", "added"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_convolution_is_the_plain_sum(
    shape: tuple[int, int, int], inputs: int, outputs: int, threads: int, normed: bool, added: bool
) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((*shape, inputs), dtype=np.float32)
    kernel = (random.standard_normal((outputs, inputs, 3, 3, 3)) / np.sqrt(27 * inputs)).astype(np.float32)
    bias = random.standard_normal(outputs, dtype=np.float32)
    norm = random.standard_normal((3, inputs), dtype=np.float32) if normed else None
    addend = random.standard_normal((*shape, outputs), dtype=np.float32) if added else None
    out = np.full((*shape, outputs), np.nan, np.float32)
    Convolution.of(kernel, bias)(x, out, Workers(threads), norm=norm, slope=0.01 if normed else 1.0, addend=addend)

    values = torch.from_numpy(x).double()
    if norm is not None:
        mean, scale, shift = torch.from_numpy(norm).double()
        values = F.leaky_relu((values - mean) * scale + shift, 0.01)
    expected = F.conv3d(
        values.permute(3, 0, 1, 2)[None], torch.from_numpy(kernel).double(), torch.from_numpy(bias).double(), padding=1
    )[0].permute(1, 2, 3, 0)
    assert relative(out, expected.numpy() + (0 if addend is None else addend)) < 1e-5


def test_moments_hold_where_the_mean_is_large() -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal((70_001, 32)) * np.linspace(1e-3, 10, 32) + np.linspace(-1000, 1000, 32)).astype("f4")
    mean, variance = moments(x, Workers(2))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-5)
    _, none = moments(np.full((5000, 16), 0.1, np.float32), Workers(2))
    assert (none == 0).all()


def test_what_does_not_fit_is_left() -> None:
    assert LANES == CHANNELS
    with pytest.raises(ValueError, match="16 channels"):
        Convolution.of(np.zeros((16, 8, 3, 3, 3), np.float32))
    assert fits((16, 16, 16), (32, 16, 3, 3, 3))
    assert not fits((8, 8, 8), (32, 16, 3, 3, 3)), "too few voxels"
    assert not fits((16, 18, 16), (32, 16, 3, 3, 3)), "no whole tiles"
    assert not fits((16, 16, 16), (32, 1, 3, 3, 3)), "no whole vectors"
    assert not fits((16, 16, 16), (32, 16, 1, 3, 3)), "another kernel"
    assert not fits((16, 16, 16), (512, 512, 3, 3, 3)), "a kernel that would not stay in the cache"


class Block(nn.Module):
    """Two convolutions with norms, a shortcut, and one of an odd number of channels that stays OpenVINO's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 16, 3, padding=1)
        self.norm1 = SteadyNorm(nn.InstanceNorm3d(16, affine=True))
        self.second = nn.Conv3d(16, 32, 3, padding=1)
        self.norm2 = SteadyNorm(nn.InstanceNorm3d(32, affine=True))
        self.shortcut = nn.Conv3d(1, 32, 1)
        self.third = nn.Conv3d(32, 16, 3, padding=1)
        self.last = nn.Conv3d(16, 5, 3, padding=1)
        for norm in (self.norm1, self.norm2):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(self.norm1(self.first(x)), 0.01)
        y = F.leaky_relu(self.norm2(self.second(y)) + self.shortcut(x), 0.2)
        # What follows the third is a sum of two voxels each, and a constant that is none of a channel.
        return self.last(self.third(y) + y[:, :16] + 0.5)


def declared(x: np.ndarray, found: np.ndarray) -> Graph:
    """The graph of a network that makes ``found`` of ``x``."""
    return Graph(
        name="block", inputs=(TensorSpec("image", "float32", x.shape),),
        outputs=(TensorSpec("found", "float32", found.shape),),
    )  # fmt: skip


def exported(network: nn.Module, shape: tuple[int, ...], folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    torch.manual_seed(0)
    x = torch.randn(1, 1, *shape)
    with torch.inference_mode():
        expected = network.eval()(x).numpy()
    graph = declared(x.numpy(), expected)
    path = folder / "block.onnx"
    TorchOnnxExporter().export(network, graph, path)
    return path, x.numpy(), expected


@pytest.mark.parametrize("hint", ["f32", "bf16"])
def test_a_graph_gives_the_same_numbers(tmp_path: Path, hint: str) -> None:
    if hint == "bf16" and not hardware.cpu().bfloat16:
        pytest.skip("this processor has no bfloat16 arithmetic")
    torch.manual_seed(1)
    path, x, expected = exported(Block(), (12, 20, 24), tmp_path)
    model = openvino.Core().read_model(str(path))
    assert take_over(model, 2) == 4, "two convolutions and two norms"
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    del model
    for _ in range(2):
        assert relative(compiled([x])[0], expected) < (1e-5 if hint == "f32" else 0.05)


def test_a_graph_without_such_convolutions_is_not_touched(tmp_path: Path) -> None:
    path, _, _ = exported(Block(), (6, 10, 9), tmp_path)
    model = openvino.Core().read_model(str(path))
    before = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() != "Constant"]
    assert take_over(model, 2) == 0
    kept = {node.get_friendly_name() for node in model.get_ordered_ops()}
    assert [name for name in before if "conv" in name.lower() and name not in kept] == []


def test_an_engine_takes_over_and_stores_no_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omlab.engines import openvino as engine
    from omlab.engines.base import Target
    from omlab.plugins import Registry
    from omlab.vocabulary import Kind, Precision

    torch.manual_seed(1)
    path, x, expected = exported(Block(), (12, 20, 24), tmp_path)
    backend, graph = engine.OpenVino(Registry.discover().card(Kind.ENGINE, "openvino")), declared(x, expected)
    target = Target(Precision.FLOAT32, "cpu", "CPU", rank=50)
    versions = []
    for numba in (hardware.winograd(), ""):
        monkeypatch.setattr(hardware, "winograd", lambda numba=numba: numba)
        folder = tmp_path / f"engine{numba}"
        folder.mkdir()
        backend.build(graph, path, folder, target)
        assert (folder / engine.BLOB).exists() == (not numba)
        found = backend.load(graph, path, folder, target, threads=2)({"image": x})["found"]
        assert relative(found, expected) < 1e-5
        versions.append(backend.version())
    assert versions[0] != versions[1], "an engine made without is made again"


def test_where_channels_and_sides_are_equal_nothing_is_turned(tmp_path: Path) -> None:
    torch.manual_seed(2)
    path, x, expected = exported(Block(), (12, 16, 32), tmp_path)
    model = openvino.Core().read_model(str(path))
    assert take_over(model, 2) == 0, "16 and 32 channels, as many as rows and columns"
    assert (
        relative(openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0], expected)
        < 1e-4
    )


@pytest.mark.parametrize("agree", [True, False])
def test_where_they_are_equal_an_engine_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agree: bool) -> None:
    """Taken over only if that gives what OpenVINO gives by itself; right either way."""
    from omlab.engines import openvino as engine
    from omlab.engines import openvino_winograd as taking
    from omlab.engines.base import Target
    from omlab.plugins import Registry
    from omlab.vocabulary import Kind, Precision

    torch.manual_seed(2)
    path, x, expected = exported(Block(), (12, 16, 32), tmp_path)
    assert taking.has_more(openvino.Core().read_model(str(path)))
    backend, graph = engine.OpenVino(Registry.discover().card(Kind.ENGINE, "openvino")), declared(x, expected)
    if not agree:  # as where OpenVINO takes a tensor for another
        plain = taking._constant

        def turned(output: object) -> np.ndarray | None:
            constant = plain(output)
            return constant if constant is None or constant.ndim != 5 else -constant

        monkeypatch.setattr(taking, "_constant", turned)
    target = Target(Precision.FLOAT32, "cpu", "CPU", rank=50)
    backend.build(graph, path, tmp_path, target)
    assert ((tmp_path / engine.EVERY).exists(), (tmp_path / engine.BLOB).exists()) == (agree, not agree)
    assert backend.needs_onnx(tmp_path) == agree
    found = backend.load(graph, path, tmp_path, target, threads=2)({"image": x})["found"]
    assert relative(found, expected) < 1e-4


def test_norms_of_openvino_beside_it_change_nothing(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv3d(1, 16, 1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.InstanceNorm3d(16, affine=True), nn.ReLU()
    )
    path, x, expected = exported(network, (12, 20, 24), tmp_path)
    model = openvino.Core().read_model(str(path))
    assert take_over(model, 2) == 1
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert relative(compiled([x])[0], expected) < 1e-4
