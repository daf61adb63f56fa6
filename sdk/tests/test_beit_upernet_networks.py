"""Relative positions and UPerNet's heads against their definitions."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.networks.beit import RelativeAttention, RelativePositions, relative_index  # noqa: E402
from omlab_sdk.networks.upernet import FCNHead, UPerHead  # noqa: E402


@pytest.mark.parametrize("class_token", [True, False])
def test_index_tells_how_far_apart_two_patches_are(class_token: bool) -> None:
    grid, side = 3, 5
    index = relative_index(grid, class_token=class_token)
    skip = int(class_token)
    for one in range(grid**2):
        for other in range(grid**2):
            rows, columns = one // grid - other // grid, one % grid - other % grid
            assert index[one + skip, other + skip] == (rows + 2) * side + columns + 2
    if class_token:
        assert (index[0, 1:] == side**2).all()
        assert (index[1:, 0] == side**2 + 1).all()
        assert index[0, 0] == side**2 + 2
    table = RelativePositions(grid, 2, class_token=class_token).relative_position_bias_table
    assert table.shape == (int(index.max()) + 1, 2)


def test_own_and_shared_positions_add() -> None:
    x = torch.randn(1, 10, 12, generator=torch.Generator().manual_seed(0))
    positions = seed_module(RelativePositions(3, 3))
    plain = RelativeAttention(12, 3, grid=None, qkv_bias=True)
    own = RelativeAttention(12, 3, grid=3, qkv_bias=True, index=positions.relative_position_index)
    for attention in (plain, own):
        seed_module(attention)
    with torch.no_grad():
        own.relative_position_bias_table.copy_(positions.relative_position_bias_table)
    torch.testing.assert_close(own(x), plain(x, positions()))
    torch.testing.assert_close(own(x, positions()), plain(x, 2 * positions()))


def test_keys_have_no_bias() -> None:
    attention = seed_module(RelativeAttention(12, 3, grid=None, qkv_bias=True))
    query, key, value = attention.project(torch.zeros(1, 1, 12)).split(12, dim=2)
    assert torch.equal(query[0, 0], attention.q_bias)
    assert not key.any()
    assert torch.equal(value[0, 0], attention.v_bias)


def test_heads_give_logits_on_their_grids() -> None:
    torch.manual_seed(0)
    features = [torch.randn(2, width, side, side) for width, side in ((6, 16), (8, 8), (10, 4))]
    head = UPerHead([6, 8, 10], 4, 3, pool_scales=(1, 2)).eval()
    assert head(features).shape == (2, 3, 16, 16)
    # What the coarsest feature sees anywhere reaches every pixel.
    changed = [*features[:2], features[2].clone()]
    changed[2][:, :, 0, 0] += 50
    assert ((head(changed) - head(features)).abs().amax(dim=1) > 0).float().mean() > 0.8
    assert FCNHead(8, 4, 3, convs=2).eval()(features[1]).shape == (2, 3, 8, 8)
