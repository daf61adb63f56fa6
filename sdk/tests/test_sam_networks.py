"""Segment Anything's networks: folded windows are exact, sizes are the published ones, prompts share a batch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.networks.sam.decoder import MaskDecoder  # noqa: E402
from omlab_sdk.networks.sam.encoder import Block, ImageEncoder, from_windows, to_windows  # noqa: E402
from omlab_sdk.networks.sam.network import SIZES, Decoder, Encoder, Sam  # noqa: E402
from omlab_sdk.networks.sam.prompts import ABSENT, PADDING, PromptEncoder  # noqa: E402


@pytest.mark.parametrize("grid", [16, 9, 8, 6])
@pytest.mark.parametrize(("window", "relative", "qkv_bias"), [(14, True, True), (4, True, False), (4, False, True)])
def test_folded_windows_are_exact(grid: int, window: int, relative: bool, qkv_bias: bool) -> None:
    """Grids of one window that is not full, of full ones only, and of both."""
    block = Block(24, 3, grid, window, relative=relative, qkv_bias=qkv_bias).double()
    seed_module(block)
    tokens = 2 * torch.randn(2, grid, grid, 24, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        folded = block(tokens)
        block.folding = False
        padded = block(tokens)
    assert (folded - padded).norm() / padded.norm() < 1e-12


def test_strong_positions_do_not_overflow() -> None:
    """Position terms beyond what float32 can exponentiate."""
    block = Block(24, 3, 6, 4)
    seed_module(block)
    with torch.inference_mode():
        block.attn.rel_pos_h.mul_(400)
        block.attn.rel_pos_w.mul_(400)
        tokens = 2 * torch.randn(1, 6, 6, 24, generator=torch.Generator().manual_seed(0))
        folded = block(tokens)
        block.folding = False
        padded = block(tokens)
    assert torch.isfinite(folded).all()
    torch.testing.assert_close(folded, padded, rtol=1e-4, atol=1e-4)


def test_padding_takes_part() -> None:
    """Padded keys weigh something: attention over the real tokens alone is another answer."""
    block = Block(24, 3, 6, 4)
    seed_module(block)
    tokens = torch.randn(1, 6, 6, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        alone = block.attn(tokens[:, 4:, 4:])
        assert (block.attend(tokens)[:, 4:, 4:] - alone).norm() / alone.norm() > 0.01


def test_windows_and_back() -> None:
    tokens = torch.arange(2 * 9 * 7 * 3).reshape(2, 9, 7, 3)
    windows = to_windows(tokens, 4, 4)
    assert windows.shape == (12, 4, 4, 3)
    assert torch.equal(windows[1, :, :3], tokens[0, :4, 4:])  # row by row
    assert torch.equal(from_windows(windows, 2, 9, 7), tokens)


def test_the_encoder_at_1024_has_the_published_shapes() -> None:
    with torch.device("meta"):
        encoder = ImageEncoder()
    state = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert state["pos_embed"] == (1, 64, 64, 768)
    assert state["blocks.0.attn.rel_pos_h"] == (27, 64)
    assert state["blocks.2.attn.rel_pos_w"] == (127, 64)
    assert sum(tensor.numel() for tensor in encoder.parameters()) == 89_670_912
    assert not any("Adapter" in name for name in state)


def test_the_whole_at_1024_as_medical_models_use_it() -> None:
    """Without anything added, ViT-B at 1024: the names of original SAM, and both exported forms."""
    with torch.device("meta"):
        sam = Sam(**SIZES["vit_b"])
        embedding = Encoder(sam)(torch.empty(1, 3, 1024, 1024))
        masks, qualities = Decoder(sam)(
            embedding, torch.empty(5, 2, 2), torch.empty(5, 2), torch.empty(5, 1, 256, 256), torch.empty(5)
        )
    assert embedding.shape == (1, 256, 64, 64)
    assert (masks.shape, qualities.shape) == ((5, 4, 256, 256), (5, 4))
    assert len(sam.state_dict()) == 314
    assert {name.split(".")[0] for name in sam.state_dict()} == {"image_encoder", "prompt_encoder", "mask_decoder"}


def test_prompts_of_different_lengths_share_a_batch() -> None:
    """A token that is marked absent changes nothing."""
    prompts, decoder = PromptEncoder(32, 6, 96).eval(), MaskDecoder(32, heads=4, hidden=64, iou_hidden=32).eval()
    seed_module(prompts), seed_module(decoder)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 32, 6, 6, generator=generator)
    places = 96 * torch.rand(1, 2, 2, generator=generator)
    labels = torch.tensor([[1.0, PADDING]])

    def decode(places: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sparse = prompts.points(places, labels)
        dense = prompts.no_mask(len(places))
        return decoder(image, prompts.dense_positions(), sparse, dense, (labels == ABSENT).float())

    with torch.inference_mode():
        alone = decode(places, labels)
        wide = torch.cat([places, torch.rand(1, 3, 2, generator=generator)], dim=1).repeat(2, 1, 1)
        kinds = torch.tensor([[1.0, PADDING, ABSENT, ABSENT, ABSENT], [1.0, 0, 2, 3, ABSENT]])
        together = decode(wide, kinds)
    for one, both in zip(alone, together, strict=True):
        torch.testing.assert_close(both[:1], one, rtol=1e-5, atol=1e-6)
        assert (both[1] - one[0]).norm() / one.norm() > 1e-3
