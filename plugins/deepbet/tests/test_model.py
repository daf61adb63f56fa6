"""The whole pipeline, with the torch networks as engines."""

from __future__ import annotations

import tomllib
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab.cards import ModelCard  # noqa: E402
from omlab.cases import Volume  # noqa: E402
from omlab.errors import InputError, OfflineError, UsageError, WeightsError  # noqa: E402
from omlab.geometry import Geometry  # noqa: E402
from omlab.manifest import cards_of  # noqa: E402
from omlab.model import Context  # noqa: E402
from omlab_deepbet.model import DeepBet, dilated, largest_component  # noqa: E402

VOLUMES = Path(__file__).parents[4] / "shared" / "data" / "volumes"


def card() -> ModelCard:
    text = (package_files("omlab_deepbet") / "omlab.toml").read_text("utf-8")
    ((_, found),) = cards_of(tomllib.loads(text))
    assert isinstance(found, ModelCard)
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, Path]:
    """The published weights; fetched into the user's cache where they are not there yet."""
    from omlab.settings import Settings
    from omlab.weights import Grant, ensure

    the_card = card()
    try:
        return ensure(
            the_card.name, the_card.variant().weights, the_card.licence_weights, Settings.from_environment(),
            grant=Grant(fetch=True),
        )  # fmt: skip
    except OfflineError as error:
        pytest.skip(f"the weights of deepbet cannot be had here: {error}")


class Engines:
    """The torch networks themselves, as the engines of a context."""

    def __init__(self, model: DeepBet, weights: dict[str, Path]) -> None:
        variant = model.card.variant()
        self.networks = {g.name: model.network(g, variant, weights) for g in model.graphs(variant)}

    def __getitem__(self, name: str) -> Any:
        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                # How torch lays its outputs out depends on its threads; engines give C order.
                return {"probability": self.networks[name](torch.from_numpy(inputs["image"])).contiguous().numpy()}

        return run


@pytest.fixture(scope="module")
def engines(weights: dict[str, Path]) -> Engines:
    return Engines(DeepBet(card()), weights)


def predict(volume: Volume, engines: Any, **options: Any) -> Any:
    model = DeepBet(card())
    options = {"threshold": 0.5, "dilate": 0} | options
    return model.predict(volume, Context(variant=model.card.variant(), engines=engines, options=options))


def load(name: str) -> Volume:
    nibabel = pytest.importorskip("nibabel")
    path = VOLUMES / name
    if not path.exists():
        pytest.skip(f"the test volume {name} is not beside the repository")
    image = nibabel.load(path)
    voxels = np.asanyarray(image.dataobj)
    return Volume(name=name, voxels=voxels, geometry=Geometry(voxels.shape, image.affine))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_mask_equals_that_of_deepbet(engines: Engines) -> None:
    head = load("chris_t1.nii.gz")
    reference = load("chris_t1_deepbet_mask.nii.gz").voxels > 0
    result = predict(head, engines)
    assert result.labels.dtype == np.uint8
    assert dice(result.labels > 0, reference) >= 0.9999
    assert result.measurements["volume_ml"] == pytest.approx(1545.56, abs=0.1)
    assert [s.name for s in result.structures] == ["brain"]


