"""Learning: loss on answers, low-rank adapters, rankings and PPO, against the definitions written out."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from omlab.errors import UsageError  # noqa: E402
from omlab_sdk.language import preferences, training  # noqa: E402
from omlab_sdk.networks import low_rank  # noqa: E402


def test_only_labelled_tokens_are_learnt() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 5)
    labels = torch.tensor([[-100, -100, 3, 1]])
    chances = logits.log_softmax(-1)
    expected = -(chances[0, 1, 3] + chances[0, 2, 1]) / 2
    assert torch.allclose(training.causal_loss(logits, labels), expected)
    ids, mask, rows = training.batched([([5, 6, 7], [-100, 6, 7]), ([8], [8])], padding=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert rows.tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_adapters_begin_as_nothing_and_merge_into_the_layer() -> None:
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 6), "other": torch.nn.Linear(4, 6)}).eval()
    names, x = set(network.state_dict()), torch.randn(3, 4)
    before = network["q_proj"](x)
    assert low_rank.add_low_rank(network, ["q_proj"], rank=2, alpha=4) == 1
    network.eval()
    assert torch.equal(network["q_proj"](x), before)
    learnt = [name for name, p in network.named_parameters() if p.requires_grad]
    assert learnt == ["q_proj.down", "q_proj.up"]
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        network["q_proj"](x).square().sum().backward()
        optimiser.step()
    after = network["q_proj"](x)
    assert not torch.allclose(after, before)
    assert low_rank.merge_low_rank(network) == 1 and set(network.state_dict()) == names
    assert torch.allclose(network["q_proj"](x), after, atol=1e-6)
    with pytest.raises(UsageError, match="no linear layer called k_proj"):
        low_rank.add_low_rank(network, ["k_proj"])


def test_a_ranking_is_learnt_from_all_its_pairs() -> None:
    rewards, ranks = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([1, 2, 2])
    expected = (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(-1.0))) / 2
    assert preferences.ranking_loss(rewards, ranks).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="nothing to learn"):
        preferences.ranking_loss(rewards, torch.ones(3))
    head = preferences.RewardHead(3)
    hidden = torch.randn(2, 4, 3)
    found = head(hidden, torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]))
    assert torch.allclose(found, torch.stack([head.value(hidden[0, 1]), head.value(hidden[1, 3])]).squeeze(-1))


def test_rewards_fall_on_the_last_token() -> None:
    policy, reference = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.0, 0.0]])
    found = preferences.token_rewards(torch.tensor([3.0]), policy, reference, torch.tensor([[1, 1, 0]]), penalty=0.2)
    assert torch.allclose(found, torch.tensor([[-0.1, 3.2, 0.0]]))


def test_advantages_are_sums_of_surprises() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.4, 0.3, 9.0]])
    mask = torch.tensor([[1.0, 1, 1, 0]])
    gains, returns = preferences.advantages(rewards, values, mask, discount=0.9, decay=0.8)
    surprises = [0.9 * 0.4 - 0.5, 0.9 * 0.3 - 0.4, 1 - 0.3]
    expected = [sum(s * 0.72**n for n, s in enumerate(surprises[start:])) for start in range(3)]
    assert torch.allclose(gains, torch.tensor([[*expected, 0.0]]))
    assert torch.allclose(returns, (gains + values) * mask)


def test_ppo_clips_what_goes_too_far() -> None:
    old, mask = torch.zeros(1, 3), torch.ones(1, 3)
    new = torch.log(torch.tensor([[1.5, 0.5, 1.1]]))
    gains = torch.tensor([[1.0, -1.0, 2.0]])
    losses = preferences.PPO(clip=0.2, value_clip=0.2, value_weight=0.5, normalise=False)(
        new, old, torch.tensor([[1.0, 0.0, 0.0]]), old, gains, torch.tensor([[2.0, 0.0, 0.1]]), mask
    )
    assert losses.policy.item() == pytest.approx(-(1.2 - 0.8 + 2.2) / 3)
    assert losses.value.item() == pytest.approx(0.5 * (1.8**2 + 0 + 0.01) / 3)
    assert losses.clipped.item() == pytest.approx(2 / 3)
    assert losses.total.item() == pytest.approx(losses.policy.item() + 0.5 * losses.value.item())
    plain = torch.randn(2, 5)
    assert preferences.PPO()(plain, plain, plain, plain, plain, plain, torch.ones(2, 5)).policy.abs().item() < 1e-6


def test_log_probabilities_of_tokens() -> None:
    logits, ids = torch.randn(2, 4, 6), torch.randint(0, 6, (2, 4))
    found = preferences.token_log_probabilities(logits, ids)
    assert found.shape == (2, 3)
    assert found[1, 2].item() == pytest.approx(logits[1, 2].log_softmax(-1)[ids[1, 3]].item(), rel=1e-5)
