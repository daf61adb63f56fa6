"""The whole pipeline on the example CT, with a small network of the same form."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Iterator
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab.cards import ModelCard  # noqa: E402
from omlab.cases import Volume, read  # noqa: E402
from omlab.errors import InputError, UnknownName, UsageError  # noqa: E402
from omlab.geometry import Geometry, Turn  # noqa: E402
from omlab.loading import options_of  # noqa: E402
from omlab.manifest import cards_of  # noqa: E402
from omlab.model import Context  # noqa: E402
from omlab.results import Segmentation, summarise, write  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_stunet import datasets, selection  # noqa: E402
from omlab_stunet.model import StuNet  # noqa: E402
from omlab_stunet.pipeline import prepare  # noqa: E402
from omlab_stunet.plan import Plan  # noqa: E402

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
#: A network of the same form that takes a blink, at 6 mm.
MICRO = {
    "dims": (4, 4, 8, 8, 8, 8), "depth": (1, 1, 1, 1, 1, 1), "patch": (16, 32, 32), "spacing_mm": (6, 6, 6),
    "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
}  # fmt: skip


def card() -> ModelCard:
    text = (package_files("omlab_stunet") / "omlab.toml").read_text("utf-8")
    found = next(card for kind, card in cards_of(tomllib.loads(text)) if kind is Kind.MODEL)
    assert isinstance(found, ModelCard)
    return found


class Engines(dict[str, Any]):
    """The torch network itself as engine, seeded; the heads are sharpened, so that labels hang on more than noise."""

    def __init__(self, model: StuNet, variant: Any) -> None:
        graph = model.graphs(variant)[0]
        network = model.untrained(graph, variant)
        seed_module(network)
        names = [spec.name for spec in graph.outputs]

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                found = network(torch.from_numpy(inputs["image"]))
            arrays = {name: tensor.numpy() for name, tensor in zip(names, found, strict=True)}
            return arrays | {"weight": 4 * arrays["weight"]}

        super().__init__(window=run)


MODEL = StuNet(card())
VARIANT = attrs.evolve(card().variants[0], config=MICRO, weights=())
ENGINES = Engines(MODEL, VARIANT)


def predict(case: Volume, variant: Any = VARIANT, **options: Any) -> Segmentation:
    filled = options_of(MODEL.card, options)
    MODEL.validate(filled, None)
    found = MODEL.predict(case, Context(variant=variant, engines=ENGINES, options=filled))
    assert isinstance(found, Segmentation)
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as this one only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scan() -> Volume:
    path = DATA / "totalsegmentator_example" / "example_ct_sm.nii.gz"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder shared beside the project")
    case = read(path)
    assert isinstance(case, Volume)
    return case


@pytest.fixture(scope="module")
def whole(scan: Volume) -> Segmentation:
    return predict(scan)


def made(shape: tuple[int, int, int], spacing: tuple[float, float, float], dtype: Any = np.int16) -> Volume:
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape).astype(dtype)
    affine = np.diag([*spacing, 1.0])
    return Volume(name="made.nii", voxels=voxels, geometry=Geometry(shape, affine))


def test_labels_lie_on_the_grid_of_the_scan(scan: Volume, whole: Segmentation) -> None:
    assert whole.labels.shape == scan.voxels.shape
    assert whole.labels.dtype == np.uint8
    assert whole.geometry is scan.geometry
    assert len(whole.structures) == 104
    assert len(np.unique(whole.labels)) > 5
    assert whole.measurements["windows"] == 9


def test_figures_of_every_structure(scan: Volume, whole: Segmentation, tmp_path: Path) -> None:
    """Volume and mean intensity: in the summary, and as a table beside the label map."""
    rows = summarise(whole)["structures"]
    assert [row["name"] for row in rows] == [label.name for label in card().labels]
    there = [row for row in rows if row["voxels"]]
    assert there
    for row in rows:
        mask = whole.labels == row["value"]
        assert row["voxels"] == mask.sum()
        assert row["volume_ml"] == pytest.approx(mask.sum() * 0.027, rel=1e-6)
        if mask.any():
            assert row["mean_hu"] == pytest.approx(scan.voxels[mask].mean(), abs=1e-6)
            assert row["sd_hu"] == pytest.approx(scan.voxels[mask].std(), abs=1e-6)
        else:
            assert row["mean_hu"] is None
    written = write(whole, scan, tmp_path)
    assert set(written) == {"nifti", "csv"}
    with open(written["csv"], encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["value", "name", "voxels", "volume_ml", "mean_hu", "sd_hu"]
    assert float(next(r for r in table if r["voxels"] != "0")["mean_hu"]) == pytest.approx(there[0]["mean_hu"])


def test_a_turned_scan_gives_the_turned_labels(scan: Volume, whole: Segmentation) -> None:
    turn = Turn.to(scan.geometry, "PSL")
    turned = attrs.evolve(scan, voxels=np.ascontiguousarray(turn.apply(scan.voxels)), geometry=turn.target)
    assert np.array_equal(turn.undo(predict(turned).labels), whole.labels)


def test_the_network_sees_the_axes_of_its_plan() -> None:
    """A transposed plan on a scan is the plain one on the transposed scan; without an orientation nothing is turned."""
    case = made((28, 20, 24), (5, 6, 7))
    moved = made((20, 24, 28), (6, 7, 5))
    moved = attrs.evolve(moved, voxels=case.voxels.transpose(1, 2, 0))
    transposed = predict(case, VARIANT.configured(transpose=[2, 0, 1], orientation=""))
    plain = predict(moved, VARIANT.configured(orientation=""))
    assert len(np.unique(plain.labels)) > 5
    assert np.array_equal(transposed.labels.transpose(1, 2, 0), plain.labels)
    left = attrs.evolve(case, geometry=Geometry(case.voxels.shape, np.diag([-5.0, 6.0, 7.0, 1.0])))
    assert np.array_equal(
        predict(left, VARIANT.configured(orientation="")).labels,
        predict(case, VARIANT.configured(orientation="")).labels,
    )
    assert not np.array_equal(predict(left).labels, predict(case).labels)


def test_only_the_largest_component_stays_where_the_plan_says_so(scan: Volume, whole: Segmentation) -> None:
    cc3d = pytest.importorskip("cc3d")
    counts = [cc3d.connected_components(whole.labels == v, connectivity=6).max() for v in range(1, 105)]
    value = 1 + int(np.argmax(counts))
    assert max(counts) > 1
    found = predict(scan, VARIANT.configured(largest=[[value]]))
    parts = cc3d.connected_components(whole.labels == value, connectivity=6)
    largest = np.bincount(parts.ravel())[1:].max()
    assert (found.labels == value).sum() % largest == 0
    assert 0 < (found.labels == value).sum() < (whole.labels == value).sum()
    kept = whole.labels != value
    assert np.array_equal(found.labels[kept], whole.labels[kept])


def test_parts_and_sixteen_bits_change_next_to_nothing(scan: Volume, whole: Segmentation) -> None:
    narrow = predict(scan, memory=5e-3)
    assert narrow.measurements["windows"] > whole.measurements["windows"]
    assert np.mean(narrow.labels != whole.labels) < 1e-4


def test_regions_have_the_voxels_of_the_whole(scan: Volume, whole: Segmentation) -> None:
    names = {label.value: label.name for label in whole.structures}
    first, second = (int(v) for v in np.unique(whole.labels)[-2:])
    part = predict(scan, structures=f"{names[first]}, {names[second].upper()}")
    assert [label.value for label in part.structures] == [first, second]
    expected = np.where(np.isin(whole.labels, [first, second]), whole.labels, 0)
    assert np.array_equal(part.labels, expected)
    assert len(selection.of(card().labels, "rib_*,liver").structures) == 25
    with pytest.raises(UnknownName, match="no structure 'livr'") as error:
        predict(scan, structures="livr")
    assert "liver" in str(error.value)


def test_labels_of_a_dataset(scan: Volume, whole: Segmentation) -> None:
    values = {label.name: label.value for label in whole.structures}
    for name in ("Task011_BTCV", "abdomenct1k", "CT_ORG"):
        mapped = predict(scan, dataset=name)
        rows = datasets.table(name)
        assert [(s.value, s.name) for s in mapped.structures] == [(n, row.name) for n, row in enumerate(rows, 1)]
        for number, row in enumerate(rows, start=1):
            expected = np.isin(whole.labels, [values[c] for c in row.classes])
            assert np.array_equal(mapped.labels == number, expected)
    with pytest.raises(UnknownName, match="no dataset 'nothing'"):
        predict(scan, dataset="nothing")
    with pytest.raises(UsageError, match="only one"):
        predict(scan, dataset="BTCV", structures="liver")
    assert len(datasets.tables()) == 14


def test_modes_mirroring_and_spacing(scan: Volume, whole: Segmentation) -> None:
    fast, fastest = predict(scan, mode="fast"), predict(scan, mode="fastest")
    assert 0.5 < np.mean(fast.labels == whole.labels) < 1
    assert 0.5 < np.mean(fastest.labels == whole.labels) < 1
    assert not np.array_equal(predict(scan, mirror=True).labels, whole.labels)
    coarse = predict(scan, spacing=9.0)
    assert coarse.measurements["windows"] < whole.measurements["windows"]
    assert predict(scan, step=1.0).measurements["windows"] < whole.measurements["windows"]
    for wrong in ({"step": 0.0}, {"step": 1.5}, {"spacing": -1.0}, {"memory": 0.0}):
        with pytest.raises(UsageError, match=f"option '{next(iter(wrong))}'"):
            predict(scan, **wrong)


def test_air_is_skipped_only_when_asked(scan: Volume) -> None:
    """A table and a body with much air above: windows in it are skipped with ``air`` alone, and told of."""
    voxels = np.pad(scan.voxels, ((0, 0), (0, 150), (0, 0)), constant_values=-1000)
    voxels = voxels + np.random.default_rng(0).integers(-5, 5, voxels.shape).astype(voxels.dtype)
    case = attrs.evolve(scan, voxels=voxels, geometry=Geometry(voxels.shape, scan.geometry.affine))
    exact, air = predict(case), predict(case, skip_background="air")
    assert exact.measurements["windows_skipped"] == 0
    assert air.measurements["windows_skipped"] > 0
    assert air.measurements["skipped_ml"] > 0
    body = np.s_[:, : scan.voxels.shape[1] - 20]
    assert np.mean(air.labels[body] == exact.labels[body]) > 0.9
    off = predict(scan, skip_background="off")
    assert np.array_equal(off.labels, predict(scan).labels)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("scheme", ["nonCT", "CT", "CT2", "noNorm"])
def test_air_is_known_after_every_normalisation(scheme: str, version: int) -> None:
    """What was -500 HU before, found by voxels that had that value, clipping of the training data's range included."""
    for low in (-900.0, -160.0):
        known = {"percentile_00_5": low, "percentile_99_5": 240.0, "mean": 30.0, "sd": 90.0}
        plan = Plan(
            dims=MICRO["dims"], depth=MICRO["depth"], spacing_mm=(2, 2, 2), scheme=scheme, version=version,
            intensities=known,
        )  # fmt: skip
        voxels = np.random.default_rng(0).integers(-1000, 1500, (8, 9, 10)).astype(np.int16)
        voxels[4, 4, 4] = -500
        found = prepare(voxels, (2, 2, 2), plan)  # not resampled, so that values stay where they are
        assert found.air == pytest.approx(found.image[0, 4, 4, 4], rel=1e-4, abs=1e-4)


