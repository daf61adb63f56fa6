"""The pipeline around the network, and upstream's containers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from omlab.cases import PatchFeatures, Slide, read
from omlab.cases.slide import of_pixels
from omlab.errors import InputError, UsageError, WeightsError
from omlab.loading import options_of
from omlab.model import Context
from omlab.plugins import Registry
from omlab.results import SlideFeatures
from omlab.vocabulary import InputKind, Kind
from omlab_brow.model import Brow
from omlab_sdk.contract import pyramids, samples


@pytest.fixture(scope="module")
def model() -> Brow:
    return Brow(Registry.discover().card(Kind.MODEL, "brow"))


class _Engine:
    """Mean colours of the centre, repeated."""

    def __init__(self, width: int = 768) -> None:
        self.width = width
        self.given: list[int] = []

    def __call__(self, inputs):
        image = inputs["image"]
        assert image.shape[1:] == (3, 224, 224)
        assert image.dtype == np.float32
        self.given.append(len(image))
        return {"feature": np.repeat(image.mean(axis=(2, 3)), self.width // 3, axis=1)}


def _context(model: Brow, engine: _Engine, variant: str = "base", **options) -> Context:
    filled = options_of(model.card, {"tissue": "bwh_biopsy", **options})
    return Context(variant=model.card.variant(variant), engines={"encoder": engine}, options=filled)


def test_a_patch_gets_one_embedding(model: Brow, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "p.png")
    case = read(tmp_path / "p.png", kind=model.card.inputs)
    engine = _Engine()
    vector = model.predict(case, _context(model, engine)).vector
    assert vector.shape == (768,)
    pixels[:16] = 0  # outside of the centre
    Pillow.fromarray(pixels).save(tmp_path / "q.png")
    np.testing.assert_array_equal(model.predict(read(tmp_path / "q.png"), _context(model, engine)).vector, vector)
    whole = model.predict(read(tmp_path / "q.png"), _context(model, engine, view="whole")).vector
    assert not np.allclose(whole, vector)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_patches_of_other_modes(model: Brow, tmp_path: Path, mode: str) -> None:
    grey = Pillow.fromarray(np.full((256, 256), 120, np.uint8))
    picture = Pillow.fromarray(np.full((256, 256), 120 * 257, np.uint16)) if mode == "I;16" else grey.convert(mode)
    picture.save(tmp_path / "p.png")
    vector = model.predict(read(tmp_path / "p.png"), _context(model, _Engine())).vector
    np.testing.assert_allclose(vector[0], (120 / 255 - 0.485) / 0.229, rtol=1e-4)


def test_what_cannot_be_seen_is_refused(model: Brow, tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((100, 300, 3), np.uint8)).save(tmp_path / "p.png")
    with pytest.raises(InputError, match="has 100 x 300 pixels, expected at least 224 .*With --view whole"):
        model.predict(read(tmp_path / "p.png"), _context(model, _Engine()))
    assert model.predict(read(tmp_path / "p.png"), _context(model, _Engine(), view="whole")).vector.shape == (768,)
    with pytest.raises(InputError, match="takes a slide or an image of a patch, found volume"):
        model.predict(SimpleNamespace(name="x", kind="volume"), _context(model, _Engine()))


@pytest.mark.parametrize(("options", "told"), [
    ({"patch_size": 128}, "patches of 128 pixels have no centre of 224"),
    ({"patch_size": 0}, "at least 1 is needed"),
    ({"region": "1,2"}, "'1,2' is no region"),
    ({"region": "5,5,5,9"}, "is empty"),
])  # fmt: skip
def test_options_that_fit_no_slide_are_told_before_any_is_read(model: Brow, options: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        model.validate(_context(model, _Engine(), **options).options, None)


def test_a_slide_gets_features_of_all_its_patches(model: Brow, tmp_path: Path) -> None:
    path = samples.write_sample(InputKind.SLIDE, tmp_path)
    slide = read(path, kind=model.card.inputs)
    assert isinstance(slide, Slide)
    engine = _Engine(192)
    result = model.predict(slide, _context(model, engine, "tiny", batch=16, readers=2))
    assert isinstance(result, SlideFeatures)
    assert (result.patches, result.width) == (sum(engine.given), 192)
    assert max(engine.given) == 16
    features = result.features()
    x, y = result.coords[5]
    patch = slide.region(int(x) + 16, int(y) + 16, 224, 224).mean(axis=(0, 1))
    np.testing.assert_allclose(features[5, :1], (patch[0] / 255 - 0.485) / 0.229, rtol=1e-4)
    part = model.predict(slide, _context(model, engine, "tiny", region="0,0,2048,1536"))
    assert part.patches < result.patches
    half = model.predict(slide, _context(model, engine, "tiny", magnification=10.0))
    assert half.side == (512, 512)
    stated = model.predict(slide, _context(model, engine, "tiny", magnification=10.0, slide_magnification=40.0))
    assert stated.side == (1024, 1024)


class _Glass:
    levels, mpp, magnification = ((3000, 2000),), None, None
    details, warnings = {}, []

    def read(self, level, x, y, width, height):
        return np.full((height, width, 3), 245, np.uint8)


def test_slides_that_cannot_be_taken(model: Brow, tmp_path: Path) -> None:
    glass = of_pixels(_Glass(), "glass")
    with pytest.raises(InputError, match="no tissue was found"):
        model.predict(glass, _context(model, _Engine()))
    plain = pyramids.write(tmp_path / "s.tif", (3000, 3000), pyramids.disc((1500, 1500), 1200), mpp=None)
    slide = read(plain, kind=model.card.inputs)
    with pytest.raises(InputError, match="does not tell its magnification"):
        model.predict(slide, _context(model, _Engine(), magnification=20.0))
    assert model.predict(slide, _context(model, _Engine(), magnification=20.0, slide_mpp=0.25)).side == (512, 512)


def test_one_level_is_enough(model: Brow, tmp_path: Path) -> None:
    path = pyramids.write(tmp_path / "s.tif", (5000, 5000), pyramids.disc((2500, 2500), 2000), downsamples=(1,))
    result = model.predict(read(path, kind=model.card.inputs), _context(model, _Engine()))
    assert result.patches > 150


def test_upstreams_containers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from omlab_brow import checkpoint
    from omlab_brow.network import SIZES, VisionTransformer

    torch.manual_seed(0)
    arguments = SIZES["vit_tiny"] | {"depth": 1, "img_size": 64}
    network = VisionTransformer(**arguments).eval()
    state = network.state_dict()
    image = torch.rand(1, 3, 64, 64)
    wrapped = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    head = {"module.head.mlp.0.weight": torch.zeros(2, 2)}
    for content in (state, {"teacher": wrapped | head, "student": {}}, {"state_dict": state}):
        torch.save(content, tmp_path / "net.pth")
        with torch.inference_mode():
            torch.testing.assert_close(checkpoint.encoder(tmp_path / "net.pth")(image), network(image))
    brow = Brow(Registry.discover().card(Kind.MODEL, "brow"))
    tiny, base = (brow.card.variant(name) for name in ("tiny", "base"))
    found = brow.network(brow.graphs(tiny)[0], tiny, {"net": tmp_path / "net.pth"})
    assert found.pos_embed.shape == (1, 197, 192)  # its table was brought to patches of 224
    with torch.inference_mode():
        large = torch.rand(1, 3, 224, 224)
        torch.testing.assert_close(found(large), network(large), rtol=1e-4, atol=1e-5)
    with pytest.raises(WeightsError, match="has 192 features, variant 'base' has 768"):
        brow.network(brow.graphs(base)[0], base, {"net": tmp_path / "net.pth"})
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="is no encoder of BROW"):
        checkpoint.encoder(tmp_path / "net.pth")
    torch.save(VisionTransformer(**(arguments | {"embed_dim": 96})).state_dict(), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="has 96 features, the sizes of BROW have 192"):
        checkpoint.encoder(tmp_path / "net.pth")


def test_features_are_no_input(model: Brow) -> None:
    assert PatchFeatures.kind not in model.card.inputs
