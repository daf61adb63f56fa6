"""What the goldens cannot show: that the stages learn, whom they leave alone, and several processes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from omlab_pathoduet import pretraining, protocol  # noqa: E402
from omlab_pathoduet.network import VisionTransformer  # noqa: E402
from omlab_pathoduet.pretraining import Bridge, CrossStain, MoCo  # noqa: E402


def _encoder() -> VisionTransformer:
    return VisionTransformer(img_size=32, embed_dim=32, depth=1, num_heads=2, global_pool="avg")


def _inputs(stage: type[MoCo]) -> list[torch.Tensor]:
    views = [torch.rand(8, 3, 32, 32) for _ in range(2)]
    small = torch.rand(8, 3, 16, 16)
    return {MoCo: views, Bridge: [*views, small, torch.rand(8, 3, 32, 32)], CrossStain: [*views, small]}[stage]


@pytest.mark.parametrize("stage", [MoCo, Bridge, CrossStain])
def test_a_stage_learns_and_its_momentum_encoder_is_not_trained(stage: type[MoCo]) -> None:
    torch.manual_seed(0)
    network = stage(_encoder, dim=16, mlp_dim=32, temperature=0.2).train()
    inputs = _inputs(stage)
    before = network.momentum_encoder.blocks[0].mlp.fc1.weight.clone()
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = network(*inputs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    moved = not torch.equal(before, network.momentum_encoder.blocks[0].mlp.fc1.weight)
    assert moved == (stage is not CrossStain)
    assert all(p.grad is None for p in network.momentum_encoder.parameters())


def test_a_stage_begins_from_the_one_before() -> None:
    """Upstream loads without asking for every entry: the positioner is new in stage 2 and gone in stage 3."""
    first = MoCo(_encoder, dim=16, mlp_dim=32)
    second = Bridge(_encoder, dim=16, mlp_dim=32)
    left = second.load_state_dict(first.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {key.partition(".")[0] for key in left.missing_keys} == {"positioner"}
    left = CrossStain(_encoder, dim=16, mlp_dim=32).load_state_dict(second.state_dict(), strict=False)
    assert not left.missing_keys
    assert {key.partition(".")[0] for key in left.unexpected_keys} == {"positioner"}


def test_momentum_update_is_of_parameters_only() -> None:
    network = MoCo(_encoder, dim=16, mlp_dim=32)
    with torch.no_grad():
        for tensor in network.base_encoder.state_dict().values():
            tensor.add_(1)
    slow, statistics = network.momentum_encoder.cls_token.clone(), network.momentum_encoder.head[1].running_mean.clone()
    network.update_momentum(0.75)
    torch.testing.assert_close(network.momentum_encoder.cls_token, slow + 0.25)
    assert torch.equal(network.momentum_encoder.head[1].running_mean, statistics)


def test_keys_of_other_processes_are_contrasted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, foreign = (torch.randn(3, 8, generator=generator) for _ in range(3))
    foreign = torch.nn.functional.normalize(foreign, dim=1)

    def gather(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        parts[0].copy_(foreign)
        parts[1].copy_(own)

    alone = pretraining.contrast(queries, keys, 0.2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_gather", gather)
    together = pretraining.contrast(queries, keys, 0.2)
    assert together > alone  # three more wrong keys to choose among
    scores = torch.nn.functional.normalize(queries, dim=1) @ torch.cat([
        foreign, torch.nn.functional.normalize(keys, dim=1)
    ]).T  # fmt: skip
    chosen = scores.div(0.2).log_softmax(dim=1)[torch.arange(3), torch.arange(3, 6)]
    torch.testing.assert_close(together, -chosen.mean() * 0.4)


def test_lars_steps_where_a_norm_is_zero() -> None:
    matrix, bias = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimiser = protocol.LARS([matrix, bias], lr=0.5, weight_decay=0.1)
    matrix.grad, bias.grad = torch.ones(2, 2), torch.ones(2)
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), -0.5))
    torch.testing.assert_close(bias.detach(), torch.full((2,), 0.5))


def test_schedules_end_where_they_should() -> None:
    assert protocol.learning_rate(0, lr=1.0, warmup_epochs=10, epochs=20) == 0
    assert protocol.learning_rate(20, lr=1.0, warmup_epochs=10, epochs=20) == pytest.approx(0)
    assert protocol.momentum(0, m=0.99, epochs=20) == pytest.approx(0.99)
    assert protocol.momentum(20, m=0.99, epochs=20) == 1