def test_air_cannot_be_told_where_a_mask_hides_it() -> None:
    with pytest.raises(UsageError, match="skip-background 'air'"):
        predict(made((30, 20, 25), (2, 2, 2)), VARIANT.configured(use_mask=True), skip_background="air")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (made((40, 40, 1), (1, 1, 5)), "single slice"),
        (made((40, 40, 40), (0, 1, 1)), "its spacing is 0 x 1 x 1 mm"),
        (made((40, 40, 40), (1000, 1000, 1000)), "is 40000 mm long"),
        (made((40, 40, 40), (0.1, 0.1, 0.1)), r"4 x 4 x 4 mm large.* at least 4 are needed"),
        (made((10, 10, 10), (3, 3, 3), np.complex64), "one number a voxel"),
    ],
)
def test_scans_that_make_no_sense_are_input_errors(case: Volume, message: str) -> None:
    with pytest.raises(InputError, match=rf"made\.nii: .*{message}"):
        predict(case)


def test_a_scan_of_another_modality_is_told() -> None:
    case = made((30, 20, 25), (2, 2, 2))
    assert predict(case).notes == ()
    assert predict(attrs.evolve(case, modality="CT")).notes == ()
    (note,) = predict(attrs.evolve(case, modality="MR")).notes
    assert "its modality is MR, and stunet knows CT alone" in note