@pytest.mark.parametrize(("order", "flips"), [((2, 0, 1), (True, False, True)), ((1, 0, 2), (False, True, True))])
def test_a_turned_head_gives_the_turned_mask(engines: Engines, order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    """The same head with its axes permuted and flipped in the file, and an affine that says so."""
    head = load("chris_t1.nii.gz")
    turn = tuple(slice(None, None, -1) if f else slice(None) for f in flips)
    affine = np.eye(4)
    affine[:3, 3] = head.geometry.affine[:3, 3]
    for axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        column = head.geometry.affine[:3, source]
        affine[:3, axis] = -column if flip else column
        if flip:
            affine[:3, 3] += column * (head.geometry.shape[source] - 1)
    voxels = head.voxels.transpose(order)[turn]
    turned = Volume(name="turned", voxels=voxels, geometry=Geometry(voxels.shape, affine))
    reference = load("chris_t1_deepbet_mask.nii.gz").voxels.transpose(order)[turn] > 0
    assert dice(predict(turned, engines).labels > 0, reference) >= 0.9999


def test_examples_show_a_brain(engines: Engines) -> None:
    model = DeepBet(card())
    for graph in model.graphs(model.card.variant()):
        first, again = (next(iter(model.examples(graph, model.card.variant()))) for _ in range(2))
        assert np.array_equal(first["image"], again["image"])
        brain = engines[graph.name](first)["probability"] > 0.5
        assert brain.shape == graph.outputs[0].shape
        assert 0.1 < brain.mean() < 0.6


class Given:
    """Engines that see brain where the test says: in the first ``blocks`` of the coarse grid."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def __getitem__(self, name: str) -> Any:
        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            side = inputs["image"].shape[-1]
            probability = np.zeros((1, side // 2, side // 2, side // 4, 16), np.float32)
            if name == "bbox":
                probability[0, : self.blocks, : self.blocks, : self.blocks] = 1
            return {"probability": probability}

        return run


@pytest.mark.parametrize(
    ("blocks", "message"), [(0, "no brain was found"), (2, "too small to be a brain"), (20, "no brain was found")]
)
def test_no_brain_is_an_input_error(blocks: int, message: str) -> None:
    """Nothing in the coarse mask, next to nothing, and something that the fine network does not confirm."""
    voxels = np.random.default_rng(0).integers(0, 1000, (40, 50, 60)).astype(np.int16)
    case = Volume(name="noise.nii", voxels=voxels, geometry=Geometry(voxels.shape, np.eye(4)))
    with pytest.raises(InputError, match=rf"noise\.nii: .*{message}"):
        predict(case, Given(blocks))


def test_an_empty_volume_is_an_input_error(engines: Engines) -> None:
    case = Volume(
        name="flat.nii", voxels=np.full((40, 50, 60), 7, np.uint8), geometry=Geometry((40, 50, 60), np.eye(4))
    )
    with pytest.raises(InputError, match=r"flat\.nii: 99 % of the voxels have the same value 7"):
        predict(case, engines)


def test_threshold_outside_its_range_is_a_usage_error() -> None:
    case = Volume(name="x", voxels=np.zeros((20, 20, 20)), geometry=Geometry((20, 20, 20), np.eye(4)))
    with pytest.raises(UsageError, match="between 0 and 1, found 2"):
        predict(case, {}, threshold=2)


def test_tensors_equal_those_that_torch_loads(weights: dict[str, Path]) -> None:
    from omlab_sdk.torchscript import read_torchscript

    for path in weights.values():
        found, expected = read_torchscript(path), torch.jit.load(path).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.jit.script(torch.nn.Linear(2, 3)).save(path)
    model = DeepBet(card())
    variant = model.card.variant()
    with pytest.raises(WeightsError, match=r"other\.pt"):
        model.network(model.graphs(variant)[0], variant, {"bbox": path})


def test_growing_and_shrinking() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(0).random((18, 19, 20)) > 0.97
    assert np.array_equal(dilated(mask.astype(np.uint8), 2), ndimage.binary_dilation(mask, iterations=2))
    thick = ndimage.binary_dilation(mask, iterations=3)
    expected = ndimage.binary_erosion(thick, iterations=2, border_value=1)
    assert np.array_equal(dilated(thick.astype(np.uint8), -2), expected)


def test_components_hang_together_by_corners() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[5, 5, 5] = True
    assert np.array_equal(np.argwhere(largest_component(mask, "x")), [[0, 0, 0], [1, 1, 1]])


def test_card_is_complete() -> None:
    found = card()
    assert found.citation is not None
    assert found.citation.doi == "10.1016/j.compbiomed.2024.108845"
    assert all(len(asset.sha256) == 64 and asset.size for asset in found.variant().weights)
    assert {asset.id for asset in found.variant().weights} == {g.name for g in DeepBet(found).graphs(found.variant())}
    assert attrs.asdict(found)["labels"][0]["code"] == ("12738006", "SCT", "Brain")
