"""The objective around the transformer of any embedder."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from omlab.errors import UsageError  # noqa: E402
from omlab_masked_autoencoder.network import MaskedAutoencoder  # noqa: E402
from omlab_sdk.networks.vit import Block, PatchEmbed  # noqa: E402


class _Embedder(nn.Module):
    def __init__(self, cls=True):
        super().__init__()
        torch.manual_seed(0)
        self.patch_embed = PatchEmbed(16, 4, 1, 64)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 64)) if cls else None
        self.pos_embed = nn.Parameter(torch.randn(1, 16 + cls, 64))
        self.blocks = nn.ModuleList(Block(64, 2) for _ in range(2))
        self.norm = nn.LayerNorm(64)


def _around(network, **more):
    settings = {"mask_ratio": 0.75, "norm_pix": False} | more
    return MaskedAutoencoder(nn.ModuleDict({"net": network}), "m", 1, 16, **settings).eval()


@pytest.mark.parametrize("cls", [True, False])
def test_only_hidden_patches_count_and_only_the_others_are_seen(cls):
    autoencoder = _around(_Embedder(cls))
    image, noise = torch.randn(1, 1, 16, 16), torch.arange(16.0)[None]  # the first four patches, the top row, are kept
    seen = image.clone().requires_grad_()
    autoencoder(seen, noise).backward()
    top, rest = seen.grad[..., :4, :], seen.grad[..., 4:, :]
    assert top.abs().sum() > 0
    prediction_free = autoencoder(image, noise)
    moved = image.clone()
    moved[..., :4, :] += 1.0
    assert not torch.allclose(autoencoder(moved, noise), prediction_free)
    # with prediction p of a hidden pixel t the error is (p - t)^2 / n, and p does not see t
    shifted = image.clone()
    shifted[..., 4:, :] += 0.5
    change = autoencoder(shifted, noise) - prediction_free
    assert float(change) == pytest.approx(float((rest * 0.5).sum()) + 0.25, abs=1e-3)


def test_it_learns_and_positions_stay():
    network = _Embedder()
    autoencoder = _around(network, norm_pix=True)
    table = network.pos_embed.detach().clone()
    optimiser = torch.optim.AdamW([p for p in autoencoder.parameters() if p.requires_grad], 3e-3)
    wave = torch.sin(torch.arange(16.0) * 0.8)
    images = (wave[:, None] + wave + torch.randn(8, 1, 1, 1)).clone()
    losses = []
    for _ in range(60):
        loss = autoencoder(images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert torch.equal(network.pos_embed, table)


def test_sizes_of_the_decoder_and_what_does_not_fit():
    autoencoder = _around(_Embedder())
    assert (autoencoder.decoder_embed.out_features, len(autoencoder.decoder_blocks)) == (32, 2)
    with pytest.raises(UsageError, match="must be a multiple of 32"):
        _around(_Embedder(), width=50)
    with pytest.raises(UsageError, match="cannot be hidden of 16 patches"):
        _around(_Embedder(), mask_ratio=0.99)
    without = _Embedder()
    del without.pos_embed
    with pytest.raises(UsageError, match="no table 'pos_embed'"):
        _around(without)
