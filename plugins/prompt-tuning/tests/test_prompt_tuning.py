"""Prompts go through the blocks beside the tokens of the image, and leave nothing behind."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from omlab.errors import UsageError  # noqa: E402
from omlab_prompt_tuning.network import add_prompts, prompt_names  # noqa: E402
from omlab_sdk.networks.vit import Block, PatchEmbed  # noqa: E402


class _Transformer(nn.Module):
    """Gives how many tokens it pools, and has a bias for its attention if it is told so."""

    def __init__(self, biased=False):
        super().__init__()
        torch.manual_seed(0)
        self.patch_embed = PatchEmbed(8, 4, 1, 8)
        self.blocks = nn.ModuleList(Block(8, 2) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(2, 4, 4)) if biased else None

    def forward(self, image):
        x = self.patch_embed(image)
        for block in self.blocks:
            x = block(x) if self.bias is None else block(x, self.bias)
        return x


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("deep", "count"), [(True, 3), (False, 1)])
def test_the_image_keeps_its_tokens_and_prompts_change_them(biased, deep, count):
    network, image = _Transformer(biased).eval(), torch.randn(2, 1, 8, 8)
    before = network(image)
    assert add_prompts(network, 5, deep=deep) == count
    assert len(prompt_names(network)) == count
    after = network(image)
    assert after.shape == before.shape
    assert not torch.allclose(after, before)
    after.sum().backward()
    assert all(dict(network.named_parameters())[name].grad.abs().sum() > 0 for name in prompt_names(network))


def test_deep_prompts_replace_those_that_come_in():
    # By hand: the tokens of the image and one set of prompts a block, whatever came out of the last set.
    network, image = _Transformer().eval(), torch.randn(1, 1, 8, 8)
    blocks = list(network.blocks)
    add_prompts(network, 2, deep=True)
    x = network.patch_embed(image)
    for block, prompted in zip(blocks, network.blocks, strict=True):
        x = block(torch.cat([x, prompted.prompts], dim=1))[:, :4]
    assert torch.allclose(network(image), x, atol=1e-6)


def test_a_network_without_blocks_is_told():
    with pytest.raises(UsageError, match="no part with 'patch_embed' and a list 'blocks'"):
        add_prompts(nn.Linear(2, 2), 3, deep=True)
