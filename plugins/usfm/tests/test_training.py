"""What the goldens cannot show: masks, losses at their edges, and that networks learn."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab_sdk.training.rates import parameter_groups  # noqa: E402
from omlab_usfm import losses, protocol  # noqa: E402
from omlab_usfm.masking import BandStop, BlockMask  # noqa: E402
from omlab_usfm.network import VisionTransformer  # noqa: E402
from omlab_usfm.pretraining import MaskedEncoder, SpatialFrequencyMIM  # noqa: E402
from omlab_usfm.segmenter import SegViT  # noqa: E402

SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}


def test_pre_training_restores_what_is_masked() -> None:
    torch.manual_seed(0)
    network = SpatialFrequencyMIM(MaskedEncoder(**(SMALL | {"patch_size": 8})))
    images = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32).contiguous()
    mask = torch.from_numpy(BlockMask(32, 16, 8, 0.5).draw(np.random.default_rng(0)))[None].repeat(4, 1, 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    spaces = []
    for _ in range(60):
        found = network.terms(images, mask)
        optimiser.zero_grad()
        (found["space"] + found["frequency"]).backward()
        optimiser.step()
        spaces.append(found["space"].item())
    assert spaces[-1] < 0.4 * spaces[0]
    assert network.encoder.mask_token.grad.abs().sum() > 0


def test_masked_patches_are_not_seen() -> None:
    encoder = MaskedEncoder(**SMALL).eval()
    image, mask = torch.rand(1, 3, 32, 32), torch.tensor([[[1, 0], [0, 0]]])
    other = image.clone()
    other[:, :, :16, :16] = 0
    with torch.inference_mode():
        assert torch.equal(encoder(image, mask), encoder(other, mask))
        assert not torch.equal(encoder(image, 1 - mask), encoder(other, 1 - mask))


def test_a_segmenter_learns() -> None:
    torch.manual_seed(0)
    backbone = SMALL | {"use_rel_pos_bias": True, "init_values": 0.1, "qkv_bias": True, "out_indices": (0, 1)}
    head = {"in_channels": 24, "embed_dims": 16, "classes": 2, "layers": 1, "heads": 2, "stages": 2, "img_size": 32}
    network = SegViT(backbone, head)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[:, 8:24, 8:24] = 1
    image = labels[:, None].float().repeat(1, 3, 1, 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    totals = []
    for _ in range(40):
        total = torch.stack(list(network.losses(image, labels).values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]


def test_a_class_that_is_absent_has_no_mask_loss() -> None:
    loss = losses.ATMLoss(3)
    masks = torch.zeros(1, 3, 8, 8, requires_grad=True)
    logits = torch.zeros(1, 3, 4)
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 4:] = losses.IGNORED
    terms = loss({"pred_logits": logits, "pred_masks": masks}, labels)
    (terms["loss_mask"] + terms["loss_dice"]).backward()
    assert masks.grad[0, 0].abs().sum() > 0
    assert masks.grad[0, 1:].abs().sum() == 0
    nothing = loss({"pred_logits": logits, "pred_masks": masks}, torch.full_like(labels, losses.IGNORED))
    assert nothing["loss_mask"].item() == nothing["loss_dice"].item() == 0


def test_rings_leave_the_centre_and_refuse_to_run_for_ever() -> None:
    band = BandStop(32, ratio=1.0, base_width=4, growth=0.5, greatest_growth=4, protected=4)
    assert set(np.unique(band.rings)) == {0.0, 1.0}
    flat = np.full((3, 32, 32), 0.5, np.float32)
    filtered, mask = band(flat)
    assert mask[0, 16, 16] == 1
    np.testing.assert_allclose(filtered, flat, atol=1e-6)
    checks = np.indices((32, 32)).sum(axis=0)[None] % 2 / 1.0
    assert band(checks)[0].std() <= checks.std()
    with pytest.raises(ValueError, match="never get wider"):
        BandStop(32, ratio=1.0, base_width=4, growth=0.1, greatest_growth=4, protected=4)
    with pytest.raises(ValueError, match="must be a multiple"):
        BlockMask(64, 24)


def test_learning_rate_and_groups() -> None:
    plan = {"lr": 1.0, "warmup_lr": 0.2, "min_lr": 0.01, "warmup_steps": 10, "steps": 100}
    assert protocol.learning_rate(0, **plan) == pytest.approx(0.2)
    assert protocol.learning_rate(5, **plan) == pytest.approx(0.6)
    assert protocol.learning_rate(50, **plan) == pytest.approx(0.505)
    assert protocol.learning_rate(100, **plan) == 0.01
    groups = parameter_groups(VisionTransformer(num_classes=2, use_rel_pos_bias=True, **SMALL), layer_decay=0.65)
    of_name = {name: group for group in groups for name in group["names"]}
    assert of_name["cls_token"]["weight_decay"] == 0
    assert of_name["cls_token"]["lr_scale"] == pytest.approx(0.65**3)
    assert of_name["blocks.1.mlp.fc1.weight"]["lr_scale"] == pytest.approx(0.65)
    assert of_name["blocks.1.mlp.fc1.weight"]["weight_decay"] == 0.05
    assert of_name["head.weight"]["lr_scale"] == 1
    assert of_name["head.bias"]["weight_decay"] == 0
