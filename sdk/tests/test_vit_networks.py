"""Parts of vision transformers against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.networks.vit import Attention, Block, DropPath, PatchEmbed, drop_rates, interpolate, sincos  # noqa: E402


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_attention_is_softmax_of_scaled_scores_plus_bias() -> None:
    attention = Attention(12, 3)
    seed_module(attention)
    x, bias = _tokens(2, 5, 12), _tokens(3, 5, 5)
    query, key, value = attention.qkv(x).split(12, dim=2)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 2 + bias[head]
        heads.append(scores.softmax(dim=2) @ value[..., part])
    torch.testing.assert_close(attention(x, bias), attention.proj(torch.cat(heads, dim=2)))
    with pytest.raises(ValueError, match="a width of 12 cannot be split among 5 heads"):
        Attention(12, 5)


def test_layer_scale_of_zero_leaves_tokens_alone() -> None:
    x = _tokens(2, 5, 12)
    assert torch.equal(Block(12, 3, layer_scale=0)(x), x)
    assert not torch.equal(Block(12, 3, layer_scale=0.1)(x), x)
    assert {"gamma_1", "gamma_2"} <= set(Block(12, 3, layer_scale=0.1).state_dict())
    assert not any("gamma" in name for name in Block(12, 3).state_dict())


def test_patches_go_row_by_row() -> None:
    embed = PatchEmbed(8, 2, 1, 4)
    with torch.no_grad():
        embed.proj.weight.zero_()[0] = 0.25
        embed.proj.bias.zero_()
    image = torch.arange(16.0).reshape(1, 1, 4, 4).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(embed(image)[0, :, 0], torch.arange(16.0))
    assert embed.num_patches == 16
    with pytest.raises(ValueError, match="the image has 4 x 8 pixels, the network takes 8 x 8"):
        embed(image[:, :, :4])
    assert PatchEmbed(None, 2, 1, 4)(image[:, :, :4]).shape == (1, 8, 4)
    with pytest.raises(ValueError, match="an image of 9 pixels cannot be cut into patches of 2"):
        PatchEmbed(9, 2, 1, 4)


def test_drop_path_keeps_the_mean() -> None:
    drop = DropPath(0.25).train()
    x = torch.ones(4000, 1, 1)
    assert drop(x).mean().item() == pytest.approx(1, abs=0.05)
    assert drop(x).unique().tolist() == pytest.approx([0, 4 / 3])
    assert drop.eval()(x) is x
    assert drop_rates(0.1, 3) == [0.0, 0.05, 0.1]


def test_sines_and_cosines_of_both_axes() -> None:
    rows = sincos(8, 3, extra=1, first="row")
    assert rows.shape == (10, 8)
    assert not rows[0].any()
    place = rows[1 + 3 * 2 + 1]  # row 2, column 1
    expected = [f(p * w) for p in (2, 1) for f in (np.sin, np.cos) for w in (1, 0.01)]
    np.testing.assert_allclose(place, expected, rtol=1e-6)
    columns = sincos(8, 3)
    np.testing.assert_array_equal(np.roll(columns, 4, axis=1), rows[1:])
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos(6, 3)


def test_positions_of_another_grid() -> None:
    table = torch.from_numpy(sincos(8, 4, extra=2))[None]
    assert interpolate(table, 4, extra=2) is table
    larger = interpolate(table, 6, extra=2)
    assert larger.shape == (1, 38, 8)
    assert torch.equal(larger[:, :2], table[:, :2])
    flat = interpolate(torch.cat([table[:, :2], torch.ones(1, 16, 8)], dim=1), 6, extra=2)
    torch.testing.assert_close(flat[:, 2:], torch.ones(1, 36, 8))
