"""What LoRA adds to a network, and that nothing of it is left when the network is run."""

from __future__ import annotations

import pytest

from omlab.plugins import Registry
from omlab.vocabulary import Kind

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from omlab_sdk.networks.vit import Block  # noqa: E402

PLAN = {"rank": 2, "alpha": 8.0, "dropout": 0.0, "targets": ["qkv", "proj"], "head": "", "features": 8, "classes": 3}


class _Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(8, 2) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


@pytest.fixture
def lora():
    return Registry.discover().load(Kind.ADAPTER, "lora")


def test_it_begins_as_the_base_and_merges_into_it(lora):
    torch.manual_seed(0)
    base = _Encoder().eval()
    names, x = set(base.state_dict()), torch.randn(2, 5, 8)
    before = base(x)
    network = lora.assemble(base, PLAN).eval()
    assert torch.equal(network.network(x), before)
    lora.learn(network, {})
    learnt = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learnt == set(lora.stored(network))
    assert len(learnt) == 2 * 2 * 2 + 2  # two thin matrices for two layers of two blocks, and the head
    with torch.no_grad():
        for tensor in lora.stored(network).values():
            tensor.normal_(std=0.2)
    changed = network(x)
    plain = lora.finish(network)
    assert torch.allclose(plain(x), changed, atol=1e-4)
    assert set(plain.network.state_dict()) == names


def test_torchs_own_attention_is_not_passed_by(lora):
    from omlab.errors import UsageError

    network = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16))
    with pytest.raises(UsageError, match="no linear layer called"):
        lora.assemble(network, PLAN | {"targets": ["out_proj"]})