def test_an_empty_scan_is_an_input_error() -> None:
    case = attrs.evolve(made((40, 40, 40), (3, 3, 3)), voxels=np.zeros((40, 40, 40), np.int16))
    with pytest.raises(InputError, match="every voxel is 0"):
        predict(case)


@pytest.mark.parametrize(
    "case",
    [
        made((30, 20, 25), (2, 2, 2)),  # smaller than a patch
        made((9, 9, 400), (5, 5, 5)),  # two metres long
        made((60, 60, 12), (1, 1, 6)),  # thick slices
        made((2, 50, 50), (12.0, 1, 1)),  # two slices
        made((70, 70, 300), (0.4, 0.4, 0.1)),  # a mouse's worth
    ],
    ids=lambda case: f"{case.geometry.shape} at {case.geometry.spacing_mm}",
)
def test_unusual_scans_are_segmented(case: Volume) -> None:
    assert predict(case).labels.shape == case.voxels.shape


def test_numbers_that_are_not_finite_count_as_zero(scan: Volume) -> None:
    voxels = scan.voxels.astype(np.float32)
    zeroed = voxels.copy()
    voxels[20:23, 30:33, 5:9] = [np.nan, np.inf, -np.inf, np.nan]
    zeroed[20:23, 30:33, 5:9] = 0
    assert np.array_equal(
        predict(attrs.evolve(scan, voxels=voxels)).labels, predict(attrs.evolve(scan, voxels=zeroed)).labels
    )


