"""The published layout and fine-tuned checkpoints into the networks, tables of other grids, files that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab.errors import WeightsError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_usfm import checkpoint, segmenter, tables  # noqa: E402
from omlab_usfm.model import Usfm  # noqa: E402
from omlab_usfm.network import TRAINED, Backbone, VisionTransformer  # noqa: E402
from omlab_usfm.pretraining import MaskedEncoder  # noqa: E402

SMALL = {"embed_dim": 24, "depth": 12, "num_heads": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpoint, segmenter):
        monkeypatch.setattr(module, "BASE", SMALL)


def _published(img_size: int = 64) -> dict[str, torch.Tensor]:
    return dict(seed_module(MaskedEncoder(img_size=img_size, **SMALL)).state_dict())


def _save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_the_published_file_gives_both_embeddings(tmp_path: Path) -> None:
    """The shared table in every block is the same as sharing it."""
    state = _published()
    path = _save(tmp_path / "USFM_latest.pth", state)
    same = MaskedEncoder(img_size=64, **SMALL).eval()
    same.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        last = same.trunk(same.tokens(same.patch_embed(image)))[-1]
        token, mean = checkpoint.encoder(path, mean=False), checkpoint.encoder(path)
        torch.testing.assert_close(token(image), same.norm(last)[:, 0])
        expected = torch.nn.functional.layer_norm(last[:, 1:].mean(dim=1), (24,), eps=1e-6)
        torch.testing.assert_close(mean(image), expected)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_classifier_brings_its_classes(tmp_path: Path, wrap: bool) -> None:
    network = VisionTransformer(num_classes=5, img_size=64, use_rel_pos_bias=True, **TRAINED, **SMALL).eval()
    seed_module(network)
    state = network.state_dict()
    # As upstream's trainers write it.
    content = {"model": state, "optimizer": {}, "max_accuracy": 0.9, "epoch": 3, "config": {"a": 1}} if wrap else state
    loaded = checkpoint.classifier(_save(tmp_path / "best.pth", content))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), network(image))


@pytest.mark.parametrize("kind", ["segvit", "segvit trained", "upernet"])
def test_a_segmenter_brings_its_kind_size_and_classes(tmp_path: Path, kind: str) -> None:
    if kind == "upernet":
        network: torch.nn.Module = segmenter.upernet(3, img_size=32)
    else:
        network = segmenter.segvit(3, img_size=32, trained="trained" in kind)
    seed_module(network.eval())
    loaded = checkpoint.segmenter(_save(tmp_path / "best.pth", {"model": network.state_dict()}))
    assert type(loaded) is type(network)
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        found = loaded(image)
        torch.testing.assert_close(found, network(image))
    assert found.shape == (1, 3, 32, 32)


def test_what_the_configuration_has_no_place_for_is_left_out() -> None:
    """Upstream's SegViT drops the biases and layer scales of the published file."""
    state = _published()
    backbone = Backbone(img_size=64, use_rel_pos_bias=True, out_indices=(5, 7, 11), **SMALL)
    checkpoint.load_published(backbone, state, name="file")
    assert torch.equal(backbone.blocks[3].attn.qkv.weight, state["blocks.3.attn.qkv.weight"])
    assert torch.equal(backbone.blocks[3].attn.relative_position_bias_table, state[checkpoint.SHARED])
    del state["blocks.3.attn.qkv.weight"]
    with pytest.raises(WeightsError, match=r"1 entry missing, first 'blocks\.3\.attn\.qkv\.weight'"):
        checkpoint.load_published(backbone, state, name="file")


@pytest.mark.parametrize("size", [160, 256, 384, 448, 480, 512, 896])
def test_tables_of_other_sizes_are_finite_and_turn_back(size: int) -> None:
    """Also where upstream's resampling gives NaN; a linear table stays monotonous, the class token's rows stay."""
    offsets = np.arange(-13, 14, dtype=np.float32)
    rows = np.repeat(offsets, 27)[:, None]
    table = np.concatenate([rows, [[7.0], [8.0], [9.0]]]).astype(np.float32)
    grid = size // 16
    right = tables.resized(table, grid, transposed=False)
    side = 2 * grid - 1
    square = right[:-3].reshape(side, side)
    assert np.isfinite(right).all()
    assert (np.diff(square, axis=0) > 0).all()
    np.testing.assert_allclose(square, square[:, :1].repeat(side, axis=1), atol=1e-4)
    np.testing.assert_array_equal(right[-3:, 0], [7, 8, 9])
    np.testing.assert_array_equal(tables.resized(table, grid)[:-3].reshape(side, side), square.T)
    np.testing.assert_array_equal(tables.resized(table, 14), table)
    with pytest.raises(WeightsError, match="of no square grid"):
        tables.resized(table[1:], grid)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.pth", _published())
    with pytest.raises(WeightsError, match=r"holds no classifier, 'head\.weight' is missing"):
        checkpoint.classifier(path)
    with pytest.raises(WeightsError, match="holds no segmentation network"):
        checkpoint.segmenter(path)
    state = {k: v for k, v in _published().items() if not k.startswith("rel_pos_bias")}
    with pytest.raises(WeightsError, match="has no table of relative positions"):
        checkpoint.encoder(_save(tmp_path / "b.pth", state))
    with pytest.raises(WeightsError, match=r"have no 'rel_pos_bias\.relative_position_bias_table'"):
        checkpoint.remapped(state, 12, 4)
    (tmp_path / "c.pth").write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(WeightsError, match="damaged or no weights file|cannot be read safely"):
        checkpoint.encoder(tmp_path / "c.pth")


def test_a_file_of_another_variant_is_refused(tmp_path: Path) -> None:
    model = Usfm(Registry.discover().card(Kind.MODEL, "usfm"))
    variants = {variant.name: variant for variant in model.card.variants}

    def load(name: str, state: dict) -> None:
        path = _save(tmp_path / "net.pth", state)
        model.network(model.graphs(variants[name])[0], variants[name], {"net": path})

    with pytest.raises(WeightsError, match="was trained on 64 pixels, expected 224"):
        load("mean", _published())
    with pytest.raises(WeightsError, match="holds the other segmentation network, UPerNet"):
        load("segvit", segmenter.upernet(2, img_size=32).state_dict())
    with pytest.raises(WeightsError, match="was trained on 32 pixels, expected 512"):
        load("upernet", segmenter.upernet(2, img_size=32).state_dict())
    load("token", _published(224))
