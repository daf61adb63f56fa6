"""SAM-Med3D's networks: folded windows are exact, positions are upstream's, names are those of the published file."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from omlab.graphs import Graph, TensorSpec  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.networks.sam3d.encoder import Attention3d, Block3d, from_windows, to_windows  # noqa: E402
from omlab_sdk.networks.sam3d.network import Sam3d  # noqa: E402
from omlab_sdk.networks.sam3d.prompts import FourierPositions3d  # noqa: E402


def _tokens(*shape: int, dtype: torch.dtype = torch.double) -> torch.Tensor:
    return 2 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", [(6, 6, 6), (4, 4, 4), (3, 3, 3), (7, 4, 6), (4, 4, 5), (5, 4, 4)])
@pytest.mark.parametrize(("window", "relative", "qkv_bias"), [(7, True, True), (4, True, False), (4, False, True)])
def test_folded_windows_are_exact(grid: tuple[int, ...], window: int, relative: bool, qkv_bias: bool) -> None:
    """Grids of one window that is not full, of full ones only, and of both, also along one axis alone."""
    block = Block3d(12, 3, 6, window, relative=relative, qkv_bias=qkv_bias).double()
    seed_module(block)
    tokens = _tokens(2, *grid, 12)
    with torch.inference_mode():
        folded = block(tokens)
        block.folding = False
        padded = block(tokens)
    assert (folded - padded).norm() / padded.norm() < 1e-12


def test_strong_positions_do_not_overflow() -> None:
    block = Block3d(12, 3, 4, 5)
    seed_module(block)
    with torch.inference_mode():
        for table in (block.attn.rel_pos_d, block.attn.rel_pos_h, block.attn.rel_pos_w):
            table.mul_(400)
        tokens = _tokens(1, 4, 4, 4, 12, dtype=torch.float32)
        folded = block(tokens)
        block.folding = False
        padded = block(tokens)
    assert torch.isfinite(folded).all()
    torch.testing.assert_close(folded, padded, rtol=1e-3, atol=1e-3)


def test_padding_has_gradients() -> None:
    """Folded training steps are those of upstream's way."""
    found = []
    for folding in (True, False):
        block = Block3d(12, 3, 4, 5).double()
        seed_module(block)
        block.folding = folding
        block(_tokens(1, 4, 4, 4, 12)).square().sum().backward()
        found.append(torch.cat([parameter.grad.ravel() for parameter in block.parameters()]))
    assert (found[0] - found[1]).norm() / found[1].norm() < 1e-12


def test_positions_are_indexed_as_upstream_does() -> None:
    """The bias by its formula, voxel by voxel."""
    attention = Attention3d(4, 1, 3).double()
    seed_module(attention)
    query = _tokens(1, 1, 27, 4)
    bias = attention._bias(query, [3, 3, 3], 3)[0].reshape(3, 3, 3, 3, 3, 3)
    grid = query.reshape(3, 3, 3, 4)
    tables = attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w

    def term(vector: torch.Tensor, table: torch.Tensor, a: int, b: int) -> torch.Tensor:
        return vector @ table[a - b + 2]

    for x, y, z, u, v, w in [(0, 1, 2, 2, 0, 1), (2, 2, 0, 1, 2, 2), (1, 0, 1, 0, 2, 0)]:
        expected = (
            term(grid[x, y, z], tables[0], x, w)
            + term(grid[x, y, u], tables[1], y, w)
            + term(grid[x, y, v], tables[2], v, w)
        )
        assert torch.allclose(bias[x, y, z, u, v, w], expected)


def test_a_grid_that_is_no_cube_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a cube"):
        Attention3d(12, 3, 4)(_tokens(1, 4, 4, 3, 12))


def test_windows_and_back() -> None:
    tokens = torch.arange(2 * 5 * 4 * 3 * 2).reshape(2, 5, 4, 3, 2)
    windows = to_windows(tokens, (2, 2, 2))
    assert windows.shape == (2 * 3 * 2 * 2, 2, 2, 2, 2)
    assert torch.equal(windows[1, ..., 0, :], tokens[0, :2, :2, 2])  # the last axis runs fastest
    assert torch.equal(from_windows(windows, 2, (5, 4, 3)), tokens)


def test_points_and_cells_are_encoded_with_other_axes_first() -> None:
    positions = FourierPositions3d(6)
    grid = positions.grid(2, 4, 8)
    assert grid.shape == (6, 2, 4, 8)
    cell = torch.tensor([(3 + 0.5) / 4, 0.5 / 2, (5 + 0.5) / 8])
    assert torch.allclose(grid[:, 0, 3, 5], positions(cell))
    assert torch.equal(positions(cell)[:2], positions(cell)[4:])


def test_size_of_the_published_network() -> None:
    with torch.device("meta"):
        sam = Sam3d.of_size()
    assert sum(value.numel() for value in sam.state_dict().values()) == 100_509_616
    assert [bool(block.window) for block in sam.image_encoder.blocks] == 4 * [True, True, False]


@pytest.mark.parametrize("window", [0, 3, 5])
def test_attention_survives_its_export(window: int, tmp_path: Path) -> None:
    """The exporter joins reshapes around products; where both are batched it once made another product of them."""
    runtime = pytest.importorskip("onnxruntime")
    block = seed_module(Block3d(12, 3, 4, window)).eval()
    tokens = _tokens(1, 4, 4, 4, 12, dtype=torch.float32)
    spec = TensorSpec("x", "float32", (1, 4, 4, 4, 12))
    graph = Graph(name="block", inputs=(spec,), outputs=(TensorSpec("y", "float32", spec.shape),))
    TorchOnnxExporter().export(block, graph, tmp_path / "block.onnx")
    (found,) = runtime.InferenceSession(tmp_path / "block.onnx").run(None, {"x": tokens.numpy()})
    with torch.inference_mode():
        assert torch.allclose(block(tokens), torch.from_numpy(found), atol=1e-5)