def test_options_that_make_no_sense_are_wrong_usage_before_any_scan_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from omlab.cli.main import main

    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    (tmp_path / "scan.nii").write_bytes(b"is never read")
    run = ["run", "stunet", str(tmp_path / "scan.nii"), "--variant", "small-scratch", "-o", str(tmp_path / "out"), "-q"]
    for arguments, message in (
        (["--structures", "livr"], "'stunet' has no structure 'livr'. Did you mean: liver?"),
        (["--dataset", "none"], "knows no dataset 'none'. It knows: Task003_Liver"),
        (["--dataset", "BTCV", "--structures", "liver"], "only one can be given"),
        (["--step", "2"], "option 'step' is above 0 and at most 1, found 2"),
        (["--spacing", "-1"], "option 'spacing' is in mm, from 0 to 20, found -1"),
        (["--memory", "0"], "option 'memory' is in GB and above 0, found 0"),
    ):
        assert main([*run, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "scan" not in error
    assert not (tmp_path / "out").exists()


def test_card_is_complete() -> None:
    found = card()
    assert [v.name for v in found.variants if v.weights] == ["small", "base", "large", "huge"]
    assert all("random" in v.title for v in found.variants if not v.weights)
    assert [label.value for label in found.labels] == list(range(1, 105))
    anchors = {3: "aorta", 40: "liver", 77: "spleen", 104: "vertebrae_T9", 39: "kidney_right"}
    assert {value: found.labels[value - 1].name for value in anchors} == anchors
    json.dumps([attrs.asdict(label) for label in found.labels])
