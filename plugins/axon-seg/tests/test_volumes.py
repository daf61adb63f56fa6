"""Cubes as volumes: learning from a data set of nnU-Net, and the model that comes of it, as a user has them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("accelerate")
pytest.importorskip("omlab_segmenter_tuning")

import omlab  # noqa: E402
from omlab.cases import Volume  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.errors import UsageError  # noqa: E402
from omlab.geometry import Geometry, Turn  # noqa: E402
from omlab_axon_seg import labels, model, training_set, volumes  # noqa: E402
from omlab_axon_seg.network import GenericUNet  # noqa: E402

SIDE = 16
SMALL = {"side": (SIDE,) * 3, "base": 4, "num_pool": 2, "skip": (1,), "dim_heads": 4}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OMLAB_WEIGHTS", raising=False)
    monkeypatch.setattr(model, "side_of", lambda variant: SIDE)
    monkeypatch.setattr(model, "arguments", lambda variant: SMALL)
    monkeypatch.setattr("omlab_axon_seg.tuning.side_of", lambda variant: SIDE)
    monkeypatch.setattr("omlab_axon_seg.tuning.arguments", lambda variant: SMALL)


def _cube(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Bright threads on a dim ground [z, y, x], and where they are."""
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]].astype(np.float32)
    mask = np.hypot(y - shape[1] / 2 - 4 * np.sin(z / 7 + seed), x - shape[2] / 3) < 2.5
    mask |= np.hypot(z - shape[0] / 2, x - 0.7 * shape[2] - 3 * np.sin(y / 6)) < 2.5
    return (400 + 900 * mask + np.random.default_rng(seed).normal(0, 60, shape)).astype(np.float32), mask


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    made = (
        training_set.Example(cube, mask.astype(np.uint8)) for cube, mask in (_cube(n, (32, 36, 40)) for n in (0, 1))
    )
    folder = tmp_path / "Dataset001_axons"
    training_set.write(folder, made)
    (folder / "imagesTs").mkdir()
    (folder / "labelsTs").mkdir()
    cube, mask = _cube(2, (20, 18, 16))
    for name, voxels in (("imagesTs/axons_9_0000", cube), ("labelsTs/axons_9", mask.astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(voxels.T, LPS), folder / f"{name}.nii.gz")
    return folder


def test_learn_run_score_evaluate(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was learnt from cubes finds axons in cubes, in a stack, and is measured on the cubes held out."""
    options = ["--epochs", "4", "--batches", "16", "--batch", "1", "--augment", "none", "--device", "cpu",
               "--optimiser", "adamw", "--lr", "0.01"]  # fmt: skip
    mine, on = str(tmp_path / "mine"), f"nnunet-raw:{dataset}"
    learnt = ["--with", "segmenter-tuning", "--on", on, "-o", mine, *options]
    assert main(["adapt", "axon-seg", "--variant", "scratch", *learnt]) == 0, capsys.readouterr().err
    engine = ["--engine", "torch", "--threads", "1", "--overlap", "4"]
    scan, truth = (dataset / f"{place}/axons_9{end}.nii.gz" for place, end in (("imagesTs", "_0000"), ("labelsTs", "")))
    out = tmp_path / "out"
    wanted = ["--lines", "--probabilities", "--voxel", "4,2,2"]
    assert main(["run", mine, str(scan), "-o", str(out), *engine, *wanted]) == 0, capsys.readouterr().err
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    images = {name: nibabel.load(folder / f"{name}.nii.gz") for name in ("segmentation", "lines", "probabilities")}
    for image in images.values():
        assert image.shape == (16, 18, 20) and np.array_equal(image.affine, LPS)
    found, lines, grey = (np.asarray(image.dataobj).T for image in images.values())
    assert np.array_equal(found > 0, grey > 125) and set(np.unique(found)) == {0, 1}
    assert np.array_equal(lines > 0, labels.skeleton(found > 0))
    figures = json.loads((folder / "result.json").read_text())["result"]["measurements"]
    assert figures["axon_voxels"] == (found > 0).sum()
    assert figures["length_mm"] == pytest.approx(labels.line_length(lines > 0, (4, 2, 2)) / 1e3)
    assert (folder / "overview.png").is_file()
    report = tmp_path / "report.json"
    assert main(["score", "segmentation", str(folder / "segmentation.nii.gz"), str(truth), "-o", str(report)]) == 0
    scored = json.loads(report.read_text())["summary"]["axon/dice"]["value"]
    assert scored > 0.6
    assert main(["evaluate", mine, "--on", on, "--split", "test", *engine, "-o", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["summary"]["axon/dice"]["value"] == pytest.approx(scored)
    # The same voxels as a stack go the way of whole brains.
    tifffile.imwrite(tmp_path / "brain.tif", _cube(2, (20, 18, 16))[0].astype(np.uint16), metadata=None)
    stack = ["run", mine, str(tmp_path / "brain.tif"), "-o", str(tmp_path / "stack"), *engine]
    assert main([*stack, "--normalise", "cube"]) == 0
    whole = tifffile.imread(tmp_path / "stack" / "brain" / "segmentation.tif") > 0
    assert 2 * (whole & (found > 0)).sum() / (whole.sum() + (found > 0).sum()) > 0.6
    # All planes of a stack are scored, not the first alone.
    _, mask = _cube(2, (20, 18, 16))
    tifffile.imwrite(tmp_path / "truth.tif", mask.astype(np.uint8), metadata=None)
    files = [str(tmp_path / "stack" / "brain" / "segmentation.tif"), str(tmp_path / "truth.tif")]
    assert main(["score", "segmentation", *files, "-o", str(report)]) == 0
    values = {key.rpartition("/")[2]: value for key, value in json.loads(report.read_text())["summary"].items()}
    assert values["dice"]["value"] == pytest.approx(2 * (whole & mask).sum() / (whole.sum() + mask.sum()))


def test_as_nnunet_predicts_cubes() -> None:
    """Windows half a window apart over the z-score of the whole cube, probabilities averaged, by a plain loop."""
    from omlab.inference.windows import gaussian_lines

    cube, _ = _cube(0, (SIDE, 20, 24))
    case = Volume(name="cube", voxels=cube.T, geometry=Geometry((24, 20, SIDE), LPS))
    loaded = omlab.load("axon-seg", variant="scratch", engine="torch", threads=1)
    result = loaded(case, probabilities=True, threshold=127, overlap=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GenericUNet(**SMALL).eval()
    scores = (cube - cube.mean(dtype=np.float64)) / cube.std(dtype=np.float64)
    lines = gaussian_lines((SIDE,) * 3)
    weight = np.einsum("i,j,k->ijk", *lines)
    total, weights = np.zeros(cube.shape), np.zeros(cube.shape)
    for y in (0, 4):
        for x in (0, 8):
            place = np.s_[:, y : y + SIDE, x : x + SIDE]
            with torch.inference_mode():
                logits = network(torch.from_numpy(scores[place].astype(np.float32))[None, None])
            total[place] += torch.softmax(logits, 1)[0, 1].numpy() * weight
            weights[place] += weight
    grey = total / weights * 255
    assert result.measurements["windows"] == 4
    mask = np.asarray(result.labels).T > 0
    sure = np.abs(grey - 128) > 0.5
    assert np.array_equal(mask[sure], (grey >= 128)[sure]) and sure.mean() > 0.9


def test_orientation_and_size_of_voxels() -> None:
    cube, _ = _cube(0, (20, 24, 28))
    geometry = Geometry((28, 24, 20), np.diag([-0.002, -0.002, 0.005, 1]))
    case = Volume(name="cube", voxels=cube.T, geometry=geometry)
    loaded = omlab.load("axon-seg", variant="scratch", engine="torch", threads=1)
    straight = loaded(case, overlap=4)
    turn = Turn.to(geometry, "PIR")
    other = loaded(
        Volume(name="cube", voxels=np.ascontiguousarray(turn.apply(case.voxels)), geometry=turn.target), overlap=4
    )
    assert np.array_equal(turn.undo(other.labels), straight.labels)
    for result in (straight, other):
        lines = labels.skeleton(np.asarray(straight.labels).T > 0)
        assert result.measurements["length_mm"] == pytest.approx(labels.line_length(lines, (5, 2, 2)) / 1e3)
    # A millimetre is what files say of which nobody told the size.
    assert volumes.told_um(Geometry((4, 4, 4), LPS)) is None
    told = loaded(Volume(name="cube", voxels=cube.T, geometry=Geometry((28, 24, 20), LPS)), overlap=4)
    assert "length_voxels" in told.measurements


def test_a_folder_of_cubes_is_cubes(dataset: Path) -> None:
    from omlab.cases.reading import find
    from omlab.vocabulary import InputKind

    both = {InputKind.STACK, InputKind.VOLUME}
    named = [f"axons_0000{number}_0000" for number in range(2)]
    assert [found.name for found in find([dataset / "imagesTr"], kinds=both)] == named
    (lone,) = find([dataset / "imagesTr"], kinds={InputKind.STACK})
    assert "holds no file that can be a case" in str(lone.error)
    tifffile.imwrite(dataset / "imagesTr" / "brain.tif", np.zeros((6, 20, 20), np.uint16), metadata=None)
    assert [found.path.name for found in find([dataset / "imagesTr"], kinds=both)] == ["brain.tif"]


def test_small_and_even_cubes_and_options_of_stacks() -> None:
    loaded = omlab.load("axon-seg", variant="scratch", engine="torch", threads=1)
    for shape in ((1, 1, 1), (5, 40, 1)):
        case = Volume(name="even", voxels=np.full(shape, 7, np.uint16), geometry=Geometry(shape, LPS))
        assert loaded(case, overlap=4).labels.shape == shape
    for options in ({"region": "0:2,:,:"}, {"background": 3.0}):
        with pytest.raises(UsageError, match="is for stacks, even is a volume"):
            loaded(case, overlap=4, **options)


def test_an_older_network_with_one_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sigmoid is what soft-max of two is elsewhere."""
    cube, mask = _cube(0, (20, 24, 28))
    loaded = omlab.load("axon-seg", variant="scratch", engine="torch", threads=1)
    run = volumes.run
    monkeypatch.setattr(volumes, "run", lambda case, context, _, *more: run(case, context, lambda t: t[None], *more))
    volume = Volume(name="cube", voxels=cube.T, geometry=Geometry((28, 24, 20), LPS))
    found = np.asarray(loaded(volume, threshold=200, overlap=4).labels).T > 0
    scores = volumes.seen(volume)[1]
    assert np.array_equal(found, (255 / (1 + np.exp(-scores))).astype(np.uint8) > 200) and found.any()
    assert not (found & ~mask).any()
