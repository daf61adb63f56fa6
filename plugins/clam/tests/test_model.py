"""The pipeline around the networks: bags, attention, heat maps, slides through an encoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

h5py = pytest.importorskip("h5py")

from omlab.cases import read  # noqa: E402
from omlab.errors import InputError, UsageError  # noqa: E402
from omlab.inference.patches import GridRules  # noqa: E402
from omlab.inference.slides import extract, plan  # noqa: E402
from omlab.inference.tissue import PRESETS  # noqa: E402
from omlab.loading import options_of  # noqa: E402
from omlab.model import Context  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.results import write  # noqa: E402
from omlab.vocabulary import InputKind, Kind  # noqa: E402
from omlab_brow.model import Brow  # noqa: E402
from omlab_clam import bags, heatmap, looking  # noqa: E402
from omlab_clam.model import ClamModel  # noqa: E402
from omlab_sdk.contract import samples  # noqa: E402

TISSUE = "bwh_biopsy"


class _Engine:
    """The first feature is the score; the mean of the second decides between two classes."""

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows
        self.given: list[int] = []

    def __call__(self, inputs):
        bag = inputs["bag"]
        self.given.append(len(bag))
        logit = float(bag[:, 1].mean())
        scores = np.stack([bag[:, 0] * (n + 1) for n in range(self.rows)])
        return {"logits": np.array([[0, logit]], np.float32), "scores": scores.astype(np.float32)}


class _Model(ClamModel):
    """Its encoder sees the place of each patch and a constant, 768 wide."""

    def encode(self, slide, context, more):
        self.asked = dict(more)
        rules = GridRules(
            patch=256, step=more.get("step_size", 256), inside=more.get("inside", "four_pt"),
            shift=more.get("shift", 0.5),
        )  # fmt: skip
        made = plan(slide, tissue=PRESETS[TISSUE], rules=rules)
        place = iter(made.coords)

        def compute(tiles):
            found = np.ones((len(tiles), 768), np.float32)
            found[:, 0] = [next(place)[0] for _ in range(len(tiles))]
            return found

        return extract(
            slide, made, context, prepare=lambda t: t.astype(np.float32), compute=compute, width=768, identity={}
        )


@pytest.fixture
def model() -> _Model:
    return _Model(Registry.discover().card(Kind.MODEL, "clam"))


def _context(model: ClamModel, engine: _Engine, variant: str = "camelyon16", **options) -> Context:
    filled = options_of(model.card, {"tissue": TISSUE, **options})
    return Context(variant=model.card.variant(variant), engines={"classifier": engine}, options=filled)


def test_features_from_a_file(model: ClamModel, tmp_path: Path) -> None:
    case = read(samples.write_sample(InputKind.FEATURES, tmp_path), kind=(InputKind.SLIDE, InputKind.FEATURES))
    result = model.predict(case, _context(model, _Engine()))
    assert result.classes == ("normal", "tumor")
    assert result.measurements == {"patches": 30}
    assert result.illustration is None
    files = write(result, case, tmp_path)
    with h5py.File(files["attention.h5"]) as file:
        np.testing.assert_array_equal(file["attention_scores"][:, 0], case.features[:, 0])
        np.testing.assert_array_equal(file["coords"], case.coords)
    two = model.predict(case, _context(model, _Engine(), "classifier", names="no, yes"))
    assert two.classes == ("no", "yes")


def test_the_row_of_the_chosen_class_is_shown() -> None:
    scores = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(looking.row_of(scores, 1), [4, 5, 6])
    np.testing.assert_array_equal(looking.row_of(scores[:1], 1), [1, 2, 3])


def test_features_of_another_encoder_are_refused(model: ClamModel) -> None:
    case = samples.features()
    with pytest.raises(InputError, match="has 768 features a patch, the classifier takes 1024"):
        model.predict(case, _context(model, _Engine(), "classifier-1024"))
    with pytest.raises(InputError, match="takes a slide or features"):
        model.predict(SimpleNamespace(name="x", kind="image"), _context(model, _Engine()))


def test_an_encoder_of_another_width_is_told_before_a_patch_is_read(monkeypatch) -> None:
    registry = Registry.discover()
    model, brow = ClamModel(registry.card(Kind.MODEL, "clam")), registry.card(Kind.MODEL, "brow")
    variant = brow.variant("small")

    def run(*_, **__):
        raise AssertionError("the slide was encoded")

    loaded = SimpleNamespace(card=brow, variant=variant, graphs=Brow(brow).graphs(variant), run=run)
    monkeypatch.setattr(model, "encoder", lambda name, variant: loaded)
    with pytest.raises(UsageError, match="'brow', variant 'small', gives 384 features a patch, .* takes 768"):
        model.predict(samples.slide(), _context(model, _Engine()))
    loaded.graphs = Brow(brow).graphs(brow.variant("base"))
    with pytest.raises(AssertionError, match="was encoded"):
        model.predict(samples.slide(), _context(model, _Engine()))


def test_a_slide_gets_its_heat_map(model: _Model, tmp_path: Path) -> None:
    case = samples.slide()
    result = model.predict(case, _context(model, _Engine(), cmap="viridis", alpha=1.0))
    files = write(result, case, tmp_path)
    assert {"features.h5", "attention.h5", "heatmap.png"} <= set(files)
    drawn = np.asarray(Pillow.open(files["heatmap.png"])).astype(int)
    assert drawn.shape == (192, 256, 3)  # the level with a downsample of 16
    purple, yellow = drawn[94, 40], drawn[62, 215]  # viridis from its lowest to its highest
    assert purple[2] > purple[1]
    assert yellow[1] > yellow[2]
    assert (drawn[5, 5] == 240).all()  # glass stays as it is
    assert result.illustration("CLAM").width > 400
    assert read(files["features.h5"], kind=InputKind.FEATURES).features.shape == (result.measurements["patches"], 768)


def test_a_finer_heat_map_ranks_among_the_coarse_scores(model: _Model, tmp_path: Path) -> None:
    engine = _Engine()
    case = samples.slide()
    result = model.predict(case, _context(model, engine, overlap=0.5))
    assert model.asked == {"step_size": 128, "inside": "four_pt_hard", "shift": 0.5}
    assert engine.given[1] > 2 * engine.given[0]
    write(result, case, tmp_path)
    assert (tmp_path / "heatmap.png").is_file()
    with pytest.raises(UsageError, match="overlap is 1"):
        model.validate(_context(model, engine, overlap=1.0).options, None)
    with pytest.raises(UsageError, match="needs the slide itself"):
        model.predict(samples.features(), _context(model, engine, overlap=0.5))


def test_the_slide_of_features_is_found_by_name(model: ClamModel, tmp_path: Path) -> None:
    slide = samples.write_sample(InputKind.SLIDE, tmp_path)
    case = read(samples.write_sample(InputKind.FEATURES, tmp_path), kind=InputKind.FEATURES)
    for where in (slide, tmp_path):
        result = model.predict(case, _context(model, _Engine(), slides=where))
        assert "heatmap.png" in result.files
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no slide 'sample'"):
        model.predict(case, _context(model, _Engine(), slides=tmp_path / "empty"))


def test_percentiles() -> None:
    from scipy.stats import percentileofscore

    reference = np.array([1, 2, 2, 3, 7.0])
    asked = np.array([0, 1, 2, 2.5, 7, 9.0])
    np.testing.assert_allclose(
        heatmap.percentiles_among(asked, reference), [percentileofscore(reference, v) for v in asked]
    )
    np.testing.assert_allclose(heatmap.percentiles(np.array([5, 1, 5, 9.0])), [62.5, 25, 62.5, 100])


def test_heat_maps_in_part_and_smaller() -> None:
    slide = samples.slide()
    coords = np.array([[0, 0], [1024, 0], [2048, 2048]])
    drawn = {"scores": np.array([100.0, 50, 0]), "coords": coords, "side": (1024, 1024), "alpha": 1.0, "level": 2}
    whole = heatmap.draw(slide, **drawn)
    assert whole.shape == (192, 256, 3)
    part = heatmap.draw(slide, region=(1024, 0, 4096, 1024), **drawn)
    assert part.shape == (64, 192, 3)
    np.testing.assert_array_equal(part[:60, :60], whole[:60, 64:124])
    assert heatmap.draw(slide, max_size=64, **drawn).shape == (48, 64, 3)
    assert heatmap.draw(slide, shrink=2, **drawn).shape == (96, 128, 3)
    kept = heatmap.draw(slide, binarize=True, threshold=0.4, blank=True, **drawn)
    assert (kept[130:, 130:] == 255).all()  # below the threshold nothing is drawn
    with pytest.raises(InputError, match="no colour map 'rainbows'"):
        heatmap.draw(slide, **(drawn | {"cmap": "rainbows"}))
    with pytest.raises(InputError, match="has no level 9"):
        heatmap.draw(slide, **(drawn | {"level": 9}))


def test_tensors_of_upstreams_scripts_are_bags(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.ones(5, 768), tmp_path / "a.pt")
    bag = bags.read(tmp_path / "a.pt")
    assert bag.features.shape == (5, 768)
    assert bag.coords is None
    torch.save({"x": 1}, tmp_path / "b.pt")
    with pytest.raises(InputError, match="holds no tensor"):
        bags.read(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match="damaged or more than a tensor"):
        bags.read(tmp_path / "c.pt")
